/** What stands between a program and the service, what lies in an outbox, and what a program may give: all of it may be wrong. */

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { afterEach, beforeEach, test } from 'node:test';

import { Runlore, RunloreMemoryStore, RunloreSnapshotStore } from 'runlore';
import { FakeService } from './service.mjs';

const PAGE = { status: 200, body: '<html>Log in</html>', headers: { 'content-type': 'text/html' } };
const text = (value) => new TextEncoder().encode(value);
const line = (input) => JSON.stringify({ updated_at: '2026-09-01T09:00:00.120+00:00', input: [input], generated_items: [] });

let service, folder, told;
beforeEach(async () => {
  service = await new FakeService().start();
  folder = await mkdtemp(join(tmpdir(), 'runlore-hostile-'));
  told = [];
});
afterEach(async () => {
  await service.stop();
  await rm(folder, { recursive: true, force: true });
});

const lore = (options = {}) =>
  new Runlore({ project: 'acme', memory: 'support', url: service.url, outbox: folder, report: (one) => told.push(one), ...options });
const record = (mine, input) => new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(line(input)));
const snapshots = (options) => new RunloreSnapshotStore(lore(options).rollout('conv-1'));
const archive = text(JSON.stringify({ version: 1, directories: [], files: [{ path: 'a', data: 'eA==' }] }));

async function place() {
  const [name] = await readdir(folder);
  return join(folder, name);
}
const waiting = async () => (await readdir(await place())).filter((name) => /^\d/.test(name)).sort();
const refused = async () => readdir(join(await place(), 'refused')).catch(() => []);

for (const [what, fault] of [
  ['a page that says 200', PAGE],
  ['JSON that says nothing', { status: 202, body: {} }],
  ['a page that says 400', { ...PAGE, status: 400 }],
  ['a page that says 404', { ...PAGE, status: 404 }],
  ['a list', { status: 400, body: ['no'] }],
  ['half an answer', 'half'],
]) {
  test(`what does not come from the service takes no run and refuses none: ${what}`, async () => {
    service.fault = fault;
    const mine = lore();
    await record(mine, 'one');
    assert.equal(await mine.flush(), false);
    assert.deepEqual([(await waiting()).length, await refused()], [1, []]);
    await assert.rejects(snapshots().exists({ id: 'conv-1' }), { name: 'RunloreError' });
    service.fault = undefined;
    assert.equal(await lore().flush(), true);
    assert.equal(service.events.length, 1);
  });
}

test('a redirect is not followed: neither the key nor a run goes to another place', async () => {
  const asked = [];
  const other = createServer((request, response) => {
    asked.push(request.url);
    response.end('{}');
  });
  await new Promise((resolve) => other.listen(0, '127.0.0.1', resolve));
  service.fault = { status: 307, body: '', headers: { location: `http://127.0.0.1:${other.address().port}/` } };
  const mine = lore({ key: 'rl_id_secret' });
  await record(mine, 'one');
  assert.equal(await mine.flush(), false);
  await assert.rejects(snapshots().exists({ id: 'conv-1' }), { kind: 'http_307' });
  assert.deepEqual([asked, (await waiting()).length], [[], 1]);
  await new Promise((resolve) => other.close(resolve));
});

test('a service that says nothing is waited for until the deadline, once', async () => {
  service.fault = 'silent';
  const mine = lore({ answerMsMax: 200, deliverMsMax: 200 });
  const store = new RunloreMemoryStore(mine.rollout('conv-1'));
  assert.deepEqual(await store.list('memories'), []);
  assert.deepEqual(await store.list('memories'), []);
  assert.equal(service.requests.length, 1);
  await assert.rejects(new RunloreSnapshotStore(mine.rollout('conv-1')).exists({ id: 'conv-1' }), { kind: 'unreachable' });
  // Neither does a run's end wait for ever where nothing can be kept.
  await record(lore({ outboxBytesMax: 10, deliverMsMax: 200 }), 'one');
  assert.match(String(told.at(-1).error), /more than 10.*does not answer/);
});

test('a service that did not answer at the begin of a run is not waited for at its end', { timeout: 60_000 }, async () => {
  service.fault = 'silent';
  const mine = lore({ answerMsMax: 200, deliverMsMax: 3_600_000 });
  const rollout = mine.rollout('conv-1');
  assert.deepEqual(await new RunloreMemoryStore(rollout).list('memories'), []);
  await new RunloreSnapshotStore(rollout).save({ id: 'conv-1', data: archive });
  assert.equal((await waiting()).length, 1);
  await assert.rejects(mine.rollout('conv-2').seed(), { kind: 'unreachable' });
});

test('an answer that breaks off is asked for again', async () => {
  let count = 0;
  service.fault = () => (count++ === 0 ? 'half' : undefined);
  assert.equal(await snapshots().exists({ id: 'conv-1' }), false);
});

test('an outage is told once, and the next one again', async () => {
  const mine = lore();
  const outages = () => told.filter((one) => one.message.startsWith('not delivered')).length;
  for (const [input, count] of [['one', 1], ['two', 2]]) {
    service.fault = { status: 503, body: { kind: 'store_unavailable' } };
    await record(mine, input);
    for (let tries = 0; tries < 3; tries++) assert.equal(await mine.flush(), false);
    assert.equal(outages(), count);
    service.fault = undefined;
    assert.equal(await mine.flush(), true);
  }
});

test('one run at which the service fails holds up no other', async () => {
  service.fault = (request) => (request.headers['content-type'] === 'application/x-tar' ? { status: 500, body: { kind: 'internal' } } : undefined);
  const mine = lore();
  await new RunloreSnapshotStore(mine.rollout('conv-1')).save({ id: 'conv-1', data: archive });
  await record(mine, 'two');
  assert.equal(await mine.flush(), false);
  assert.deepEqual(service.events.map((one) => one.record), [line('two')]);
  assert.equal((await waiting()).length, 1);
});

test('an item that can not be read is put aside, and holds up no other', async () => {
  service.fault = { status: 503, body: { kind: 'store_unavailable' } };
  const mine = lore();
  for (const input of ['one', 'two', 'three']) await record(mine, input);
  await new RunloreSnapshotStore(mine.rollout('conv-1')).save({ id: 'conv-1', data: archive });
  const items = await waiting();
  await writeFile(join(await place(), items[0], 'event.json'), ''); // As after a power cut.
  await rm(join(await place(), items[1], 'event.json'));
  await writeFile(join(await place(), items[3], 'archive.tar'), 'short');
  service.fault = undefined;
  assert.equal(await mine.flush(), true);
  assert.deepEqual(service.events.map((one) => one.record), [line('three')]);
  assert.deepEqual((await refused()).sort(), [items[0], items[1], items[3]]);
  const why = await readFile(join(await place(), 'refused', items[0], 'problem.json'), 'utf8');
  assert.equal(JSON.parse(why).kind, 'outbox_damaged');
});

test('where the disk takes no workspace the run itself is sent, and the loss is told', async () => {
  const files = [{ path: 'sessions/conv-1.jsonl', data: Buffer.from(line('one')).toString('base64') }];
  const data = text(JSON.stringify({ version: 1, directories: [], files }));
  const mine = lore({ outbox: '/dev/null/nowhere' });
  await new RunloreSnapshotStore(mine.rollout('conv-1')).save({ id: 'conv-1', data });
  assert.deepEqual(service.events.map((one) => [one.record, one.workspaces]), [[line('one'), undefined]]);
  assert.match(told.at(-1).message, /is lost/);
});

test('of what was refused the newest hundred are kept', async () => {
  service.fault = (request) => (request.url.endsWith('/events') ? { status: 400, body: { kind: 'invalid_event' } } : undefined);
  const mine = lore();
  const lines = Array.from({ length: 103 }, (_, number) => line(`${number}`)).join('\n');
  await new RunloreMemoryStore(mine.rollout('conv-1')).write('sessions/conv-1.jsonl', text(lines));
  assert.equal(await mine.flush(), true);
  const kept = (await refused()).sort();
  assert.equal(kept.length, 100);
  const last = JSON.parse(await readFile(join(await place(), 'refused', kept.at(-1), 'event.json')));
  assert.equal(last.record, line('102'));
});

for (const url of ['http://user:hunter2@127.0.0.1:1', 'ftp://127.0.0.1', 'hunter2', 'http://127.0.0.1/?key=hunter2', '']) {
  test(`what is no URL of a service is refused at once, and not repeated: ${url.split('hunter2')[0]}`, () => {
    assert.throws(() => lore({ url }), (error) => error.kind === 'invalid_url' && !`${error}${error.stack}`.includes('hunter2'));
  });
}

test('a variable that is set to nothing is not set', async () => {
  const before = { ...process.env };
  Object.assign(process.env, { RUNLORE_URL: '', RUNLORE_KEY: '', RUNLORE_HOME: '' });
  try {
    const { service } = new Runlore({ project: 'acme', memory: 'support' });
    assert.match(inspect(service), /http:\/\/127\.0\.0\.1:7077/);
  } finally {
    process.env = before;
  }
});

test('a key may end as a file does; one that can be none is refused, and not repeated', async () => {
  const keys = new Set();
  service.fault = (request) => void keys.add(request.headers.authorization);
  await snapshots({ key: 'rl_id_secret\r\n' }).exists({ id: 'conv-1' });
  assert.deepEqual([...keys], ['Bearer rl_id_secret']);
  for (const key of ['rl_id_sec\nret', 'rl_id_sécret', 'rl_id_sec ret']) {
    assert.throws(() => lore({ key }), (error) => error.kind === 'invalid_key' && !`${error}`.includes('rl_id'));
  }
});

test('a key is not shown by what shows an object', () => {
  const rollout = lore({ key: 'rl_id_secret' }).rollout('conv-1');
  const shown = [inspect(rollout, { depth: 20, showHidden: true }), JSON.stringify(new RunloreSnapshotStore(rollout))];
  assert.ok(!shown.join().includes('secret'));
});

for (const name of ['..', '.', '', 'a/b', 'Acme', 'x'.repeat(64), 'con']) {
  test(`what names no project or memory is refused before it is a path: ${name}`, () => {
    assert.throws(() => lore({ project: name }), { kind: 'invalid_id' });
    assert.throws(() => lore({ memory: name }), { kind: 'invalid_id' });
  });
}

for (const id of ['a/b?c#d%2F&e=f', 'user:42 "ü" & co', '😀', ' conv-2 ']) {
  test(`a rollout's id goes as it is: ${id}`, async () => {
    await new RunloreMemoryStore(lore().rollout(id)).write('sessions/x.jsonl', text(line('one')));
    assert.equal(await lore().flush(), true);
    assert.equal(service.events[0].conversation_id, id.trim());
    await new RunloreSnapshotStore(lore().rollout(id)).exists({ id });
    assert.equal(new URL(service.requests.at(-1).slice(4), service.url).searchParams.get('conversation_id'), id.trim());
  });
}

for (const [what, id] of [['a path that climbs', 'a/../b'], ['half a character', 'a\ud800b'], ['a control character', 'a\nb'], ['too long', 'x'.repeat(1025)]]) {
  test(`an id that the service refuses goes by its alias, and the run is not lost: ${what}`, async () => {
    const mine = lore();
    const store = new RunloreSnapshotStore(mine.rollout(id));
    await store.save({ id, data: archive });
    assert.equal(await mine.flush(), true);
    const [{ conversation_id: alias }] = service.events;
    assert.match(alias, /^rl-[a-z0-9-]+$/);
    assert.equal(await new RunloreSnapshotStore(lore().rollout(id)).exists({ id }), true);
  });
}
