/**
 * The two stores that the TypeScript Agents SDK takes, over a rollout.
 *
 * What they may throw follows from when the SDK calls them. Before a run (`exists`, `load`) a fault is thrown: an empty
 * answer would be taken for the truth. In and after a run (`list`, `read`, `write`, `save`) nothing is thrown, because
 * the SDK rejects a finished run for it: what is to be sent lies in the outbox, and the rest is reported.
 *
 * They are classes on purpose: the SDK clones a store that is an object literal, and the clone has lost its methods.
 */

import type { MemoryStore, RemoteSnapshotStore } from '@openai/agents/sandbox';
import { createHash, randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';

import { noExtras, parseArchive, writeTar, type Extras, type WorkspaceArchive } from './archive.js';
import { RunloreError } from './errors.js';
import { alias, runsOf, type Run } from './records.js';
import type { Origin, Rollout } from './runlore.js';
import type { Claim, RunEvent } from './service.js';

/**
 * Memory out of the pinned seed, and session lines into Runlore.
 *
 * Only `sessions/*` is taken: the memory itself is written by the service. `read` answers null for `sessions/*`, so a
 * session without `readFile` appends to nothing and one write holds one record. There is no `delete`.
 */
export class RunloreMemoryStore implements MemoryStore {
  private readonly sent = new Set<string>();
  /** The fault that was told last: an agent reads its memory in every turn. */
  private told: unknown;

  constructor(private readonly rollout: Rollout) {}

  async list(prefix: string): Promise<string[]> {
    const found = [...(await this.files()).keys()];
    return found.filter((path) => prefix === '' || path === prefix || path.startsWith(`${prefix}/`)).sort();
  }

  async read(path: string): Promise<Uint8Array | null> {
    const { sessions_dir } = this.rollout.lore.layout;
    if (path.startsWith(`${sessions_dir}/`)) return null;
    const body = (await this.files()).get(path);
    return body === undefined ? null : new Uint8Array(body);
  }

  async write(path: string, data: Uint8Array): Promise<void> {
    const { rollout } = this;
    const { lore } = rollout;
    if (!path.startsWith(`${lore.layout.sessions_dir}/`) || !path.endsWith('.jsonl')) return;
    try {
      const seed = await rollout.pinnedSeed();
      const skip = (message: string) => lore.report({ message });
      for (const run of runsOf(new TextDecoder().decode(data), rollout.id, skip)) {
        const name = `${run.run}.${run.attempt}`;
        if (this.sent.has(name)) continue;
        await lore.sendRecord(rollout.event(run, run.line, seed));
        this.sent.add(name);
      }
    } catch (error) {
      lore.report({ message: `a run of ${rollout.id} could not be kept`, error });
    }
  }

  private async files(): Promise<Map<string, Uint8Array>> {
    try {
      return await this.rollout.memoryFiles();
    } catch (error) {
      const message = `the memory of ${this.rollout.id} can not be read; this run goes on without`;
      if (this.told !== error) this.rollout.lore.report({ message, error });
      this.told = error;
      return new Map();
    }
  }
}

/** What goes with a `save` beside the SDK's own arguments. */
export interface SaveContext {
  origin?: Origin;
  extras?: Extras;
}

export interface SaveArgs {
  id?: string;
  data: Uint8Array;
  metadata?: Record<string, unknown>;
}

/**
 * Workspaces as versions of the rollout's line on the server; the id stays the rollout's, so the SDK deletes nothing.
 *
 * A workspace goes with the run that left it, which is the last line of the session file in the archive itself. With
 * it goes what the run began as (`SaveContext.origin`, which `resumable` keeps for each session): without that the
 * service keeps the workspace as a branch rather than replace a version that the run may not have seen.
 */
export class RunloreSnapshotStore implements RemoteSnapshotStore {
  private readonly origins: Origin[] = [];

  constructor(readonly rollout: Rollout) {}

  /** Whether there is a workspace to begin with. Raises `RunloreError` where that can not be known. */
  async exists({ id }: { id: string }): Promise<boolean> {
    this.check(id);
    try {
      return (await this.rollout.seed(true)).snapshot !== null;
    } catch (error) {
      if (error instanceof RunloreError && error.status === 404 && error.isOurs) return false;
      throw error;
    }
  }

  async load({ id }: { id: string }): Promise<{ data: Uint8Array; metadata: Record<string, unknown>; extras: Extras }> {
    this.check(id);
    const { archive, extras, lost, origin } = await this.rollout.workspace();
    for (const { path, why } of lost) this.rollout.lore.report({ message: `${path} ${why}` });
    this.origins.push(origin);
    const data = new TextEncoder().encode(JSON.stringify(archive));
    return { data, metadata: { runlore: origin }, extras };
  }

  async save(args: SaveArgs): Promise<{ id: string; metadata?: Record<string, unknown> }> {
    // Of several loads nobody can say which one this workspace came from; of one it is known.
    const origin = originOf(args.metadata) ?? (this.origins.length === 1 ? this.origins[0] : undefined);
    return this.saveWith(args, origin ? { origin } : {});
  }

  /** `save`, knowing more than the SDK passes on. */
  async saveWith(args: SaveArgs, context: SaveContext): Promise<{ id: string; metadata?: Record<string, unknown> }> {
    const { lore } = this.rollout;
    try {
      await this.keep(args.data, context);
      await lore.settle();
    } catch (error) {
      lore.report({ message: `the workspace of ${this.rollout.id} could not be kept`, error });
    }
    return { id: this.rollout.id, ...(args.metadata ? { metadata: args.metadata } : {}) };
  }

  private async keep(data: Uint8Array, context: SaveContext): Promise<void> {
    const archive = parseArchive(data);
    const run = archive ? this.lastRun(archive) : undefined;
    const { origin, extras = noExtras() } = context;
    if (archive && origin?.content && origin.content === this.rollout.contentOf(archive, extras)) {
      // Left as it was: no version. The run's record counts, unless the memory store has sent it already.
      if (run) await this.rollout.lore.sendRecord(this.rollout.event(run, run.line, origin.seed));
      this.rollout.lore.release();
      return;
    }
    const event = run
      ? this.rollout.event(run, run.line, origin?.seed)
      : this.rollout.event(...this.workspaceAlone(), origin?.seed);
    const { agent } = this.rollout.options;
    await this.rollout.lore.sendWorkspace(event, async (path, complete) => {
      const claim = await written(data, archive, extras, path);
      if (run) this.asBranch(complete, run, claim);
      const workspace = { archive: claim, ...(origin ? { base: origin.base } : {}) };
      complete.workspaces = [{ ...(agent === undefined ? {} : { agent }), ...workspace }];
    });
  }

  /** The run that left this workspace: the last line in it. */
  private lastRun(archive: WorkspaceArchive): Run | undefined {
    const { sessions_dir } = this.rollout.lore.layout;
    const files = archive.files.filter((one) => one.path.startsWith(`${sessions_dir}/`) && one.path.endsWith('.jsonl'));
    const runs = files.flatMap((one) => runsOf(Buffer.from(one.data, 'base64').toString('utf8'), this.rollout.id));
    return runs.reduce<Run | undefined>(
      (last, run) => (last === undefined || run.updatedAt >= last.updatedAt ? run : last),
      undefined,
    );
  }

  /** A run leaves one workspace. Another of the same run (a hand-off gives each agent its own) is a run below it. */
  private asBranch(event: RunEvent, run: Run, claim: Claim): void {
    if (this.rollout.lore.leaves(run, claim.sha256) !== 'other') return;
    const [own, record] = this.workspaceAlone();
    Object.assign(event, { run_id: own.run, attempt: own.attempt, parent_run_id: run.run, record });
  }

  /** A run of which only the workspace is known: the agent has no `memory()`, or it is another's. */
  private workspaceAlone(): [Pick<Run, 'run' | 'attempt'>, Record<string, unknown>] {
    const { id } = this.rollout;
    const terminal_metadata = {
      terminal_state: 'completed',
      exception_type: null,
      exception_message: null,
      has_final_output: false,
    };
    const updated_at = new Date().toISOString().replace(/Z$/, '+00:00');
    const record = { updated_at, rollout_id: id, input: [], generated_items: [], terminal_metadata };
    return [{ run: `${alias(id)}-w-${randomUUID()}`, attempt: 1 }, record];
  }

  private check(id: string): void {
    if (id === this.rollout.id) return;
    throw new RunloreError('invalid_id', `this store is of rollout ${this.rollout.id}, not of ${id}`);
  }
}

/** What a run began as, out of a snapshot's metadata. */
export function originOf(metadata: Record<string, unknown> | undefined): Origin | undefined {
  const own = metadata?.runlore as Partial<Origin> | undefined;
  return typeof own?.base?.counter === 'number' ? (own as Origin) : undefined;
}

async function written(
  data: Uint8Array,
  archive: WorkspaceArchive | undefined,
  extras: Extras,
  path: string,
): Promise<Claim> {
  if (archive) return writeTar(archive, extras, path);
  // A provider's own format goes as it is: the service says what it can not read.
  await writeFile(path, data, { mode: 0o600 });
  return { sha256: createHash('sha256').update(data).digest('hex'), size: data.byteLength };
}
