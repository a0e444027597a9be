/**
 * Modes and links of a workspace on this machine, which the SDK's archive leaves out.
 *
 * Only permission bits of regular files and directories and symbolic links that stay inside are touched, and never
 * through a link.
 */

import { chmod, lstat, mkdir, readdir, readlink, rm, symlink } from 'node:fs/promises';
import { dirname, join, normalize } from 'node:path';

import { DIRECTORY_MODE, FILE_MODE, noExtras, type Extras } from './archive.js';

/** A directory that its owner can not enter could be neither filled nor removed. */
const OWNER = 0o700;

/** What the archive of the workspace at `root` will not say. What can not be read is told to `skip`. */
export async function collectExtras(root: string, skip: (path: string, error: unknown) => void): Promise<Extras> {
  const extras = noExtras();
  const names = await readdir(root, { withFileTypes: true });
  const left = names.map((one) => ({ path: one.name, one }));
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const { path, one } = next;
    const place = join(root, path);
    try {
      if (one.isSymbolicLink()) extras.links.set(path, await readlink(place));
      if (!one.isFile() && !one.isDirectory()) continue;
      const mode = (await lstat(place)).mode & 0o777;
      if (mode !== (one.isFile() ? FILE_MODE : DIRECTORY_MODE)) extras.modes.set(path, mode);
      if (one.isFile()) continue;
      for (const below of await readdir(place, { withFileTypes: true })) {
        left.push({ path: `${path}/${below.name}`, one: below });
      }
    } catch (error) {
      skip(path, error); // It is gone by now, or not for us to read: the others are.
    }
  }
  return extras;
}

/** Put them into the workspace at `root`. Answers what was not: a link that leads outside, or lies below one. */
export async function restoreExtras(root: string, extras: Extras): Promise<string[]> {
  const refused: string[] = [];
  const attempt = async (path: string, what: () => Promise<boolean>) => {
    if (!(await what().catch(() => false))) refused.push(path);
  };
  for (const [path, target] of extras.links) await attempt(path, () => link(root, path, target));
  // From below: a directory that may not be written to any more comes after what lies in it.
  const modes = [...extras.modes].sort(([a], [b]) => (a < b ? 1 : -1));
  for (const [path, mode] of modes) {
    if (!extras.links.has(path)) await attempt(path, () => permit(root, path, mode & 0o777));
  }
  return refused;
}

async function link(root: string, path: string, target: string): Promise<boolean> {
  if (!staysInside(path, target) || !(await hasPlainParents(root, path))) return false;
  await mkdir(dirname(join(root, path)), { recursive: true });
  await rm(join(root, path), { force: true });
  await symlink(target, join(root, path));
  return true;
}

async function permit(root: string, path: string, mode: number): Promise<boolean> {
  if (!(await hasPlainParents(root, path))) return false;
  const found = await lstat(join(root, path));
  if (!found.isFile() && !found.isDirectory()) return false;
  await chmod(join(root, path), found.isDirectory() ? mode | OWNER : mode);
  return true;
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
