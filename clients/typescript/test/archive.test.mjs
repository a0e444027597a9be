import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { extract } from 'tar-stream';

import { contentOf, filesOf, fromTar, noExtras, parseArchive, writeTar } from '../dist/archive.js';
import { RunloreError } from '../dist/errors.js';
import { tarOf } from './service.mjs';

let folder;
before(async () => (folder = await mkdtemp(join(tmpdir(), 'runlore-archive-'))));
after(() => rm(folder, { recursive: true }));

const stream = async function* (bytes) {
  for (let at = 0; at < bytes.length; at += 700) yield bytes.subarray(at, at + 700);
};

async function contents(bytes) {
  const found = Object.create(null); // A file may be called `constructor`.
  const reader = extract();
  reader.end(bytes);
  for await (const entry of reader) {
    const pieces = [];
    for await (const piece of entry) pieces.push(piece);
    const { name, type, mode, linkname } = entry.header;
    found[name.replace(/\/$/, '')] = [type, type === 'symlink' ? null : mode, linkname || Buffer.concat(pieces).toString('hex')];
  }
  return found;
}

async function thereAndBack(entries) {
  const bytes = await tarOf(entries);
  const { archive, extras, lost } = await fromTar(stream(bytes));
  const target = join(folder, 'back.tar');
  const claim = await writeTar(parseArchive(new TextEncoder().encode(JSON.stringify(archive))), extras, target);
  const back = await readFile(target);
  assert.equal(claim.size, back.length);
  return { before: await contents(bytes), after: await contents(back), extras, lost, claim };
}

/** A generator of numbers that gives the same ones for the same seed. */
function numbers(seed) {
  return (below) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
}

function randomTree(seed) {
  const next = numbers(seed);
  const names = ['a', 'constructor', '__proto__', 'Straße', '日本', 'with space', 'x'.repeat(120), '.git', 'q"uote', '\u2028', 'percent%20'];
  const folders = [''];
  const entries = [];
  const used = new Set();
  for (let count = next(12); count >= 0; count--) {
    const path = join(folders[next(folders.length)], names[next(names.length)] + ['', 1, 2][next(3)]);
    if (used.has(path)) continue;
    used.add(path);
    const kind = next(5);
    if (kind === 0) {
      entries.push([{ name: path, type: 'directory', mode: [0o755, 0o700][next(2)] }]);
      folders.push(path);
    } else if (kind === 1) entries.push([{ name: path, type: 'symlink', linkname: 'somewhere', mode: 0o777 }]);
    else {
      const body = Buffer.from(Array.from({ length: [0, 1, 511, 512, 513, 3000][next(6)] }, () => next(256)));
      entries.push([{ name: path, mode: [0o644, 0o755, 0o600][next(3)] }, body]);
    }
  }
  return entries;
}

test('a tar through the archive of the SDK and back keeps files, empty folders, modes and links', async () => {
  for (let seed = 1; seed <= 60; seed++) {
    const { before, after, lost } = await thereAndBack(randomTree(seed));
    assert.deepEqual(after, before, `seed ${seed}`);
    assert.deepEqual(lost, []);
  }
});

test('the same archive gives the same bytes', async () => {
  const one = await thereAndBack(randomTree(7));
  const other = await thereAndBack(randomTree(7));
  assert.equal(one.claim.sha256, other.claim.sha256);
});

test('what the SDK could not write down is told', async () => {
  const { extras, lost, after } = await thereAndBack([
    [{ name: 'run.sh', mode: 0o755 }, 'x'],
    [{ name: 'link', type: 'symlink', linkname: 'run.sh' }],
    [{ name: 'pipe', type: 'fifo' }],
    [{ name: 'hard', type: 'link', linkname: 'run.sh' }],
  ]);
  assert.deepEqual(extras, { modes: new Map([['run.sh', 0o755]]), links: new Map([['link', 'run.sh']]) });
  assert.deepEqual(lost.map((one) => one.path), ['pipe', 'hard']);
  assert.deepEqual(Object.keys(after), ['run.sh', 'link']);
});

test('without extras a tar of the archive holds plain files', async () => {
  const { archive } = await fromTar(stream(await tarOf([[{ name: 'run.sh', mode: 0o755 }, 'x']])));
  const target = join(folder, 'plain.tar');
  await writeTar(archive, noExtras(), target);
  assert.equal((await contents(await readFile(target)))['run.sh'][1], 0o644);
});

test('folders that are left out are left out whole, and only they', async () => {
  const tar = await tarOf([
    [{ name: 'sessions/a.jsonl' }, 'x'],
    [{ name: 'sessions', type: 'directory' }],
    [{ name: 'sessions.md' }, 'x'],
    [{ name: 'deep/sessions/b' }, 'x'],
  ]);
  const { archive } = await fromTar(stream(tar), ['sessions']);
  assert.deepEqual(archive.files.map((one) => one.path), ['sessions.md', 'deep/sessions/b']);
});

for (const name of ['../up', '/etc/passwd', 'a/../../b']) {
  test(`a path that leaves the workspace is refused: ${name}`, async () => {
    await assert.rejects(async () => fromTar(stream(await tarOf([[{ name }, 'x']]))), { kind: 'bad_archive' });
  });
}

test('a tar that ends too early is no workspace', async () => {
  const whole = await tarOf([[{ name: 'a' }, 'x'.repeat(5000)]]);
  await assert.rejects(() => fromTar(stream(whole.subarray(0, 3000))), { kind: 'bad_archive' });
  await assert.rejects(() => fromTar(stream(Buffer.from('<html>not a tar</html>'.padEnd(2048, 'x')))), { kind: 'bad_archive' });
});

test('a tar whose way breaks off is told from one that is damaged', async () => {
  const whole = await tarOf([[{ name: 'a' }, 'x'.repeat(5000)]]);
  const broken = async function* () {
    yield whole.subarray(0, 1000);
    throw new RunloreError('unreachable', 'the answer broke off');
  };
  await assert.rejects(() => fromTar(broken()), { kind: 'unreachable' });
});

test('a workspace that is larger than an archive may be is refused before it is read', async () => {
  const header = (await tarOf([[{ name: 'huge', size: 6 }, 'x'.repeat(6)]])).subarray(0, 512);
  header.write('77777777777\0', 124); // 8 GiB are announced.
  header.write('        ', 148);
  const sum = header.reduce((all, byte) => all + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  let read = 0;
  const endless = async function* () {
    yield header;
    for (; read < 1000; read++) yield Buffer.alloc(65536);
  };
  await assert.rejects(() => fromTar(endless()), { kind: 'too_large' });
  assert.ok(read < 100, `${read} pieces were read`);
  await assert.rejects(() => filesOf(endless()), { kind: 'bad_archive' });
  const many = await tarOf(Array.from({ length: 50 }, (_, number) => [{ name: `${number}` }, '']));
  await assert.rejects(() => fromTar(stream(many), [], 1000), { kind: 'too_large' });
});

test('whatever bytes arrive, what comes of them is a workspace or an error that says so', async () => {
  const next = numbers(11);
  for (let seed = 1; seed <= 150; seed++) {
    const bytes = await tarOf(randomTree(seed));
    for (let count = next(4); count >= 0; count--) bytes[next(bytes.length)] = next(256);
    const cut = bytes.subarray(0, next(4) ? bytes.length : next(bytes.length));
    try {
      const { archive } = await fromTar(stream(cut));
      for (const { path } of archive.files) assert.ok(!path.startsWith('/') && !path.split('/').includes('..'), path);
    } catch (error) {
      assert.ok(error instanceof RunloreError, `seed ${seed}: ${error.stack}`);
    }
  }
});

test('of two entries with one path the later counts', async () => {
  const { archive, extras } = await fromTar(stream(await tarOf([
    [{ name: 'a', mode: 0o755 }, 'first'],
    [{ name: 'a' }, 'second'],
    [{ name: 'b', type: 'symlink', linkname: '../../etc' }],
    [{ name: 'b' }, 'file'],
    [{ name: 'c' }, 'file'],
    [{ name: './c/', type: 'symlink', linkname: 'a' }],
  ])));
  assert.deepEqual(archive.files.map(({ path, data }) => [path, Buffer.from(data, 'base64').toString()]), [['a', 'second'], ['b', 'file']]);
  assert.deepEqual(extras, { modes: new Map(), links: new Map([['c', 'a']]) });
});

test('a name that is not UTF-8 is told', async () => {
  const tar = await tarOf([[{ name: 'caf_' }, 'x']]);
  tar[3] = 0xe9;
  tar.write('        ', 148);
  tar.write(`${tar.subarray(0, 512).reduce((all, byte) => all + byte, 0).toString(8).padStart(6, '0')}\0 `, 148);
  const { archive, lost } = await fromTar(stream(tar));
  assert.equal(archive.files.length, 1);
  assert.deepEqual(lost.map((one) => one.path), [archive.files[0].path]);
});

test('bytes that are no archive of the SDK are told from one', () => {
  const encode = (text) => new TextEncoder().encode(text);
  assert.equal(parseArchive(encode('{"version":2,"files":[],"directories":[]}')), undefined);
  assert.equal(parseArchive(encode('{"version":1')), undefined);
  assert.equal(parseArchive(encode('ustar')), undefined);
  assert.equal(parseArchive(new Uint8Array()), undefined);
  for (const files of ['[null]', '[{"path":"a"}]', '[{"path":1,"data":""}]', '["a"]']) {
    assert.equal(parseArchive(encode(`{"version":1,"files":${files},"directories":[]}`)), undefined, files);
  }
});

test('the content of a workspace is what it holds: not the order, not what is left out', () => {
  const of = (files, extras = {}, without = []) =>
    contentOf({ version: 1, directories: [], files }, { ...noExtras(), ...extras }, without);
  const [a, b, memory] = [{ path: 'a', data: 'eA==' }, { path: 'b', data: '' }, { path: 'memories/m', data: 'eA==' }];
  assert.equal(of([a, b]), of([b, a]));
  assert.equal(of([a, memory], {}, ['memories']), of([a]));
  const others = [of([b]), of([a, b]), of([a], { modes: new Map([['a', 0o755]]) }), of([a], { links: new Map([['l', 'a']]) })];
  assert.equal(new Set([of([a]), ...others]).size, 5);
});
