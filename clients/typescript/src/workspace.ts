/**
 * Modes and links of a workspace on this machine, which the SDK's archive leaves out.
 *
 * Only permission bits of regular files and symbolic links that stay inside are touched, and never through a link.
 */

import { chmod, lstat, mkdir, readdir, readlink, rm, symlink } from 'node:fs/promises';
import { dirname, join, normalize } from 'node:path';

import type { Extras } from './archive.js';

const FILE_MODE = 0o644;

/** What the archive of the workspace at `root` will not say. */
export async function collectExtras(root: string): Promise<Extras> {
  const extras: Extras = { modes: {}, links: {} };
  await walk(root, '', extras);
  return extras;
}

async function walk(root: string, below: string, extras: Extras): Promise<void> {
  for (const one of await readdir(join(root, below), { withFileTypes: true })) {
    const path = below ? `${below}/${one.name}` : one.name;
    if (one.isDirectory()) await walk(root, path, extras);
    else if (one.isSymbolicLink()) extras.links[path] = await readlink(join(root, path));
    else if (one.isFile()) {
      const mode = (await lstat(join(root, path))).mode & 0o777;
      if (mode !== FILE_MODE) extras.modes[path] = mode;
    }
  }
}

/** Put them into the workspace at `root`. Answers the links that were not: they lead outside, or lie below a link. */
export async function restoreExtras(root: string, extras: Extras): Promise<string[]> {
  for (const [path, mode] of Object.entries(extras.modes)) {
    if (await isPlain(root, path)) await chmod(join(root, path), mode & 0o777);
  }
  const refused: string[] = [];
  for (const [path, target] of Object.entries(extras.links)) {
    if (!staysInside(path, target) || !(await hasPlainParents(root, path))) {
      refused.push(path);
      continue;
    }
    await mkdir(dirname(join(root, path)), { recursive: true });
    await rm(join(root, path), { force: true });
    await symlink(target, join(root, path));
  }
  return refused;
}

async function isPlain(root: string, path: string): Promise<boolean> {
  const found = await lstat(join(root, path)).catch(() => undefined);
  return found?.isFile() === true && (await hasPlainParents(root, path));
}

async function hasPlainParents(root: string, path: string): Promise<boolean> {
  if (!staysInside('x', path)) return false;
  const parts = path.split('/').slice(0, -1);
  for (let depth = 1; depth <= parts.length; depth++) {
    const found = await lstat(join(root, ...parts.slice(0, depth))).catch(() => undefined);
    if (found && !found.isDirectory()) return false;
  }
  return true;
}

function staysInside(path: string, target: string): boolean {
  if (target === '' || target.startsWith('/')) return false;
  // A step up after a step down may go up from where another link led.
  if (/(^|\/)(?!\.\.?(\/|$))[^/]+\/(.*\/)?\.\.(\/|$)/.test(target)) return false;
  const reached = normalize(join(dirname(path), target));
  return reached !== '..' && !reached.startsWith('../');
}
