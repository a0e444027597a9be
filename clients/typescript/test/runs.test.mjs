import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { dir, file, Manifest } from '@openai/agents/sandbox';
import { UnixLocalSandboxClient } from '@openai/agents/sandbox/local';
import { resumable, Runlore, RunloreMemoryStore, RunloreSnapshotStore } from 'runlore';

import { handedOff, pausedAndResumed, run } from './sdk.mjs';
import { FakeService } from './service.mjs';

const AWAY = { status: 503, headers: { 'retry-after': '0' } };

let service, folder, told;
beforeEach(async () => {
  service = await new FakeService().start();
  folder = await mkdtemp(join(tmpdir(), 'runlore-runs-'));
  told = [];
});
afterEach(async () => {
  await service.stop();
  await rm(folder, { recursive: true, force: true });
});

const lore = (options = {}) =>
  new Runlore({ project: 'acme', memory: 'support', url: service.url, outbox: folder, report: (one) => told.push(one), ...options });

const records = () => new Set(service.events.map((one) => `${one.run_id}.${one.attempt}`));

test("a second fresh run begins with the first one's workspace, links and modes too, and with the memory", async () => {
  await service.remember(1, { 'memories/MEMORY.md': '# one', 'memories/memory_summary.md': 'v1\nuse --fast' });
  const made = 'mkdir -p bin empty && printf "#!/bin/sh\\necho ran" > bin/x && chmod 750 bin/x && ln -s x bin/l && echo hi > a.txt';
  await run(lore(), 'conv-1', [made]);
  const second = await run(lore(), 'conv-1', ['cat a.txt; bin/l; stat -c %a bin/x; ls -d empty; cat memories/MEMORY.md; echo; ls sessions | wc -l; echo > b.txt']);
  assert.deepEqual(second.outputs[0].split('Output:\n')[1].trim().split('\n'), ['hi', 'ran', '750', 'empty', '# one', '0']);
  assert.match(second.instructions, /use --fast/);
  assert.equal(records().size, 2);
  assert.deepEqual([service.lines.get('conv-1').counter, service.lines.get('conv-1').branches], [2, []]);
  assert.deepEqual(told, []);
});

test('an id that the SDK would lose the record of is kept, without a group too', async () => {
  await run(lore(), 'user:42', ['echo hi'], { noGroup: true });
  assert.deepEqual(new Set(service.events.map((one) => one.conversation_id)), new Set(['user:42']));
  assert.equal(records().size, 1);
});

test('an id that is no file name is recorded under a group of its own', async () => {
  for (const input of ['first', 'second']) await run(lore(), 'a/b c:d', ['echo hi'], { input });
  assert.deepEqual(new Set(service.events.map((one) => one.conversation_id)), new Set(['a/b c:d']));
  assert.equal(records().size, 2);
});

test('a streamed run leaves the same as another, and its input too', async () => {
  await run(lore(), 'conv-1', ['echo hi > a.txt'], { stream: true, input: 'streamed task' });
  assert.equal(records().size, 1);
  assert.match(service.events[0].record, /streamed task/);
  assert.equal(service.lines.get('conv-1').counter, 1);
});

test('runs of one id at the same time keep all records; one workspace leads, the others are branches', async () => {
  const mine = lore();
  const runs = [1, 2, 3, 4].map((one) => run(mine, 'conv-1', [`echo ${one} > ${one}.txt`], { input: `task ${one}` }));
  await Promise.all(runs);
  await mine.flush();
  assert.equal(records().size, 4);
  const { counter, branches } = service.lines.get('conv-1');
  assert.deepEqual([counter, branches.length], [1, 3]);
});

test('a service that goes away in a run fails nothing, and gets it all later', async () => {
  const mine = lore();
  await run(mine, 'conv-1', ['echo one > a.txt']);
  const begun = service.events.length;
  let gone = false;
  service.fault = (request) => ((gone ||= request.method === 'POST') ? AWAY : undefined);
  const second = await run(mine, 'conv-1', ['echo two >> a.txt; cat a.txt'], { answer: 'finished' });
  assert.equal(second.finalOutput, 'finished');
  assert.match(second.outputs[0], /one\ntwo/);
  assert.equal(service.events.length, begun);
  service.fault = undefined;
  assert.equal(await lore().flush(), true);
  assert.equal(service.lines.get('conv-1').counter, 2);
  assert.equal(records().size, 2);
});

test('a run that began while the service was away leaves a branch, and overwrites nothing', async () => {
  await run(lore(), 'conv-1', ['echo good > a.txt']);
  const good = service.lines.get('conv-1').snapshot;
  service.fault = AWAY;
  const mine = lore();
  const blind = await run(mine, 'conv-1', ['ls a.txt; echo mine > b.txt'], { answer: 'finished', input: 'second' });
  assert.equal(blind.finalOutput, 'finished');
  assert.match(blind.outputs[0], /No such file/);
  assert.ok(told.some((one) => /will end as a branch/.test(one.message)));
  service.fault = undefined;
  await mine.flush();
  assert.equal(service.lines.get('conv-1').snapshot, good);
  assert.equal(service.lines.get('conv-1').branches.length, 1);
});

test('who would rather not begin blind says so, and no folder is left over', async () => {
  service.fault = AWAY;
  const snapshot = { type: 'remote', id: 'conv-1', store: new RunloreSnapshotStore(lore().rollout('conv-1')) };
  const client = resumable(new UnixLocalSandboxClient({ workspaceBaseDir: folder, snapshot }), { whenAway: 'fail' });
  await assert.rejects(client.create({ snapshot, manifest: new Manifest({}) }), { kind: 'store_unavailable' });
  assert.deepEqual((await readdir(folder)).filter((name) => name.startsWith('openai')), []);
});

test('a workspace that arrives damaged, or is refused, costs a run its begin and nobody the version', async () => {
  await run(lore(), 'conv-1', ['seq 10000 > a.txt']);
  const line = service.lines.get('conv-1');
  const good = line.snapshot;
  const whole = line.tar;
  line.tar = line.tar.subarray(0, 20_000);
  await assert.rejects(run(lore(), 'conv-1', ['ls'], { resumable: { whenAway: 'fail' } }), { kind: 'bad_archive' });
  assert.equal(records().size, 1);
  const damaged = await run(lore(), 'conv-1', ['ls a.txt; echo 1 > b.txt'], { input: 'second', answer: 'finished' });
  line.tar = whole;
  service.fault = (_, url) => (url.pathname.endsWith('/seed') ? { status: 403, body: { kind: 'forbidden' } } : undefined);
  const refused = await run(lore(), 'conv-1', ['ls a.txt; echo 2 > b.txt'], { input: 'third', answer: 'finished' });
  for (const one of [damaged, refused]) {
    assert.equal(one.finalOutput, 'finished');
    assert.match(one.outputs[0], /No such file/);
  }
  await lore().flush();
  assert.equal(line.snapshot, good);
  assert.equal(line.branches.length, 2);
});

test('a workspace that the client does not take whole is none: the run begins empty', async () => {
  await run(lore(), 'conv-1', ['echo 1 > a.txt; echo 2 > b.txt']);
  const mine = lore();
  const snapshot = { type: 'remote', id: 'conv-1', store: new RunloreSnapshotStore(mine.rollout('conv-1')) };
  const plain = new UnixLocalSandboxClient({ workspaceBaseDir: folder, snapshot });
  const create = plain.create.bind(plain);
  plain.create = async (...args) => {
    const session = await create(...args);
    const hydrate = session.hydrateWorkspace.bind(session);
    session.hydrateWorkspace = async (data) => {
      await hydrate(data);
      throw new Error('the disk is full');
    };
    return session;
  };
  const session = await resumable(plain).create({ snapshot, manifest: new Manifest({}) });
  assert.deepEqual(await readdir(session.state.workspaceRootPath), []);
  assert.match(told.at(-1).message, /will end as a branch/);
  await session.delete();
  assert.deepEqual((await readdir(folder)).filter((name) => name.startsWith('openai')), []);
});

test("what a manifest names is made where the snapshot has none of it, and the agent's own version stays", async () => {
  const manifest = (entries) => ({ agent: { defaultManifest: new Manifest({ entries }) } });
  await run(lore(), 'conv-1', ['echo mine > in.txt'], manifest({ 'in.txt': file({ content: 'v1\n' }) }));
  const entries = { 'in.txt': file({ content: 'v2\n' }), 'new.txt': file({ content: 'new\n' }), d: dir({ children: { 'e.txt': file({ content: 'e\n' }) } }) };
  const second = await run(lore(), 'conv-1', ['cat in.txt new.txt d/e.txt'], manifest(entries));
  assert.match(second.outputs[0], /mine\nnew\ne\n/);
});

test('a run that was interrupted, saved and resumed is one run, in a second attempt, and moves its own workspace on', async () => {
  const mine = lore();
  assert.equal(await pausedAndResumed(mine, 'conv-1'), 'paid');
  assert.equal(new Set(service.events.map((one) => one.run_id)).size, 1);
  assert.deepEqual(new Set(service.events.map((one) => one.attempt)), new Set([1, 2]));
  assert.deepEqual(service.lines.get('conv-1').branches, []);
  const third = await run(mine, 'conv-1', ['cat b.txt']);
  assert.match(third.outputs[0], /one/);
});

test('of two agents of a hand-off one workspace leads and the other is a branch: neither is lost', async () => {
  assert.equal(await handedOff(lore(), 'conv-1'), 'done');
  const { counter, branches } = service.lines.get('conv-1');
  assert.deepEqual([counter, branches.length], [1, 1]);
  assert.equal(service.events.filter((one) => typeof one.record === 'string').length, 1);
  assert.deepEqual(told, []);
});

test('a client whose snapshots are not here stays as it is', async () => {
  const client = resumable(new UnixLocalSandboxClient({ workspaceBaseDir: folder }));
  assert.equal(client.backendId, 'unix_local');
  const session = await client.create({ manifest: new Manifest({}) });
  await session.delete();
  assert.deepEqual(service.requests, []);
});
