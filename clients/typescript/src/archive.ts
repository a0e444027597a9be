/**
 * The TypeScript SDK's workspace archive (JSON, base64) into a tar, and back.
 *
 * The JSON holds regular files and directories and nothing else: no modes, no links, no times. What a tar holds
 * beyond that is not dropped in silence but handed out as `Extras`, which a host that can write to the workspace
 * puts back (`resumable`), and which go into the tar again on the way out.
 */

import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { extract, pack } from 'tar-stream';

import { RunloreError } from './errors.js';

export interface WorkspaceArchive {
  version: 1;
  directories: string[];
  files: { path: string; data: string }[];
}

/** What a workspace holds and the SDK's archive can not say. */
export interface Extras {
  /** Permission bits of files that are not 0644. */
  modes: Record<string, number>;
  /** Symbolic links, with where they lead. */
  links: Record<string, string>;
}

/** What could not be carried over at all. */
export interface Lost {
  path: string;
  why: string;
}

export interface Unpacked {
  archive: WorkspaceArchive;
  extras: Extras;
  lost: Lost[];
}

const FILE_MODE = 0o644;
const DIRECTORY_MODE = 0o755;
/** Base64 characters of all files together: the SDK parses the archive as one string, and V8 ends at 2^29 of them. */
const BASE64_CHARS_MAX = 2 ** 29 - 2 ** 24;

/** The archive of an SDK's `save`; undefined where the bytes are something else (a provider's own format). */
export function parseArchive(data: Uint8Array): WorkspaceArchive | undefined {
  if (data[0] !== 0x7b) return undefined; // "{"
  try {
    const value = JSON.parse(new TextDecoder().decode(data)) as WorkspaceArchive;
    return value.version === 1 && Array.isArray(value.files) && Array.isArray(value.directories) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Write the archive as a tar; the same archive gives the same bytes. Answers what a claim on it says. */
export async function writeTar(
  archive: WorkspaceArchive,
  extras: Extras,
  target: string,
): Promise<{ sha256: string; size: number }> {
  const tar = pack();
  const hash = createHash('sha256');
  let size = 0;
  async function* counted(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of chunks) {
      hash.update(chunk);
      size += chunk.length;
      yield chunk;
    }
  }
  const source = Readable.from(tar, { objectMode: false });
  const written = pipeline(source, counted, createWriteStream(target, { mode: 0o600 }));
  const filled = fill(tar, archive, extras);
  await Promise.all([written, filled]);
  return { sha256: hash.digest('hex'), size };
}

/** What a workspace holds, without what lies in `without`: equal for two that have the same files, modes and links. */
export function contentOf(archive: WorkspaceArchive, extras: Extras, without: readonly string[]): string {
  const rows = [
    ...archive.directories.map((path) => [path, 'directory']),
    ...archive.files.map(({ path, data }) => [path, 'file', data, extras.modes[path] ?? FILE_MODE]),
    ...Object.entries(extras.links).map(([path, target]) => [path, 'link', target]),
  ] as [string, ...unknown[]][];
  const own = rows.filter(([path]) => !isBelow(path, without));
  own.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  const hash = createHash('sha256');
  for (const row of own) hash.update(`${JSON.stringify(row)}\n`);
  return hash.digest('hex');
}

function isBelow(path: string, folders: readonly string[]): boolean {
  return folders.some((folder) => path === folder || path.startsWith(`${folder}/`));
}

type Pack = ReturnType<typeof pack>;

async function fill(tar: Pack, archive: WorkspaceArchive, extras: Extras): Promise<void> {
  const mtime = new Date(0);
  for (const name of archive.directories) {
    await entry(tar, { name: `${name}/`, type: 'directory', mode: DIRECTORY_MODE, mtime });
  }
  for (const file of archive.files) {
    const mode = (extras.modes[file.path] ?? FILE_MODE) & 0o777;
    await entry(tar, { name: file.path, mode, mtime }, Buffer.from(file.data, 'base64'));
  }
  for (const [name, linkname] of Object.entries(extras.links)) {
    await entry(tar, { name, type: 'symlink', linkname, mode: 0o777, mtime });
  }
  tar.finalize();
}

function entry(tar: Pack, header: Parameters<Pack['entry']>[0], body?: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (error?: Error | null) => (error ? reject(error) : resolve());
    if (body === undefined) tar.entry(header, done);
    else tar.entry(header, body, done);
  });
}

/** A tar as the SDK's archive, without what lies in `without`. Raises `RunloreError` where it can not be one. */
export async function fromTar(tar: AsyncIterable<Uint8Array>, without: readonly string[] = []): Promise<Unpacked> {
  const archive: WorkspaceArchive = { version: 1, directories: [], files: [] };
  const extras: Extras = { modes: {}, links: {} };
  const lost: Lost[] = [];
  let chars = 0;
  for await (const { path, header, content } of entries(tar)) {
    if (isBelow(path, without)) continue;
    switch (header.type) {
      case 'directory':
        archive.directories.push(path);
        break;
      case 'file':
      case 'contiguous-file': {
        const data = content.toString('base64');
        chars += data.length;
        if (chars > BASE64_CHARS_MAX) throw tooLarge();
        archive.files.push({ path, data });
        const mode = (header.mode ?? FILE_MODE) & 0o777;
        if (mode !== FILE_MODE) extras.modes[path] = mode;
        break;
      }
      case 'symlink':
        extras.links[path] = header.linkname ?? '';
        break;
      default:
        lost.push({ path, why: `a ${header.type ?? 'thing'} has no place in the SDK's archive` });
    }
  }
  return { archive, extras, lost };
}

/** The regular files of a tar by their path. */
export async function filesOf(tar: AsyncIterable<Uint8Array>): Promise<Map<string, Uint8Array>> {
  const found = new Map<string, Uint8Array>();
  for await (const { path, header, content } of entries(tar)) {
    if (header.type === 'file') found.set(path, content);
  }
  return found;
}

interface Entry {
  path: string;
  header: { type?: string | null; mode?: number; linkname?: string | null };
  content: Buffer;
}

async function* entries(tar: AsyncIterable<Uint8Array>): AsyncGenerator<Entry> {
  const reader = extract();
  const feeding = pipeline(Readable.from(tar, { objectMode: false }), reader);
  // Its fault comes out of the loop below; without this it would also count as one that nobody looks at.
  feeding.catch(() => {});
  for await (const one of reader) {
    const pieces: Buffer[] = [];
    for await (const piece of one) pieces.push(piece as Buffer);
    const path = one.header.name.replace(/^(\.\/)+/, '').replace(/\/+$/, '');
    if (path === '' || path === '.') continue;
    if (path.startsWith('/') || path.split('/').includes('..')) {
      throw new RunloreError('bad_archive', `the workspace holds a path that leaves it: ${path}`);
    }
    yield { path, header: one.header, content: Buffer.concat(pieces) };
  }
  await feeding;
}

function tooLarge(): RunloreError {
  return new RunloreError('too_large', "the workspace is larger than the TypeScript SDK's archive can be", {
    hint: `its files are one string there, of at most ${BASE64_CHARS_MAX} base64 characters: about 390 MB`,
  });
}
