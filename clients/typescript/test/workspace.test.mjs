import assert from 'node:assert/strict';
import { chmod, lstat, mkdir, mkdtemp, readlink, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';

import { collectExtras, restoreExtras } from '../dist/workspace.js';

let folder, root;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'runlore-workspace-'));
  root = join(folder, 'root');
  await mkdir(join(root, 'd'), { recursive: true });
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const extrasOf = (modes, links) => ({ modes: new Map(Object.entries(modes)), links: new Map(Object.entries(links)) });
const linksOnly = (links) => extrasOf({}, links);
const collected = (at) => collectExtras(at, (path, error) => assert.fail(`${path}: ${error}`));

test('modes and links of one workspace are put into another', async () => {
  await writeFile(join(root, 'd/x'), 'x');
  await writeFile(join(root, 'plain'), 'x', { mode: 0o644 });
  await chmod(join(root, 'plain'), 0o644);
  await chmod(join(root, 'd/x'), 0o750);
  await symlink('x', join(root, 'd/l'));
  await symlink('../plain', join(root, 'd/up'));
  await symlink('nowhere', join(root, 'dangling'));
  await mkdir(join(root, 'secret'), { mode: 0o700 });
  await chmod(join(root, 'd'), 0o755);
  const extras = await collected(root);
  const modes = { 'd/x': 0o750, secret: 0o700 };
  assert.deepEqual(extras, extrasOf(modes, { 'd/l': 'x', 'd/up': '../plain', dangling: 'nowhere' }));
  const other = join(folder, 'other');
  await mkdir(join(other, 'd'), { recursive: true });
  await mkdir(join(other, 'secret'));
  await writeFile(join(other, 'd/x'), 'x');
  assert.deepEqual(await restoreExtras(other, extras), []);
  assert.equal((await stat(join(other, 'd/x'))).mode & 0o777, 0o750);
  assert.equal((await stat(join(other, 'secret'))).mode & 0o777, 0o700);
  assert.equal(await readlink(join(other, 'd/up')), '../plain');
});

for (const target of ['/etc', '..', '../x', 'd/../../x', 'd/l/..', './d/..', '']) {
  test(`a link that leads outside, or may, is not made: ${JSON.stringify(target)}`, async () => {
    assert.deepEqual(await restoreExtras(root, linksOnly({ link: target })), ['link']);
    await assert.rejects(lstat(join(root, 'link')));
  });
}

test('nothing is made or changed through a link, or outside', async () => {
  const outside = join(folder, 'outside');
  await mkdir(outside);
  await writeFile(join(outside, 'file'), 'x', { mode: 0o600 });
  await symlink(outside, join(root, 'out'));
  await symlink(join(outside, 'file'), join(root, 'file'));
  const modes = { 'out/file': 0o777, file: 0o777, '../outside/file': 0o777, none: 0o777 };
  const refused = await restoreExtras(root, extrasOf(modes, { 'out/l': 'x', '../l': 'x' }));
  assert.deepEqual(refused, ['out/l', '../l', 'out/file', 'none', 'file', '../outside/file']);
  assert.equal((await stat(join(outside, 'file'))).mode & 0o777, 0o600);
  await assert.rejects(lstat(join(outside, 'l')));
});

test('no more than permission bits is set', async () => {
  await writeFile(join(root, 'x'), 'x');
  await restoreExtras(root, extrasOf({ x: 0o4755 }, {}));
  assert.equal((await stat(join(root, 'x'))).mode & 0o7777, 0o755);
});

test('a directory stays one that its owner can fill and remove', async () => {
  assert.deepEqual(await restoreExtras(root, extrasOf({ d: 0o050 }, { 'd/l': 'x' })), []);
  assert.equal((await stat(join(root, 'd'))).mode & 0o777, 0o750);
  assert.equal(await readlink(join(root, 'd/l')), 'x');
});

test('a link in whose place a directory stands is told, and costs no other', async () => {
  assert.deepEqual(await restoreExtras(root, linksOnly({ d: 'x', other: 'x' })), ['d']);
  assert.equal(await readlink(join(root, 'other')), 'x');
});

test('what can not be read costs itself alone', async () => {
  await writeFile(Buffer.concat([Buffer.from(`${root}/caf`), Buffer.from([0xe9])]), 'x'); // Node.js can not name it.
  await symlink('x', join(root, 'link'));
  const skipped = [];
  const extras = await collectExtras(root, (path) => skipped.push(path));
  assert.deepEqual([skipped, [...extras.links]], [['caf\ufffd'], [['link', 'x']]]);
});
