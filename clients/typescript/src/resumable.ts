/**
 * A sandbox client whose fresh session begins with the snapshot that its spec names.
 *
 * The SDK asks a snapshot store only when it resumes a saved session: a fresh `create` begins empty, and then saves
 * over the same id. So `create` restores here, and keeps for each session what it began as (in the spec's metadata,
 * which the SDK saves with the session), for the store to hand on at `save`.
 */

import type {
  Entry,
  RemoteSnapshotSpec,
  SandboxClient,
  SandboxClientCreateArgs,
  SandboxSessionLike,
  SandboxSessionState,
} from '@openai/agents/sandbox';

import type { Extras } from './archive.js';
import { RunloreError } from './errors.js';
import { originOf, RunloreSnapshotStore, type SaveArgs } from './stores.js';
import { collectExtras, restoreExtras } from './workspace.js';

export interface ResumableOptions {
  /**
   * The service does not give the workspace at a run's begin (it is away, takes too long, refuses the key, or what it
   * sends is damaged). `empty`: the run begins with an empty workspace, and what it leaves becomes a branch of its
   * rollout (nothing is overwritten; `runlore snapshot merge` puts it back). `fail`: no run.
   */
  whenAway?: 'empty' | 'fail';
  /** The spec whose store a session gets that another process saved. */
  snapshot?: RemoteSnapshotSpec;
}

type AnyClient = SandboxClient<any, any>;
type State = SandboxSessionState & { workspaceRootPath?: string; snapshotSpec?: RemoteSnapshotSpec | null };
type Session = SandboxSessionLike<State>;

/** `client` with sessions that resume. Everything else of it stays as it is. */
export function resumable<C extends AnyClient>(client: C, options: ResumableOptions = {}): C {
  const own = new Resumable(client, options);
  const mine: Record<PropertyKey, unknown> = {
    create: own.create.bind(own),
    resume: own.resume.bind(own),
    serializeSessionState: own.serialize.bind(own),
    deserializeSessionState: own.deserialize.bind(own),
  };
  return new Proxy(client, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== 'function') return value;
      return mine[name] ?? value.bind(target);
    },
  });
}

class Resumable {
  private spec: RemoteSnapshotSpec | undefined;

  constructor(
    private readonly client: AnyClient,
    private readonly options: ResumableOptions,
  ) {
    this.spec = options.snapshot;
  }

  async create(...args: unknown[]): Promise<Session> {
    const create = this.client.create!.bind(this.client) as (...all: unknown[]) => Promise<Session>;
    const session = await create(...args);
    const spec = session.state.snapshotSpec ?? (args[0] as SandboxClientCreateArgs | undefined)?.snapshot;
    if (!isRunlore(spec)) return session;
    this.spec = spec;
    let loaded: Loaded | undefined;
    try {
      loaded = await this.begin(session, spec);
      if (loaded) await restored(session, spec, loaded);
    } catch (error) {
      if (this.options.whenAway === 'fail' || isMisuse(error)) {
        await discard(session);
        throw error;
      }
      const message = `rollout ${spec.store.rollout.id} begins with an empty workspace, which will end as a branch`;
      spec.store.rollout.lore.report({ message, error });
      if (!loaded) return session;
      await discard(session); // Half a workspace is none.
      return create(...args);
    }
    return loaded ? applied(session) : session;
  }

  /** What a fresh session begins with; undefined where there is nothing yet, which is remembered too. */
  private async begin(session: Session, spec: RunloreSpec): Promise<Loaded | undefined> {
    const id = idOf(spec);
    if (!(await spec.store.exists({ id }))) {
      const { seed, base } = await spec.store.rollout.seed();
      remember(session.state, spec, { runlore: { seed, base } });
      return undefined;
    }
    if (!session.hydrateWorkspace) {
      throw new RunloreError(NO_HYDRATE, 'this sandbox client can not restore a workspace');
    }
    return spec.store.load({ id });
  }

  async resume(state: State, ...rest: unknown[]): Promise<Session> {
    const resume = this.client.resume!.bind(this.client) as (...all: unknown[]) => Promise<Session>;
    const spec = state.snapshotSpec;
    if (!isRunlore(spec)) return resume(state, ...rest);
    // The SDK drops what `load` says beside the data; here it is overheard. The state must stay the same object.
    const ear = new Overheard(spec.store);
    state.snapshotSpec = { ...spec, store: ear };
    let session: Session;
    try {
      session = await resume(state, ...rest);
    } finally {
      state.snapshotSpec = spec;
    }
    session.state.snapshotSpec = spec;
    if (ear.loaded) {
      remember(session.state, spec, ear.loaded.metadata);
      await putBack(session, ear.loaded.extras, spec);
    }
    return session;
  }

  async serialize(state: State, ...rest: unknown[]): Promise<Record<string, unknown>> {
    const serialize = this.client.serializeSessionState!.bind(this.client) as (
      ...all: unknown[]
    ) => Promise<Record<string, unknown>>;
    const spec = state.snapshotSpec;
    if (!isRunlore(spec)) return serialize(state, ...rest);
    const extras = await extrasOf(state, spec);
    state.snapshotSpec = { ...spec, store: new Knowing(spec.store, extras) };
    try {
      return await serialize(state, ...rest);
    } finally {
      state.snapshotSpec = spec;
    }
  }

  async deserialize(raw: Record<string, unknown>): Promise<State> {
    const state = (await this.client.deserializeSessionState!(raw)) as State;
    const saved = raw.snapshotSpec as Partial<RemoteSnapshotSpec> | null | undefined;
    if (!state.snapshotSpec && this.spec && saved?.type === 'remote') {
      const { store } = this.spec;
      state.snapshotSpec = { ...saved, type: 'remote', store };
    }
    return state;
  }
}

type RunloreSpec = { type: 'remote'; id?: string; metadata?: Record<string, unknown>; store: RunloreSnapshotStore };

function isRunlore(spec: unknown): spec is RunloreSpec {
  const one = spec as Partial<RunloreSpec> | null | undefined;
  return one?.type === 'remote' && one.store instanceof RunloreSnapshotStore;
}

const NO_HYDRATE = 'no_hydrate';

/** Whether a program is wired wrongly: no outage, and no run should hide it. */
function isMisuse(error: unknown): boolean {
  return error instanceof RunloreError && (error.kind === NO_HYDRATE || (error.kind === 'invalid_id' && !error.status));
}

type Loaded = Awaited<ReturnType<RunloreSnapshotStore['load']>>;

function idOf(spec: RunloreSpec): string {
  return spec.id ?? spec.store.rollout.id;
}

async function restored(session: Session, spec: RunloreSpec, { data, metadata, extras }: Loaded): Promise<void> {
  await session.hydrateWorkspace!(data);
  await putBack(session, extras, spec);
  remember(session.state, spec, metadata);
  session.state.snapshot = { id: idOf(spec), type: 'remote', metadata };
}

/** The manifest's entries that the snapshot did not hold. What goes wrong here is the caller's, as without us. */
async function applied(session: Session): Promise<Session> {
  try {
    await reapply(session);
    return session;
  } catch (error) {
    await discard(session);
    throw error;
  }
}

/** Hears what is loaded. */
class Overheard {
  loaded: Loaded | undefined;

  constructor(private readonly store: RunloreSnapshotStore) {}

  exists(args: { id: string }) {
    return this.store.exists(args);
  }

  async load(args: { id: string }) {
    return (this.loaded = await this.store.load(args));
  }

  save(args: SaveArgs) {
    return this.store.save(args);
  }
}

/** Adds to a `save` what the SDK's archive can not hold. */
class Knowing {
  constructor(
    private readonly store: RunloreSnapshotStore,
    private readonly extras: Extras | undefined,
  ) {}

  save(args: SaveArgs) {
    const origin = originOf(args.metadata);
    const context = { ...(origin ? { origin } : {}), ...(this.extras ? { extras: this.extras } : {}) };
    return this.store.saveWith(args, context);
  }

  load(args: { id: string }) {
    return this.store.load(args);
  }

  exists(args: { id: string }) {
    return this.store.exists(args);
  }
}

function remember(state: State, spec: RunloreSpec, metadata: Record<string, unknown>): void {
  state.snapshotSpec = { ...spec, metadata: { ...spec.metadata, ...metadata } };
}

/** A run has ended here: what can not be read is told, and its workspace goes without. */
async function extrasOf(state: State, spec: RunloreSpec): Promise<Extras | undefined> {
  if (!state.workspaceRootPath) return undefined;
  const { report } = spec.store.rollout.lore;
  const skip = (path: string, error: unknown) => report({ message: `mode or link of ${path} can not be read`, error });
  try {
    return await collectExtras(state.workspaceRootPath, skip);
  } catch (error) {
    report({ message: 'modes and links of the workspace can not be read', error });
    return undefined;
  }
}

async function putBack(session: Session, extras: Extras, spec: RunloreSpec): Promise<void> {
  const { report } = spec.store.rollout.lore;
  const { workspaceRootPath } = session.state;
  const { links, modes } = extras;
  const refused = workspaceRootPath ? await restoreExtras(workspaceRootPath, extras) : [...links.keys()];
  for (const path of refused) {
    report({ message: links.has(path) ? `the link ${path} is not restored` : `${path} has lost its permission bits` });
  }
  if (!workspaceRootPath && modes.size) report({ message: `${modes.size} files have lost their permission bits` });
}

/** Make what the manifest names and the snapshot does not hold: mounts aside, what is there is the agent's work. */
async function reapply(session: Session): Promise<void> {
  if (!session.materializeEntry || !session.pathExists) return;
  for (const [path, entry] of missingFirst(session.state.manifest.entries)) {
    if (!(await session.pathExists(path))) await session.materializeEntry({ path, entry });
  }
}

function* missingFirst(entries: Record<string, Entry>, below = ''): Generator<[string, Entry]> {
  for (const [name, entry] of Object.entries(entries)) {
    const path = below ? `${below}/${name}` : name;
    yield [path, entry];
    const children = (entry as { children?: Record<string, Entry> }).children;
    if (entry.type === 'dir' && children) yield* missingFirst(children, path);
  }
}

async function discard(session: Session): Promise<void> {
  const end = session.delete ?? session.close;
  await end?.call(session).catch(() => {});
}
