/**
 * One memory of one project, and the rollouts that go on in it.
 *
 *     const lore = new Runlore({ project: 'acme', memory: 'support' });
 *     const rollout = lore.rollout('conv-1');
 *
 * A `Rollout` is made for each run: it pins one seed (a revision of the memory and a snapshot of the workspace), so
 * that a run never reads a mix of two.
 */

import { homedir } from 'node:os';
import { createHash } from 'node:crypto';
import { join } from 'node:path';

import { contentOf, filesOf, fromTar, type Extras, type Unpacked, type WorkspaceArchive } from './archive.js';
import { RunloreError, warn, type Report } from './errors.js';
import { Outbox } from './outbox.js';
import { alias, checkedName, isAcceptedId, type Run } from './records.js';
import { Service, type Base, type RunEvent, type Seed, type SeedQuery } from './service.js';

export interface RunloreOptions {
  project: string;
  memory: string;
  /** Where `runlore serve` listens: RUNLORE_URL, else http://127.0.0.1:7077. */
  url?: string;
  /** A key of the project with the scope `write`: RUNLORE_KEY. */
  key?: string;
  /** Where the SDK's memory lies in a workspace, as in its `memory({ layout })`. */
  layout?: { memoriesDir?: string; sessionsDir?: string };
  /** Folder of what is not delivered yet; RUNLORE_HOME/outbox, else ~/.runlore/outbox. It holds records as they are. */
  outbox?: string;
  /** Everything in the outbox together, in bytes. */
  outboxBytesMax?: number;
  /** How long a run's end waits for its delivery, in milliseconds; then it goes on in the background. */
  deliverMsMax?: number;
  /** How long a run's begin waits for a service that does not answer, tries and all, in milliseconds. */
  answerMsMax?: number;
  /** How long a run's begin waits for what this process recorded of its rollout before, in seconds; at most 60. */
  waitSeconds?: number;
  /** Told what went wrong where a run must not fail for it. By default `console.warn`. */
  report?: Report;
}

export interface RolloutOptions {
  /** Whom the run is for: preferences and personal facts never cross subjects. */
  subject?: string;
  /** Whose workspace, where each agent of the rollout has its own. */
  agent?: string;
}

/** What a run began as: goes with its workspace, so that it never replaces what it did not see. */
export interface Origin {
  /** Null: there was nothing yet. */
  seed: string | null;
  base: Base;
  /** What the workspace held (`contentOf`): left as it was, it need not be sent. */
  content?: string;
}

const OUTBOX_BYTES_MAX = 8 * 1024 ** 3;
const DELIVER_MS_MAX = 20_000;
const ANSWER_MS_MAX = 5_000;
/** How long a service that did not answer is not waited for again at a run's end. */
const AWAY_MS = 30_000;
const WAIT_SECONDS = 10;
const PLACED_POLL_MS = 100;
/** How long a record waits for its workspace, in milliseconds. */
const HOLD_MS = 3_000;
/** Rollouts whose last run and seed are remembered in this process. */
const SEEN_MAX = 10_000;

interface Seen {
  seed?: string;
  run?: { run: string; attempt: number; workspace: boolean };
}

export class Runlore {
  readonly project: string;
  readonly memory: string;
  readonly layout: { memories_dir: string; sessions_dir: string };
  readonly service: Service;
  readonly report: Report;
  readonly waitSeconds: number;
  readonly answerMsMax: number;
  private readonly outbox: Outbox;
  private readonly deliverMsMax: number;
  /** Records that wait for their workspace: run and attempt → the outbox's item. */
  private readonly held = new Map<string, string>();
  private awayUntil = 0;
  private readonly seen = new Map<string, Seen>();
  /** Workspaces that were handed over: run and attempt → the archive's hash. */
  private readonly left = new Map<string, string>();

  constructor(options: RunloreOptions) {
    // A variable that is set to nothing, as deployments do, is not set.
    const url = options.url ?? (process.env.RUNLORE_URL || 'http://127.0.0.1:7077');
    const key = options.key ?? process.env.RUNLORE_KEY;
    this.project = checkedName(options.project, 'project');
    this.memory = checkedName(options.memory, 'memory');
    this.layout = {
      memories_dir: options.layout?.memoriesDir ?? 'memories',
      sessions_dir: options.layout?.sessionsDir ?? 'sessions',
    };
    this.report = options.report ?? warn;
    this.waitSeconds = options.waitSeconds ?? WAIT_SECONDS;
    this.deliverMsMax = options.deliverMsMax ?? DELIVER_MS_MAX;
    this.answerMsMax = options.answerMsMax ?? ANSWER_MS_MAX;
    this.service = new Service({ url, project: this.project, memory: this.memory, ...(key ? { key } : {}) });
    const home = process.env.RUNLORE_HOME || join(homedir(), '.runlore');
    // One folder for each service: what waits for one must never reach another.
    const place = createHash('sha256').update(url).digest('hex').slice(0, 8);
    const folder = join(options.outbox ?? join(home, 'outbox'), `${this.project}-${place}`);
    const bytesMax = options.outboxBytesMax ?? OUTBOX_BYTES_MAX;
    const { report, deliverMsMax: onceMsMax } = this;
    this.outbox = new Outbox(this.service, { folder, bytesMax, onceMsMax, report });
  }

  /** A rollout (a conversation, a session, a group: one namespace) as one run sees it. */
  rollout(id: string, options: RolloutOptions = {}): Rollout {
    return new Rollout(this, id, options);
  }

  /** Deliver what waits, also what an earlier process left. Answers whether nothing waits any more; throws nothing. */
  async flush(): Promise<boolean> {
    this.outbox.release();
    return this.outbox.drain();
  }

  release(): void {
    this.outbox.release();
  }

  /** Whether the service answers, as a run's begin has seen it. */
  answers(does: boolean): void {
    this.awayUntil = does ? 0 : Date.now() + AWAY_MS;
  }

  /** Deliver, for as long as a run may be kept waiting: not at all where its begin has waited in vain. */
  async settle(msMax = this.deliverMsMax): Promise<boolean> {
    if (Date.now() < this.awayUntil) {
      void this.outbox.drain();
      return false;
    }
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<boolean>((resolve) => {
      timer = setTimeout(resolve, Math.min(msMax, this.deliverMsMax), false);
    });
    try {
      return await Promise.race([this.outbox.drain(), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Keep a run's record until it is delivered. Its workspace mostly follows in moments: it is held back for that long,
   * so that a run is one event. What is held back is on the disk all the same.
   */
  async sendRecord(event: RunEvent): Promise<void> {
    if (this.held.has(nameOf(event))) return;
    const name = await this.outbox.add(event, { holdMs: HOLD_MS });
    if (name !== undefined) bounded(this.held).set(nameOf(event), name);
    this.sent(event, false);
  }

  /** Keep a run's event with its workspace until it is delivered; instead of its record alone, if that still waits. */
  async sendWorkspace(event: RunEvent, archive: (path: string, event: RunEvent) => Promise<void>): Promise<void> {
    await this.outbox.add(event, { archive, instead: this.held.get(nameOf(event)) });
    this.sent(event, true);
  }

  private sent(event: RunEvent, workspace: boolean): void {
    this.remember(event.conversation_id, { run: { run: event.run_id, attempt: event.attempt, workspace } });
  }

  seenOf(rollout: string): Seen {
    return this.seen.get(rollout) ?? {};
  }

  remember(rollout: string, what: Seen): void {
    bounded(this.seen).set(rollout, { ...this.seenOf(rollout), ...what });
  }

  /** Whether this run's attempt has left a workspace before, and whether it was the same. */
  leaves(run: Run, sha256: string): 'first' | 'same' | 'other' {
    const name = `${run.run}.${run.attempt}`;
    const before = this.left.get(name);
    if (before !== undefined) return before === sha256 ? 'same' : 'other';
    bounded(this.left).set(name, sha256);
    return 'first';
  }
}

function nameOf({ run_id, attempt }: RunEvent): string {
  return `${run_id}.${attempt}`;
}

function bounded<V>(map: Map<string, V>): Map<string, V> {
  if (map.size >= SEEN_MAX) map.delete(map.keys().next().value as string);
  return map;
}

export class Rollout {
  /** The rollout as the service is told of it: an id that it refuses is exchanged for its alias. */
  readonly conversation: string;
  private pinned: Promise<Pinned> | undefined;

  constructor(
    readonly lore: Runlore,
    readonly id: string,
    readonly options: RolloutOptions = {},
  ) {
    if (!id.trim()) throw new RunloreError('invalid_id', "the rollout's id is blank");
    this.conversation = isAcceptedId(id) ? id.trim() : alias(id);
  }

  /** For `new Runner({ groupId })`: the SDK drops the record of a run whose group is no file's name. */
  get groupId(): string {
    return alias(this.conversation);
  }

  /** The seed of this run: the same one until a fresh one is asked for. */
  async seed(fresh = false): Promise<Seed> {
    return (await this.pin(fresh)).seed;
  }

  /**
   * The memory files of the seed, by their path in a workspace of this layout. An agent asks for them in every turn: a
   * fault stays one until a seed is asked for anew, or each turn would wait for a service that is away.
   */
  async memoryFiles(): Promise<Map<string, Uint8Array>> {
    const pinned = await (this.pinned ?? this.pin());
    pinned.files ??= this.fetchFiles(pinned.seed);
    return pinned.files;
  }

  /** The workspace of the seed, and what its next version replaces. Raises `RunloreError` where there is none. */
  async workspace(): Promise<Unpacked & { origin: Origin }> {
    const { seed } = await this.pin();
    if (seed.seed === null || seed.snapshot === null) {
      throw new RunloreError('no_snapshot', `rollout ${this.id} has no workspace yet`, { status: 404 });
    }
    const without = [this.lore.layout.sessions_dir];
    // Of another layout than ours its memory would lie where nobody looks; the memory store brings it.
    if (seed.layout.memories_dir !== this.lore.layout.memories_dir) without.push(seed.layout.memories_dir);
    const unpacked = await fromTar(await this.lore.service.workspaceTar(seed.seed), without);
    const content = this.contentOf(unpacked.archive, unpacked.extras);
    return { ...unpacked, origin: { seed: seed.seed, base: seed.base, content } };
  }

  /** What a workspace holds beside memory and session files, which are no part of a snapshot. */
  contentOf(archive: WorkspaceArchive, extras: Extras): string {
    const { memories_dir, sessions_dir } = this.lore.layout;
    return contentOf(archive, extras, [memories_dir, sessions_dir]);
  }

  /** The event of a run of this rollout. */
  event(run: Pick<Run, 'run' | 'attempt'>, record: RunEvent['record'], seed?: string | null): RunEvent {
    const { lore, options } = this;
    return {
      project: lore.project,
      memory: lore.memory,
      layout: lore.layout,
      conversation_id: this.conversation,
      run_id: run.run,
      attempt: run.attempt,
      ...(options.subject === undefined ? {} : { subject: options.subject }),
      ...(seed ? { seed } : {}),
      record,
    };
  }

  /** What is pinned, without asking for it. */
  async pinnedSeed(): Promise<string | undefined> {
    const pinned = await this.pinned?.catch(() => undefined);
    return pinned?.seed.seed ?? undefined;
  }

  private pin(fresh = false): Promise<Pinned> {
    if (fresh || this.pinned === undefined) {
      this.pinned = this.ask().then((seed) => ({ seed }));
      this.pinned.then(
        () => this.lore.answers(true),
        // It is told to who asks.
        (error: unknown) => this.lore.answers(!(error instanceof RunloreError && error.kind === 'unreachable')),
      );
    }
    return this.pinned;
  }

  private async ask(): Promise<Seed> {
    const { lore } = this;
    // What this process recorded before comes first, or the run begins where the one before the last ended.
    lore.release();
    const until = Date.now() + lore.answerMsMax;
    const delivered = await lore.settle(lore.answerMsMax / 2);
    const { conversation: rollout, options } = this;
    const seen = lore.seenOf(rollout);
    const query: SeedQuery = { rollout, until, ...options, ...(seen.seed ? { after: seen.seed } : {}) };
    const asked = (wanted: SeedQuery) =>
      seen.run && delivered ? this.awaited(wanted, seen.run) : lore.service.seed(wanted);
    const seed = await asked(query).catch((error: unknown) => {
      // The seed of before may mean nothing to the service any more: its secret, or the whole service, is another.
      const isMine = error instanceof RunloreError && (error.isRefusal || error.status === 403);
      if (seen.seed === undefined || !isMine) throw error;
      const { after: _, ...rest } = query;
      return asked(rest);
    });
    if (seed.seed !== null) lore.remember(rollout, { seed: seed.seed });
    return seed;
  }

  /** The seed once it holds a run: its workspace is a version (or a branch), and the memory covers it. */
  private async awaited(query: SeedQuery, { run, attempt, workspace }: NonNullable<Seen['run']>): Promise<Seed> {
    const { service, waitSeconds, answerMsMax, report } = this.lore;
    const end = Date.now() + waitSeconds * 1000;
    const left = () => Math.max(0, (end - Date.now()) / 1000);
    try {
      while (workspace && left() > 0 && !(await service.isPlaced(run, attempt))) {
        await new Promise((resolve) => setTimeout(resolve, PLACED_POLL_MS));
      }
      const until = Date.now() + answerMsMax;
      if (left() > 0) return await service.seed({ ...query, until, waitFor: run, waitSeconds: left() });
    } catch (error) {
      if (!(error instanceof RunloreError) || error.kind !== 'wait_timeout') throw error;
    }
    const message = `run ${run} is not in the memory after ${waitSeconds} s; going on without it`;
    if (waitSeconds > 0) report({ message });
    return service.seed({ ...query, until: Date.now() + answerMsMax });
  }

  private async fetchFiles(seed: Seed): Promise<Map<string, Uint8Array>> {
    if (seed.seed === null || seed.files.length === 0) return new Map();
    const from = `${seed.layout.memories_dir}/`;
    const files = await filesOf(await this.lore.service.memoryTar(seed.seed));
    const own = [...files].filter(([path]) => path.startsWith(from));
    return new Map(own.map(([path, body]) => [`${this.lore.layout.memories_dir}/${path.slice(from.length)}`, body]));
  }
}

interface Pinned {
  seed: Seed;
  files?: Promise<Map<string, Uint8Array>> | undefined;
}
