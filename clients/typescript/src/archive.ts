/**
 * The TypeScript SDK's workspace archive (JSON, base64) into a tar, and back.
 *
 * The JSON holds regular files and directories and nothing else: no modes, no links, no times. What a tar holds
 * beyond that is not dropped in silence but handed out as `Extras`, which a host that can write to the workspace
 * puts back (`resumable`), and which go into the tar again on the way out.
 *
 * A tar is not trusted: no path of it leaves the workspace, of two entries with one path the later counts, and it is
 * refused before more is held of it than the SDK's archive could be.
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
  /** Permission bits of files that are not 0644, and of directories that are not 0755. */
  modes: Map<string, number>;
  /** Symbolic links, with where they lead. */
  links: Map<string, string>;
}
// Maps, because a file may be called `constructor`.

export function noExtras(): Extras {
  return { modes: new Map(), links: new Map() };
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

export const FILE_MODE = 0o644;
export const DIRECTORY_MODE = 0o755;
/** Characters of an archive: the SDK parses it as one string, and V8 ends at 2^29 of them. */
export const ARCHIVE_CHARS_MAX = 2 ** 29 - 2 ** 24;
/** What an entry costs in it beside its path and its content. */
const ENTRY_CHARS = 24;
/** Bytes of a memory's files together. */
const MEMORY_BYTES_MAX = 64 * 1024 * 1024;

/** The archive of an SDK's `save`; undefined where the bytes are something else (a provider's own format). */
export function parseArchive(data: Uint8Array): WorkspaceArchive | undefined {
  if (data[0] !== 0x7b) return undefined; // "{"
  try {
    const value = JSON.parse(new TextDecoder().decode(data)) as WorkspaceArchive;
    const { version, files, directories } = value;
    if (version !== 1 || !Array.isArray(files) || !Array.isArray(directories)) return undefined;
    const isWhole =
      directories.every((path) => typeof path === 'string') &&
      files.every((file) => typeof file?.path === 'string' && typeof file.data === 'string');
    return isWhole ? value : undefined;
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
    ...archive.directories.map((path) => [path, 'directory', extras.modes.get(path) ?? DIRECTORY_MODE]),
    ...archive.files.map(({ path, data }) => [path, 'file', data, extras.modes.get(path) ?? FILE_MODE]),
    ...[...extras.links].map(([path, target]) => [path, 'link', target]),
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
    const mode = (extras.modes.get(name) ?? DIRECTORY_MODE) & 0o777;
    await entry(tar, { name: `${name}/`, type: 'directory', mode, mtime });
  }
  for (const file of archive.files) {
    const mode = (extras.modes.get(file.path) ?? FILE_MODE) & 0o777;
    await entry(tar, { name: file.path, mode, mtime }, Buffer.from(file.data, 'base64'));
  }
  for (const [name, linkname] of extras.links) {
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
export async function fromTar(
  tar: AsyncIterable<Uint8Array>,
  without: readonly string[] = [],
  charsMax = ARCHIVE_CHARS_MAX,
): Promise<Unpacked> {
  const files = new Map<string, string>();
  const directories = new Set<string>();
  const { modes, links } = noExtras();
  const lost: Lost[] = [];
  let chars = 0;
  const count = (path: string, bytes: number) => {
    chars += JSON.stringify(path).length + Math.ceil(bytes / 3) * 4 + ENTRY_CHARS;
    if (chars > charsMax) throw tooLarge(charsMax);
  };
  for await (const { path, header, content } of entries(tar)) {
    if (isBelow(path, without)) continue;
    const { type } = header;
    if (!['directory', 'symlink', ...FILES].includes(type ?? '')) {
      lost.push({ path, why: `is not restored: a ${type ?? 'thing'} has no place in the SDK's archive` });
      continue;
    }
    if (path.includes(NOT_UTF8)) lost.push({ path, why: 'has a name that is not UTF-8, and now this one' });
    // The later entry of a path counts, as tar has it.
    for (const one of [files, directories, links, modes]) one.delete(path);
    if (type === 'symlink') {
      links.set(path, header.linkname ?? '');
      continue;
    }
    const isFile = type !== 'directory';
    count(path, isFile ? (header.size ?? 0) : 0);
    if (isFile) files.set(path, (await content()).toString('base64'));
    else directories.add(path);
    const usual = isFile ? FILE_MODE : DIRECTORY_MODE;
    const mode = (header.mode ?? usual) & 0o777;
    if (mode !== usual) modes.set(path, mode);
  }
  const archive: WorkspaceArchive = {
    version: 1,
    directories: [...directories],
    files: [...files].map(([path, data]) => ({ path, data })),
  };
  return { archive, extras: { modes, links }, lost };
}

/** The regular files of a memory's tar by their path. */
export async function filesOf(
  tar: AsyncIterable<Uint8Array>,
  bytesMax = MEMORY_BYTES_MAX,
): Promise<Map<string, Uint8Array>> {
  const found = new Map<string, Uint8Array>();
  let room = bytesMax;
  for await (const { path, header, content } of entries(tar)) {
    if (!FILES.includes(header.type ?? '')) continue;
    room -= header.size ?? 0;
    if (room < 0) throw new RunloreError('bad_archive', `a memory has more than ${bytesMax} bytes`);
    found.set(path, await content());
  }
  return found;
}

const FILES = ['file', 'contiguous-file'];
/** What stands for bytes that are no UTF-8. */
const NOT_UTF8 = '\ufffd';

interface Entry {
  path: string;
  header: { type?: string | null; mode?: number; size?: number; linkname?: string | null };
  /** Reads the content; what is not asked for is passed over. */
  content: () => Promise<Buffer>;
}

async function* entries(tar: AsyncIterable<Uint8Array>): AsyncGenerator<Entry> {
  const reader = extract();
  let broken: unknown;
  const feeding = pipeline(Readable.from(tar, { objectMode: false }), reader);
  // Its fault comes out of the loop below; without this it would also count as one that nobody looks at.
  feeding.catch((error: unknown) => (broken = error));
  try {
    for await (const one of reader) {
      const path = one.header.name.replace(/^(\.\/)+/, '').replace(/\/+$/, '');
      if (path.startsWith('/') || path.split('/').includes('..')) {
        throw new RunloreError('bad_archive', `the workspace holds a path that leaves it: ${path.slice(0, 200)}`);
      }
      let isRead = false;
      const content = async (): Promise<Buffer> => {
        isRead = true;
        const pieces: Buffer[] = [];
        try {
          for await (const piece of one) pieces.push(piece as Buffer);
        } catch (error) {
          throw damaged(broken ?? error);
        }
        return Buffer.concat(pieces);
      };
      if (path !== '' && path !== '.') yield { path, header: one.header, content };
      if (!isRead) one.resume();
    }
    await feeding;
  } catch (error) {
    throw damaged(broken ?? error);
  }
}

/** What broke off on its way is told as that. */
function damaged(cause: unknown): RunloreError {
  if (cause instanceof RunloreError) return cause;
  return new RunloreError('bad_archive', 'what arrived is no whole tar', { cause });
}

function tooLarge(charsMax: number): RunloreError {
  return new RunloreError('too_large', "the workspace is larger than the TypeScript SDK's archive can be", {
    hint: `it is one string there, of at most ${charsMax} characters: about 390 MB of files`,
  });
}
