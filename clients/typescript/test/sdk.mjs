/** The real Agents SDK with a scripted model: one fresh run of an agent in a sandbox of its own. */

import { Runner, RunState, setTracingDisabled, tool } from '@openai/agents';
import { Capabilities, memory, SandboxAgent } from '@openai/agents/sandbox';
import { UnixLocalSandboxClient } from '@openai/agents/sandbox/local';
import { assistantMessage, functionCall, modelResponder, ScriptedModel } from '@openai/agents/testing';
import { recordOnly, resumable, RunloreMemoryStore, RunloreSnapshotStore } from 'runlore';
import { z } from 'zod';

setTracingDisabled(true);

/** Run `commands` in the sandbox, one after another; answers what they printed and the instructions that the model got. */
export async function run(lore, id, commands, options = {}) {
  const rollout = lore.rollout(id, options.rollout);
  const store = new RunloreSnapshotStore(rollout);
  const snapshot = { type: 'remote', id, store };
  const seen = { outputs: [], instructions: '' };
  const steps = commands.map((cmd, index) => modelResponder(({ request }) => {
    note(seen, request);
    return [functionCall('exec_command', { cmd }, { callId: `call-${id}-${index}` })];
  }));
  const last = modelResponder(({ request }) => {
    note(seen, request);
    return [assistantMessage(options.answer ?? 'done')];
  });
  const model = new ScriptedModel([...steps, last]);
  const capabilities = [
    ...Capabilities.default(),
    memory({ store: new RunloreMemoryStore(rollout), generate: recordOnly, read: { liveUpdate: false } }),
  ];
  const agent = new SandboxAgent({ name: 'worker', instructions: 'Work.', model, capabilities, ...options.agent });
  const client = resumable(new UnixLocalSandboxClient(), { snapshot, ...options.resumable });
  const runner = new Runner(options.noGroup ? {} : { groupId: rollout.groupId });
  const config = { sandbox: { client, snapshot }, stream: options.stream ?? false };
  const result = await runner.run(agent, options.input ?? `task of ${id}`, config);
  if (options.stream) {
    for await (const _ of result) { /* to its end */ }
    await result.completed;
  }
  return { ...seen, result, finalOutput: result.finalOutput };
}

/** A run that stops for an approval, is saved as text, and goes on from there with objects of its own. */
export async function pausedAndResumed(lore, id) {
  const pay = tool({ name: 'pay', description: 'pay', parameters: z.object({}), needsApproval: true, execute: async () => 'paid' });
  const build = (...steps) => {
    const rollout = lore.rollout(id);
    const snapshot = { type: 'remote', id, store: new RunloreSnapshotStore(rollout) };
    const capabilities = [...Capabilities.default(), memory({ store: new RunloreMemoryStore(rollout), generate: recordOnly })];
    const agent = new SandboxAgent({ name: 'worker', model: new ScriptedModel(steps), tools: [pay], capabilities });
    return { agent, sandbox: { client: resumable(new UnixLocalSandboxClient(), { snapshot }), snapshot } };
  };
  const call = (name, args, callId) => [functionCall(name, args, { callId })];
  const runner = new Runner({ groupId: id });
  const first = build(call('exec_command', { cmd: 'echo one > a.txt' }, 'c1'), call('pay', {}, 'c2'));
  const paused = await runner.run(first.agent, 'pay it', { sandbox: first.sandbox });
  const saved = paused.state.toString();
  const again = build(call('exec_command', { cmd: 'cat a.txt >> b.txt' }, 'c3'), [assistantMessage('paid')]);
  const state = await RunState.fromString(again.agent, saved);
  state.approve(state.getInterruptions()[0]);
  return (await runner.run(again.agent, state, { sandbox: again.sandbox })).finalOutput;
}

/** A run that one sandbox agent begins and another ends, each in a sandbox of its own. */
export async function handedOff(lore, id) {
  const rollout = lore.rollout(id);
  const snapshot = { type: 'remote', id, store: new RunloreSnapshotStore(rollout) };
  const store = new RunloreMemoryStore(rollout);
  const build = (name, steps, handoffs = []) => {
    const capabilities = [...Capabilities.default(), memory({ store, generate: recordOnly })];
    return new SandboxAgent({ name, model: new ScriptedModel(steps), capabilities, handoffs });
  };
  const call = (name, args, callId) => [functionCall(name, args, { callId })];
  const last = build('B', [call('exec_command', { cmd: 'echo b > b.txt' }, 'b1'), [assistantMessage('done')]]);
  const steps = [call('exec_command', { cmd: 'echo a > a.txt' }, 'a1'), call('transfer_to_B', {}, 'a2')];
  const sandbox = { client: resumable(new UnixLocalSandboxClient(), { snapshot }), snapshot };
  return (await new Runner({ groupId: id }).run(build('A', steps, [last]), 'go', { sandbox })).finalOutput;
}

function note(seen, request) {
  seen.instructions = request.systemInstructions ?? '';
  const results = request.input.filter((item) => item.type === 'function_call_result');
  seen.outputs = results.map((item) => (typeof item.output === 'string' ? item.output : item.output.text ?? JSON.stringify(item.output)));
}
