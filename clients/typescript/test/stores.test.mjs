import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';

import { Runlore, RunloreMemoryStore, RunloreSnapshotStore } from 'runlore';
import { FakeService } from './service.mjs';

const AWAY = { status: 503, headers: { 'retry-after': '0' } };
const text = (value) => new TextEncoder().encode(value);
const line = (input, more = {}) =>
  JSON.stringify({ updated_at: '2026-09-01T09:00:00.120+00:00', rollout_id: 'conv-1', input: [input], generated_items: [], ...more });

let service, folder, told;
beforeEach(async () => {
  service = await new FakeService().start();
  folder = await mkdtemp(join(tmpdir(), 'runlore-outbox-'));
  told = [];
});
afterEach(async () => {
  await service.stop();
  await rm(folder, { recursive: true, force: true });
});

const lore = (options = {}) =>
  new Runlore({ project: 'acme', memory: 'support', url: service.url, outbox: folder, report: (one) => told.push(one), ...options });

const workspace = (files, lines = []) => {
  const all = { ...files, ...(lines.length ? { 'sessions/conv-1.jsonl': lines.map((one) => `${one}\n`).join('') } : {}) };
  const entries = Object.entries(all).map(([path, body]) => ({ path, data: Buffer.from(body).toString('base64') }));
  return text(JSON.stringify({ version: 1, directories: [], files: entries }));
};

async function snapshotted(id = 'conv-1') {
  const store = new RunloreSnapshotStore(lore().rollout(id));
  await store.save({ id, data: workspace({ 'a.txt': '1' }, [line('one')]) });
  service.requests = [];
}

const waiting = async () => {
  const [place] = await readdir(folder);
  return (await readdir(join(folder, place))).filter((name) => /^\d/.test(name)).sort();
};

test('a workspace exists when the rollout has a snapshot, and not when it has none', async () => {
  const store = () => new RunloreSnapshotStore(lore().rollout('conv-1'));
  assert.equal(await store().exists({ id: 'conv-1' }), false);
  await snapshotted();
  assert.equal(await store().exists({ id: 'conv-1' }), true);
});

test('a 404 is no workspace; what can not be known is thrown', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  service.fault = { status: 404, body: { kind: 'not_found' } };
  assert.equal(await store.exists({ id: 'conv-1' }), false);
  for (const fault of [AWAY, { status: 500 }, { status: 403, body: { kind: 'forbidden' } }, 'cut']) {
    service.fault = fault;
    await assert.rejects(store.exists({ id: 'conv-1' }), { name: 'RunloreError' });
  }
});

test('a fault that passes is waited out', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  let left = 2;
  service.fault = () => (left-- > 0 ? AWAY : undefined);
  assert.equal(await store.exists({ id: 'conv-1' }), false);
});

test('a store answers for its own rollout only', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  await assert.rejects(store.exists({ id: 'conv-2' }), { kind: 'invalid_id' });
  await assert.rejects(store.load({ id: 'conv-2' }), { kind: 'invalid_id' });
});

test('what is saved is loaded, without session files and with its base', async () => {
  await snapshotted();
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  const { data, metadata } = await store.load({ id: 'conv-1' });
  const archive = JSON.parse(new TextDecoder().decode(data));
  assert.deepEqual(archive.files, [{ path: 'a.txt', data: Buffer.from('1').toString('base64') }]);
  assert.deepEqual(metadata.runlore.base, { counter: 1, snapshot: service.lines.get('conv-1').snapshot });
});

test('a rollout without a workspace has nothing to load', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  await assert.rejects(store.load({ id: 'conv-1' }), { kind: 'no_snapshot' });
});

test('neither store can delete, and the id of a snapshot stays', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  assert.equal(store.delete, undefined);
  assert.equal(new RunloreMemoryStore(lore().rollout('conv-1')).delete, undefined);
  assert.equal((await store.save({ id: 'conv-1', data: workspace({}) })).id, 'conv-1');
});

test('a workspace goes with the run that left it, in one event with its record', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1', { subject: 'ana', agent: 'Billing' }));
  const late = line('two', { updated_at: '2026-09-01T10:00:00.000+00:00' });
  await store.save({ id: 'conv-1', data: workspace({ 'a.txt': '1' }, [line('one'), late]) });
  const [event] = service.events;
  assert.equal(event.record, late);
  assert.equal(event.subject, 'ana');
  assert.equal(event.workspaces[0].agent, 'Billing');
  assert.ok(service.archives.has(event.workspaces[0].archive.sha256));
  assert.equal('base' in event.workspaces[0], false);
});

test('without a session line the workspace is sent all the same, each time as a run of its own', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('user:42'));
  for (const body of ['1', '2']) await store.save({ id: 'user:42', data: workspace({ 'a.txt': body }) });
  assert.equal(new Set(service.events.map((one) => one.run_id)).size, 2);
  assert.deepEqual(service.events[0].record.input, []);
  assert.equal(service.events[0].conversation_id, 'user:42');
});

test('a second workspace of one run becomes a run below it, and the same one stays the same', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  for (const body of ['1', '1', '2']) await store.save({ id: 'conv-1', data: workspace({ 'a.txt': body }, [line('one')]) });
  const [first, same, other] = service.events;
  assert.equal(same.run_id, first.run_id);
  assert.notEqual(other.run_id, first.run_id);
  assert.equal(other.parent_run_id, first.run_id);
});

test('of one load the base is known, of two it is not, and is left out', async () => {
  await snapshotted();
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  await store.load({ id: 'conv-1' });
  await store.save({ id: 'conv-1', data: workspace({}, [line('two')]) });
  assert.equal(service.events.at(-1).workspaces[0].base.counter, 1);
  await store.load({ id: 'conv-1' });
  await store.save({ id: 'conv-1', data: workspace({}, [line('three')]) });
  assert.equal('base' in service.events.at(-1).workspaces[0], false);
});

test('the base in the metadata of a session is the one that counts', async () => {
  await snapshotted();
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  await store.load({ id: 'conv-1' });
  const metadata = { runlore: { seed: 's1.7', base: { counter: 5, snapshot: null } }, mine: 1 };
  const saved = await store.save({ id: 'conv-1', data: workspace({}, [line('two')]), metadata });
  assert.deepEqual(service.events.at(-1).workspaces[0].base, { counter: 5, snapshot: null });
  assert.equal(service.events.at(-1).seed, 's1.7');
  assert.deepEqual(saved, { id: 'conv-1', metadata });
});

test('another format than the SDK archive is handed over as it is', async () => {
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  const data = text('MODAL_SANDBOX_FS_SNAPSHOT_V1\nim-123');
  await store.save({ id: 'conv-1', data });
  assert.deepEqual([...service.archives.values()][0], Buffer.from(data));
});

for (const [name, fault] of [['answers 503', AWAY], ['cuts the line', 'cut'], ['knows no such key', { status: 401, body: { kind: 'unauthorized' } }]]) {
  test(`a service that ${name} fails no run, and gets everything later`, async () => {
    service.fault = fault;
    const mine = lore();
    const rollout = mine.rollout('conv-1');
    await new RunloreMemoryStore(rollout).write('sessions/conv-1.jsonl', text(`${line('one')}\n`));
    await new RunloreSnapshotStore(rollout).save({ id: 'conv-1', data: workspace({ 'a.txt': '1' }, [line('one')]) });
    assert.deepEqual(service.events, []);
    assert.equal((await waiting()).length, 1);
    assert.ok(told.length > 0);
    service.fault = undefined;
    assert.equal(await lore().flush(), true); // Another object, as in a process that starts later.
    assert.deepEqual(service.events.map((one) => Boolean(one.workspaces)), [true]);
    assert.deepEqual(await waiting(), []);
  });
}

test('a run with its workspace is one event; a record without one is sent by itself, in moments', async () => {
  const mine = lore();
  const rollout = mine.rollout('conv-1');
  const memory = new RunloreMemoryStore(rollout);
  await memory.write('sessions/conv-1.jsonl', text(`${line('one')}\n`));
  await new RunloreSnapshotStore(rollout).save({ id: 'conv-1', data: workspace({ 'a.txt': '1' }, [line('one')]) });
  await mine.flush();
  assert.deepEqual(service.events.map((one) => [one.record, one.workspaces.length]), [[line('one'), 1]]);
  const arrived = new Promise((resolve) => service.server.once('request', resolve));
  await memory.write('sessions/conv-1.jsonl', text(`${line('two')}\n`));
  assert.equal(service.events.length, 1);
  await arrived;
  await mine.flush();
  assert.equal(service.events[1].record, line('two'));
});

test('a record is not lost to a workspace that turns out to be a branch of its run', async () => {
  const mine = lore();
  const rollout = mine.rollout('conv-1');
  const store = new RunloreSnapshotStore(rollout);
  for (const body of ['1', '2']) {
    await new RunloreMemoryStore(rollout).write('sessions/conv-1.jsonl', text(`${line('one')}\n`));
    await store.save({ id: 'conv-1', data: workspace({ 'a.txt': body }, [line('one')]) });
  }
  await mine.flush();
  const [first, branch] = service.events;
  assert.equal(first.record, line('one'));
  assert.equal(branch.parent_run_id, first.run_id);
});

test('a reply that is lost sends an event twice, as the same run', async () => {
  service.fault = 'lost';
  const mine = lore();
  await new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(line('one')));
  await mine.flush();
  service.fault = undefined;
  assert.equal(await mine.flush(), true);
  const sent = service.events.map((one) => JSON.stringify(one));
  assert.ok(sent.length > 1);
  assert.equal(new Set(sent).size, 1);
});

test('what the service refuses is put aside with its reason, and holds up nothing behind it', async () => {
  service.fault = (request) => (request.headers['content-type'] === 'application/x-tar' ? { status: 413, body: { kind: 'too_large', detail: 'no' } } : undefined);
  const mine = lore();
  const rollout = mine.rollout('conv-1');
  await new RunloreSnapshotStore(rollout).save({ id: 'conv-1', data: workspace({}, [line('one')]) });
  await new RunloreMemoryStore(rollout).write('sessions/conv-1.jsonl', text(line('two')));
  assert.equal(await mine.flush(), true);
  assert.deepEqual(service.events.map((one) => one.record), [line('two')]);
  const [place] = await readdir(folder);
  const [name] = await readdir(join(folder, place, 'refused'));
  const problem = JSON.parse(await readFile(join(folder, place, 'refused', name, 'problem.json')));
  assert.equal(problem.kind, 'too_large');
});

test('what a process that died was writing is swept, and what one is writing now is not', async () => {
  const mine = lore();
  await new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(line('one')));
  await mine.flush();
  const [place] = await readdir(folder);
  const names = [Date.now() - 25 * 3600_000, Date.now()].map((at) => `.draft-${String(at).padStart(15, '0')}-0-x`);
  for (const name of names) await mkdir(join(folder, place, name));
  await mine.flush();
  assert.deepEqual((await readdir(join(folder, place))).filter((name) => name.startsWith('.draft')), [names[1]]);
});

test('a seed of before that the service does not know any more is let go', async () => {
  await service.remember(1, { 'memories/MEMORY.md': 'one' });
  const mine = lore();
  const store = new RunloreSnapshotStore(mine.rollout('conv-1'));
  await store.exists({ id: 'conv-1' });
  for (const fault of [{ status: 403, body: { kind: 'forbidden' } }, { status: 400, body: { kind: 'invalid_input' } }]) {
    service.fault = (_, url) => (url.searchParams.has('after') ? fault : undefined);
    assert.equal(await store.exists({ id: 'conv-1' }), false);
  }
});

test('what waits is readable by its owner alone', async () => {
  service.fault = AWAY;
  const mine = lore();
  await new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(line('one')));
  await mine.flush();
  const [place] = await readdir(folder);
  const [name] = await waiting();
  assert.equal((await stat(join(folder, place, name))).mode & 0o777, 0o700);
  assert.equal((await stat(join(folder, place, name, 'event.json'))).mode & 0o777, 0o600);
});

test('a full outbox, or none that can be written, tries once instead of keeping', async () => {
  for (const options of [{ outboxBytesMax: 10 }, { outbox: '/dev/null/nowhere' }]) {
    const mine = lore(options);
    await new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(line(JSON.stringify(options))));
  }
  assert.equal(service.events.length, 2);
  service.fault = AWAY;
  await new RunloreMemoryStore(lore({ outboxBytesMax: 10 }).rollout('conv-1')).write('sessions/conv-1.jsonl', text(line('x')));
  assert.match(String(told.at(-1).error), /more than 10/);
});

test('a write of sessions sends each line once; a write of memory is left to the service', async () => {
  const mine = lore();
  const store = new RunloreMemoryStore(mine.rollout('conv-1'));
  await store.write('memories/MEMORY.md', text(''));
  await store.write('sessions/notes.txt', text('x'));
  await store.write('sessions/conv-1.jsonl', text(`${line('one')}\n`));
  await store.write('sessions/conv-1.jsonl', text(`${line('one')}\n${line('zwei \u2028')}\n`));
  await mine.flush();
  assert.deepEqual(service.events.map((one) => JSON.parse(one.record).input[0]), ['one', 'zwei \u2028']);
  assert.ok(service.events[1].record.includes('\\u2028'));
});

test('memory is read out of one seed, whatever comes after', async () => {
  await service.remember(1, { 'memories/MEMORY.md': 'one', 'memories/skills/a.md': 'a' });
  const store = new RunloreMemoryStore(lore().rollout('conv-1'));
  assert.deepEqual(await store.list('memories'), ['memories/MEMORY.md', 'memories/skills/a.md']);
  await service.remember(2, { 'memories/MEMORY.md': 'two' });
  assert.equal(new TextDecoder().decode(await store.read('memories/MEMORY.md')), 'one');
  assert.deepEqual(await store.list('memories/skills'), ['memories/skills/a.md']);
  assert.equal(await store.read('memories/none.md'), null);
  assert.equal(await store.read('sessions/conv-1.jsonl'), null);
});

test('memory follows the layout of the agent', async () => {
  await service.remember(1, { 'memories/MEMORY.md': 'one' });
  const mine = lore({ layout: { memoriesDir: 'agent/mem', sessionsDir: 'agent/ses' } });
  const store = new RunloreMemoryStore(mine.rollout('conv-1'));
  assert.deepEqual(await store.list('agent/mem'), ['agent/mem/MEMORY.md']);
  await store.write('agent/ses/conv-1.jsonl', text(line('one')));
  await mine.flush();
  assert.deepEqual(service.events[0].layout, { memories_dir: 'agent/mem', sessions_dir: 'agent/ses' });
});

test('memory that can not be read is told, and fails no run', async () => {
  service.fault = AWAY;
  const store = new RunloreMemoryStore(lore().rollout('conv-1'));
  assert.deepEqual(await store.list('memories'), []);
  assert.equal(await store.read('memories/MEMORY.md'), null);
  assert.equal(told.length, 1);
  service.fault = undefined;
  service.requests = [];
  await service.remember(1, { 'memories/MEMORY.md': 'one' });
  // Not asked in each turn again: the run goes on as it began, the next one asks.
  assert.deepEqual([await store.list('memories'), service.requests], [[], []]);
  assert.deepEqual(await new RunloreMemoryStore(lore().rollout('conv-1')).list('memories'), ['memories/MEMORY.md']);
});

test('the next run asks for a seed that is no older, and holds what was recorded before', async () => {
  await service.remember(1, { 'memories/MEMORY.md': 'one' });
  const mine = lore();
  await new RunloreMemoryStore(mine.rollout('conv-1')).list('memories');
  await new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(line('one')));
  service.requests = [];
  await new RunloreMemoryStore(mine.rollout('conv-1')).list('memories');
  const asked = new URL(service.requests.find((one) => one.includes('/seed?')).slice(4), service.url).searchParams;
  assert.equal(asked.get('after'), 's1.0');
  assert.equal(asked.get('wait_for'), service.events[0].run_id);
});

test('a run that does not come into the memory in time is gone on without', async () => {
  const mine = lore({ waitSeconds: 1 });
  const rollout = mine.rollout('conv-1');
  await new RunloreMemoryStore(rollout).write('sessions/conv-1.jsonl', text(line('one')));
  service.fault = (_, url) => (url.searchParams.has('wait_for') ? { status: 504, body: { kind: 'wait_timeout' } } : undefined);
  assert.equal(await new RunloreSnapshotStore(rollout).exists({ id: 'conv-1' }), false);
  assert.match(told.at(-1).message, /not in the memory/);
});

test('the next run waits for the workspace of the one before, but not for ever', async () => {
  const mine = lore({ waitSeconds: 0.3 });
  const store = new RunloreSnapshotStore(mine.rollout('conv-1'));
  await store.save({ id: 'conv-1', data: workspace({ 'a.txt': '1' }, [line('one')]) });
  service.isBehind = true;
  await store.exists({ id: 'conv-1' });
  assert.match(told.at(-1).message, /not in the memory/);
  service.isBehind = false;
  service.requests = [];
  await store.exists({ id: 'conv-1' });
  assert.match(service.requests.join(), /runs.*wait_for/);
  assert.equal(told.length, 1);
});

test('a workspace that is left as it was is not sent again', async () => {
  await snapshotted();
  const store = new RunloreSnapshotStore(lore().rollout('conv-1'));
  await store.load({ id: 'conv-1' });
  const sent = service.archives.size;
  await store.save({ id: 'conv-1', data: workspace({ 'a.txt': '1', 'memories/MEMORY.md': 'x' }, [line('two')]) });
  assert.equal(service.archives.size, sent);
  assert.equal(service.events.at(-1).record, line('two'));
  assert.equal('workspaces' in service.events.at(-1), false);
});

test('a key goes with every request, and into no report', async () => {
  const keys = new Set();
  service.fault = (request) => {
    keys.add(request.headers.authorization);
    return { status: 403, body: { kind: 'forbidden', detail: 'no' } };
  };
  const mine = lore({ key: 'rl_id_secret' });
  await new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(line('one')));
  await mine.flush();
  await new RunloreMemoryStore(mine.rollout('conv-1')).list('memories');
  assert.deepEqual([...keys], ['Bearer rl_id_secret']);
  assert.ok(told.length > 1);
  assert.ok(!told.some((one) => `${one.message}${one.error}`.includes('secret')));
});

test('a blank rollout is refused before anything runs', () => {
  assert.throws(() => lore().rollout('  '), { kind: 'invalid_id' });
});
