/**
 * What is to be sent, on disk before it is sent: a run that has ended is never failed, and never lost, because the
 * service is away.
 *
 * An item is a folder: `event.json`, and `archive.tar` where a workspace goes with it. It is made beside and renamed,
 * so half an item is never seen; it is deleted, in one step again, only when the service has acknowledged it. So an
 * item may be sent twice (a crash in between, two processes on one outbox), which the service takes once. What is wrong
 * with one item stops no other.
 */

import { randomUUID } from 'node:crypto';
import { mkdir, open, readFile, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { RunloreError, textOf, type Report } from './errors.js';
import type { RunEvent, Service } from './service.js';

export interface OutboxOptions {
  folder: string;
  /** All items together, in bytes; above that an item is tried once and not kept. */
  bytesMax: number;
  /** How long a run's end may wait where nothing can be kept, in milliseconds. */
  onceMsMax: number;
  report: Report;
}

export interface AddOptions {
  /** Writes the tar to the path that it is given, and completes the event. */
  archive?: (path: string, event: RunEvent) => Promise<void>;
  /** For how long it is not sent, in milliseconds, because a fuller event of the same run may come. */
  holdMs?: number;
  /** The item that this one replaces. */
  instead?: string | undefined;
}

const EVENT = 'event.json';
const ARCHIVE = 'archive.tar';
const REFUSED = 'refused';
const DRAFT = '.draft-';
/** A draft this old is of a process that died. */
const DRAFT_MS_MAX = 24 * 3600_000;
/** Items that wait at most. */
const ITEMS_MAX = 1_000;
/** Refused items that are kept for a person to look at, the newest. */
const REFUSED_MAX = 100;
const RETRY_MS_MIN = 1_000;
const RETRY_MS_MAX = 60_000;

export class Outbox {
  private readonly held = new Map<string, NodeJS.Timeout>();
  private draining: Promise<void> | undefined;
  private again = false;
  private timer: NodeJS.Timeout | undefined;
  private failures = 0;
  private made = 0;
  /** What is wrong and was told: an outage is told once, not at every try. */
  private told = new Set<string>();

  constructor(
    private readonly service: Service,
    private readonly options: OutboxOptions,
  ) {}

  /** Keep an item. Answers its name; undefined where it could only be sent at once. */
  async add(event: RunEvent, { archive, holdMs, instead }: AddOptions = {}): Promise<string | undefined> {
    const name = `${String(Date.now()).padStart(15, '0')}-${String(this.made++).padStart(6, '0')}-${randomUUID()}`;
    const draft = join(this.options.folder, DRAFT + name);
    try {
      await mkdir(draft, { recursive: true, mode: 0o700 });
      const complete = { ...event };
      await archive?.(join(draft, ARCHIVE), complete);
      await writeFile(join(draft, EVENT), JSON.stringify(complete), { mode: 0o600 });
      for (const file of archive ? [ARCHIVE, EVENT] : [EVENT]) await toDisk(join(draft, file));
      const held = await sizeOf(this.options.folder);
      if (held > this.options.bytesMax) {
        const most = this.options.bytesMax;
        throw new RunloreError('outbox_full', `the outbox would hold ${held} bytes, more than ${most}`);
      }
      const count = (await this.names()).length;
      if (count >= ITEMS_MAX) throw new RunloreError('outbox_full', `${count} items wait in the outbox already`);
      if (holdMs !== undefined) this.hold(name, holdMs);
      await rename(draft, join(this.options.folder, name));
      await toDisk(this.options.folder).catch(() => {}); // Not every system syncs a folder.
      // An archive may turn out to be another run's: then what waits is not replaced by it.
      // Sent beside it, it changes nothing.
      if (instead !== undefined && complete.run_id === event.run_id) await this.forget(instead).catch(() => {});
      return name;
    } catch (error) {
      // Once is better than never: the service may well be there.
      await this.once(archive ? draft : undefined, event, error).catch((other: unknown) => {
        const message = `${textOf(error)}; nor was it delivered: ${textOf(other)}`;
        throw new RunloreError('not_kept', message, { cause: error });
      });
      return undefined;
    } finally {
      await rm(draft, { recursive: true, force: true }).catch(() => {});
    }
  }

  private async once(draft: string | undefined, event: RunEvent, why: unknown): Promise<void> {
    const { onceMsMax, report } = this.options;
    if (draft !== undefined) {
      try {
        return await this.deliver(draft, onceMsMax);
      } catch (error) {
        // The disk took no tar: the run is worth more than its workspace.
        if (!isGone(error) || typeof event.record !== 'string') throw error;
        report({ message: `the workspace of run ${event.run_id} could not be kept, and is lost`, error: why });
      }
    }
    await this.service.publish(event, onceMsMax);
  }

  /** Let go of everything that is held back. */
  release(): void {
    for (const timer of this.held.values()) clearTimeout(timer);
    this.held.clear();
  }

  private hold(name: string, holdMs: number): void {
    const timer = setTimeout(() => {
      this.held.delete(name);
      void this.drain();
    }, holdMs);
    this.held.set(name, timer);
  }

  private async forget(name: string): Promise<void> {
    clearTimeout(this.held.get(name));
    this.held.delete(name);
    const gone = join(this.options.folder, `${DRAFT}${name}-gone`);
    // In one step, so that nobody reads half of it.
    await rename(join(this.options.folder, name), gone).catch((error: unknown) => {
      if (!isGone(error)) throw error;
    });
    await rm(gone, { recursive: true, force: true });
  }

  /** Send what there is, oldest first. Answers whether nothing is left; throws nothing. */
  async drain(): Promise<boolean> {
    this.again = true;
    this.draining ??= this.drainAll()
      .catch((error: unknown) => this.options.report({ message: 'the outbox can not be worked', error }))
      .finally(() => (this.draining = undefined));
    await this.draining;
    return (await this.items()).length === 0;
  }

  /** The items that wait, without those that are held back. */
  async items(): Promise<string[]> {
    return (await this.names()).filter((name) => !this.held.has(name)).sort();
  }

  private async names(): Promise<string[]> {
    const found = await readdir(this.options.folder).catch(() => []);
    return found.filter((name) => /^\d/.test(name));
  }

  private async drainAll(): Promise<void> {
    await this.sweep();
    const outcomes = new Set<Outcome>();
    while (this.again && !outcomes.has('away')) {
      this.again = false;
      outcomes.clear();
      for (const name of await this.items()) {
        outcomes.add(await this.sent(name));
        if (outcomes.has('away')) break;
      }
    }
    if (outcomes.has('away') || outcomes.has('left')) this.retryLater();
    else this.failures = 0;
  }

  /** Delete what a process that died was writing. */
  private async sweep(): Promise<void> {
    const found = await readdir(this.options.folder).catch(() => []);
    for (const name of found.filter((one) => one.startsWith(DRAFT))) {
      if (Number(name.slice(DRAFT.length).split('-', 1)[0]) > Date.now() - DRAFT_MS_MAX) continue;
      await rm(join(this.options.folder, name), { recursive: true, force: true }).catch(() => {});
    }
  }

  private async sent(name: string): Promise<Outcome> {
    try {
      await this.deliver(join(this.options.folder, name));
    } catch (cause) {
      if (isGone(cause) && !(await this.names()).includes(name)) return 'sent'; // By another process on this outbox.
      const error = isGone(cause) ? new RunloreError(DAMAGED, 'a file of it is missing', { cause }) : cause;
      if (error instanceof RunloreError && (error.isRefusal || error.kind === DAMAGED)) {
        await this.putAside(name, error);
        return 'sent';
      }
      const outcome = isAboutOne(error) ? 'left' : 'away';
      const what = `${outcome === 'left' ? name : ''}:${error instanceof RunloreError ? error.kind : ''}`;
      if (!this.told.has(what)) this.options.report({ message: 'not delivered yet, and kept on disk', error });
      this.told.add(what);
      return outcome;
    }
    await this.forget(name);
    for (const what of this.told) if (what.startsWith(':') || what.startsWith(`${name}:`)) this.told.delete(what);
    return 'sent';
  }

  private async deliver(folder: string, timeoutMs?: number): Promise<void> {
    const event = await eventIn(folder);
    const claim = event.workspaces?.[0]?.archive;
    if (claim) {
      const { size } = await stat(join(folder, ARCHIVE));
      if (size !== claim.size) throw new RunloreError(DAMAGED, `the archive has ${size} bytes, and had ${claim.size}`);
      const taken = await this.service.upload(join(folder, ARCHIVE), timeoutMs);
      if (taken.sha256 !== claim.sha256) {
        throw new RunloreError('upload_damaged', `the archive arrived as ${taken.sha256}, and is ${claim.sha256}`);
      }
    }
    await this.service.publish(event, timeoutMs);
  }

  private async putAside(name: string, error: RunloreError): Promise<void> {
    const aside = join(this.options.folder, REFUSED);
    await mkdir(aside, { recursive: true, mode: 0o700 });
    const told = JSON.stringify({ kind: error.kind, message: error.message, status: error.status });
    await writeFile(join(this.options.folder, name, 'problem.json'), told, { mode: 0o600 }).catch(() => {});
    await rename(join(this.options.folder, name), join(aside, name)).catch(() => {});
    const kept = (await readdir(aside).catch(() => [])).sort();
    for (const old of kept.slice(0, -REFUSED_MAX)) await rm(join(aside, old), { recursive: true, force: true });
    this.options.report({ message: `the service refused a run, which now lies in ${join(aside, name)}`, error });
  }

  private retryLater(): void {
    if (this.timer) return;
    const wait = Math.min(RETRY_MS_MIN * 2 ** this.failures++, RETRY_MS_MAX);
    this.timer = setTimeout(() => {
      this.timer = undefined;
      void this.drain();
    }, wait);
    this.timer.unref(); // A program that has nothing else to do may end: the next one delivers.
  }
}

/** Of one item. `left`: it stays, and those behind it are tried; `away`: no other would be taken either. */
type Outcome = 'sent' | 'left' | 'away';

const DAMAGED = 'outbox_damaged';

/** The event of an item. Raises `RunloreError` where it can not be read: it would hold up every other for ever. */
async function eventIn(folder: string): Promise<RunEvent> {
  const text = await readFile(join(folder, EVENT), 'utf8');
  try {
    const event = JSON.parse(text) as RunEvent | null;
    if (typeof event?.run_id === 'string') return event;
  } catch (cause) {
    throw new RunloreError(DAMAGED, `${EVENT} can not be read`, { cause });
  }
  throw new RunloreError(DAMAGED, `${EVENT} holds no run`);
}

/** Whether what is wrong is wrong with this item: the service answered, or the fault is in its files. */
function isAboutOne(error: unknown): boolean {
  if (!(error instanceof RunloreError)) return true;
  return error.kind === 'upload_damaged' || (error.isOurs && [404, 408, 500].includes(error.status ?? 0));
}

/** What is renamed before it is on the disk may be empty after a power cut. */
async function toDisk(path: string): Promise<void> {
  const isFolder = (await stat(path)).isDirectory();
  const file = await open(path, isFolder ? 'r' : 'r+');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

function isGone(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR'].includes((error as { code?: string }).code ?? '');
}

async function sizeOf(folder: string): Promise<number> {
  let bytes = 0;
  for (const name of await readdir(folder)) {
    for (const file of [EVENT, ARCHIVE]) {
      bytes += (await stat(join(folder, name, file)).catch(() => undefined))?.size ?? 0;
    }
  }
  return bytes;
}
