/**
 * The lookup service over HTTP, as docs/HTTP.md says it: what the two stores need of it, and no more.
 *
 * Every call throws `RunloreError`; who must not throw (a run has ended) catches it where that is decided.
 */

import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { Readable } from 'node:stream';

import { NOT_OURS, RunloreError } from './errors.js';

export interface Base {
  counter: number;
  snapshot: string | null;
}

export interface Seed {
  /** Null: the memory has no revision, and the rollout no workspace. */
  seed: string | null;
  rollout: string;
  agent: string;
  revision: number | null;
  layout: { memories_dir: string; sessions_dir: string };
  files: { path: string; bytes: number; sha256: string }[];
  snapshot: string | null;
  from_template: boolean;
  base: Base;
}

export interface SeedQuery {
  rollout: string;
  subject?: string;
  agent?: string;
  /** The seed that was seen last: no older one is given. */
  after?: string;
  /** A run that must be covered, and for how long to wait for it. */
  waitFor?: string;
  waitSeconds?: number;
  /** When it is given up, tries and all, in milliseconds since 1970; what `waitFor` waits is not counted. */
  until?: number;
}

export interface Claim {
  sha256: string;
  size: number;
}

/** The data of `io.runlore.run.completed.v1`, as far as this client says it. */
export interface RunEvent {
  project: string;
  memory: string;
  layout: { memories_dir: string; sessions_dir: string };
  conversation_id: string;
  run_id: string;
  attempt: number;
  subject?: string;
  parent_run_id?: string;
  seed?: string;
  record: string | Record<string, unknown>;
  workspaces?: { agent?: string; archive: Claim; base?: Base }[];
}

export interface ServiceOptions {
  url: string;
  key?: string;
  project: string;
  memory: string;
}

const ANSWER_MS_MAX = 30_000;
const TRANSFER_MS_MAX = 15 * 60_000;
/** How long a memory's files may take: an agent waits for them. */
const MEMORY_MS_MAX = 30_000;
/** Tries of a read; what is written is tried again by the outbox. */
const READ_ATTEMPTS_MAX = 3;
const RETRY_AFTER_MS_MAX = 5_000;

export class Service {
  private readonly root: string;
  private readonly options: Omit<ServiceOptions, 'key'>;
  /** Out of sight of `console.log` and `JSON.stringify`: a store stands in the SDK's own objects. */
  readonly #key: string | undefined;

  constructor(options: ServiceOptions) {
    const { key, ...rest } = options;
    this.#key = key?.trim(); // Often read from a file, with the end of its line.
    if (this.#key !== undefined && !/^[\x21-\x7e]*$/.test(this.#key)) {
      throw new RunloreError('invalid_key', 'the key holds what no key of the lookup service holds');
    }
    this.options = rest;
    this.root = `${checkedUrl(options.url)}/v1/projects/${encodeURIComponent(options.project)}`;
  }

  async seed(query: SeedQuery): Promise<Seed> {
    const named = new URLSearchParams({ conversation_id: query.rollout });
    if (query.subject !== undefined) named.set('subject', query.subject);
    if (query.agent !== undefined) named.set('agent', query.agent);
    if (query.after !== undefined) named.set('after', query.after);
    if (query.waitFor !== undefined) {
      named.set('wait_for', query.waitFor);
      named.set('wait_seconds', (query.waitSeconds ?? 10).toFixed(3));
    }
    const path = `/memories/${encodeURIComponent(this.options.memory)}/seed?${named}`;
    const waited = query.waitFor === undefined ? 0 : 1000 * (query.waitSeconds ?? 10);
    const until = (query.until ?? Date.now() + ANSWER_MS_MAX) + waited;
    return checkedSeed(await this.read(path, json, ANSWER_MS_MAX + waited, until));
  }

  /** Whether the snapshot stage is done with what a run's attempt left. */
  async isPlaced(run: string, attempt: number): Promise<boolean> {
    let found: { runs?: { attempt: number | null; steps: { stage: string }[] }[] };
    try {
      found = await this.read(`/runs/${encodeURIComponent(run)}`, json, ANSWER_MS_MAX);
    } catch (error) {
      if (error instanceof RunloreError && error.status === 404) return false;
      throw error;
    }
    const runs = found.runs ?? [];
    return runs.some((one) => one.attempt === attempt && one.steps.some((step) => step.stage === 'snapshot'));
  }

  /** The memory files of a seed, as a tar. */
  async memoryTar(seed: string): Promise<AsyncIterable<Uint8Array>> {
    return this.tar(`/seeds/${encodeURIComponent(seed)}/memory.tar`, MEMORY_MS_MAX);
  }

  /** The whole workspace of a seed: its snapshot with the memory files over it. */
  async workspaceTar(seed: string): Promise<AsyncIterable<Uint8Array>> {
    return this.tar(`/seeds/${encodeURIComponent(seed)}/workspace.tar`, TRANSFER_MS_MAX);
  }

  /** Hand over a workspace's tar; the same bytes twice are one object. */
  async upload(file: string, timeoutMs = TRANSFER_MS_MAX): Promise<Claim> {
    const { size } = await stat(file);
    const body = Readable.toWeb(createReadStream(file)) as ReadableStream;
    const headers = { 'content-type': 'application/x-tar', 'content-length': String(size) };
    const init = { method: 'POST', body, headers, duplex: 'half' } as RequestInit;
    return json<Claim>(await this.send('/archives', init, timeoutMs));
  }

  async publish(event: RunEvent, timeoutMs = TRANSFER_MS_MAX): Promise<void> {
    const body = JSON.stringify(event);
    const init = { method: 'POST', body, headers: { 'content-type': 'application/json' } };
    const answer = await json<{ event?: unknown }>(await this.send('/events', init, timeoutMs));
    // The page of a proxy, say. To believe it would be to forget the run.
    if (!answer.event) throw stranger('it does not say that it took the run');
  }

  private async tar(path: string, timeoutMs: number): Promise<AsyncIterable<Uint8Array>> {
    return this.read(path, async (answer) => bodyOf(answer), timeoutMs);
  }

  private async read<T>(
    path: string,
    take: (answer: Response) => Promise<T>,
    timeoutMs: number,
    until = Infinity,
  ): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        const room = Math.max(1, until - Date.now());
        return await take(await this.send(path, { method: 'GET' }, Math.min(timeoutMs, room)));
      } catch (error) {
        const wait = error instanceof RunloreError ? waitBefore(error, attempt) : undefined;
        if (wait === undefined || attempt >= READ_ATTEMPTS_MAX || Date.now() + wait >= until) throw error;
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    }
  }

  private async send(path: string, init: RequestInit, timeoutMs: number): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.#key) headers.set('authorization', `Bearer ${this.#key}`);
    // A redirect is not followed: it would turn a POST into a GET, or carry a run to somebody else.
    const more = { headers, redirect: 'manual' as const, signal: AbortSignal.timeout(Math.ceil(timeoutMs)) };
    let answer: Response;
    try {
      answer = await fetch(this.root + path, { ...init, ...more });
    } catch (cause) {
      throw new RunloreError('unreachable', `the service at ${this.options.url} does not answer`, { cause });
    }
    if (answer.ok) return answer;
    throw await problemOf(answer);
  }
}

/** The URL without what ends it. Raises `RunloreError`, which never repeats a password in it. */
function checkedUrl(url: string): string {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  const isPlain = parsed && !parsed.username && !parsed.password && !parsed.search && !parsed.hash;
  if (!isPlain || !['http:', 'https:'].includes(parsed.protocol)) {
    const hint = 'http://… or https://…, without a user, a password or a query (RUNLORE_URL)';
    throw new RunloreError('invalid_url', 'this is no URL of a lookup service', { hint });
  }
  return url.replace(/\/+$/, '');
}

function stranger(why: string, cause?: unknown): RunloreError {
  const hint = 'is RUNLORE_URL where the lookup service itself answers?';
  return new RunloreError('bad_answer', `what answers is not the lookup service: ${why}`, { hint, cause });
}

async function json<T extends object>(answer: Response): Promise<T> {
  let text: string;
  try {
    text = await answer.text();
  } catch (cause) {
    throw brokenOff(cause);
  }
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as T;
  } catch (cause) {
    throw stranger('it says no JSON', cause);
  }
  throw stranger('it says no JSON object');
}

function checkedSeed(seed: Partial<Seed>): Seed {
  const isOne =
    (seed.seed === null || typeof seed.seed === 'string') &&
    (seed.snapshot === null || typeof seed.snapshot === 'string') &&
    typeof seed.base?.counter === 'number' &&
    Array.isArray(seed.files) &&
    typeof seed.layout?.memories_dir === 'string';
  if (!isOne) throw stranger('it says nothing of a seed');
  return seed as Seed;
}

async function* bodyOf(answer: Response): AsyncGenerator<Uint8Array> {
  if (answer.body === null) return;
  try {
    yield* answer.body as unknown as AsyncIterable<Uint8Array>;
  } catch (cause) {
    throw brokenOff(cause);
  }
}

function brokenOff(cause: unknown): RunloreError {
  return new RunloreError('unreachable', 'the answer of the service broke off', { cause });
}

/** How long to wait before a read is tried again, in milliseconds; undefined where that is of no use. */
function waitBefore(error: RunloreError, attempt: number): number | undefined {
  if (error.kind !== 'unreachable' && error.status !== 503 && error.status !== 502) return undefined;
  return Math.min(error.details.retryAfterMs ?? 100 * 2 ** attempt, RETRY_AFTER_MS_MAX);
}

/** RFC 9457, with the service's own members. */
type Problem = Partial<Record<'kind' | 'title' | 'detail' | 'hint', unknown>>;

const TEXT_CHARS_MAX = 500;

function textIn(value: unknown): string | undefined {
  return typeof value === 'string' && value ? value.slice(0, TEXT_CHARS_MAX) : undefined;
}

async function problemOf(answer: Response): Promise<RunloreError> {
  const said: unknown = await answer.json().catch(() => undefined);
  const body = (typeof said === 'object' && said !== null ? said : {}) as Problem;
  const seconds = Number(answer.headers.get('retry-after') ?? NaN);
  const retryAfterMs = Number.isFinite(seconds) && seconds >= 0 ? seconds * 1000 : undefined;
  const told = textIn(body.detail) ?? textIn(body.title) ?? `the service answered ${answer.status}`;
  const kind = textIn(body.kind) ?? `${NOT_OURS}${answer.status}`;
  const hint = textIn(body.hint);
  return new RunloreError(kind, told, {
    status: answer.status,
    ...(hint ? { hint } : {}),
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
  });
}
