/**
 * The lookup service over HTTP, as docs/HTTP.md says it: what the two stores need of it, and no more.
 *
 * Every call throws `RunloreError`; who must not throw (a run has ended) catches it where that is decided.
 */

import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { Readable } from 'node:stream';

import { RunloreError } from './errors.js';

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
/** Tries of a read; what is written is tried again by the outbox. */
const READ_ATTEMPTS_MAX = 3;
const RETRY_AFTER_MS_MAX = 5_000;

export class Service {
  private readonly root: string;
  private readonly options: ServiceOptions;

  constructor(options: ServiceOptions) {
    this.options = options;
    this.root = `${options.url.replace(/\/+$/, '')}/v1/projects/${encodeURIComponent(options.project)}`;
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
    const timeout = ANSWER_MS_MAX + 1000 * (query.waitSeconds ?? 0);
    return (await (await this.read(path, timeout)).json()) as Seed;
  }

  /** Whether the snapshot stage is done with what a run's attempt left. */
  async isPlaced(run: string, attempt: number): Promise<boolean> {
    let found: { runs: { attempt: number | null; steps: { stage: string }[] }[] };
    try {
      found = (await (await this.read(`/runs/${encodeURIComponent(run)}`, ANSWER_MS_MAX)).json()) as typeof found;
    } catch (error) {
      if (error instanceof RunloreError && error.status === 404) return false;
      throw error;
    }
    return found.runs.some((one) => one.attempt === attempt && one.steps.some((step) => step.stage === 'snapshot'));
  }

  /** The memory files of a seed, as a tar. */
  async memoryTar(seed: string): Promise<AsyncIterable<Uint8Array>> {
    return this.tar(`/seeds/${encodeURIComponent(seed)}/memory.tar`);
  }

  /** The whole workspace of a seed: its snapshot with the memory files over it. */
  async workspaceTar(seed: string): Promise<AsyncIterable<Uint8Array>> {
    return this.tar(`/seeds/${encodeURIComponent(seed)}/workspace.tar`);
  }

  /** Hand over a workspace's tar; the same bytes twice are one object. */
  async upload(file: string): Promise<Claim> {
    const { size } = await stat(file);
    const body = Readable.toWeb(createReadStream(file)) as ReadableStream;
    const headers = { 'content-type': 'application/x-tar', 'content-length': String(size) };
    const init = { method: 'POST', body, headers, duplex: 'half' } as RequestInit;
    return (await (await this.send('/archives', init, TRANSFER_MS_MAX)).json()) as Claim;
  }

  async publish(event: RunEvent): Promise<void> {
    const body = JSON.stringify(event);
    const init = { method: 'POST', body, headers: { 'content-type': 'application/json' } };
    await (await this.send('/events', init, TRANSFER_MS_MAX)).arrayBuffer();
  }

  private async tar(path: string): Promise<AsyncIterable<Uint8Array>> {
    const answer = await this.read(path, TRANSFER_MS_MAX);
    if (answer.body === null) throw new RunloreError('bad_answer', `${path} answered without a body`);
    return answer.body as unknown as AsyncIterable<Uint8Array>;
  }

  private async read(path: string, timeoutMs: number): Promise<Response> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.send(path, { method: 'GET' }, timeoutMs);
      } catch (error) {
        const wait = error instanceof RunloreError ? waitBefore(error, attempt) : undefined;
        if (wait === undefined || attempt >= READ_ATTEMPTS_MAX) throw error;
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    }
  }

  private async send(path: string, init: RequestInit, timeoutMs: number): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.options.key) headers.set('authorization', `Bearer ${this.options.key}`);
    let answer: Response;
    try {
      answer = await fetch(this.root + path, { ...init, headers, signal: AbortSignal.timeout(timeoutMs) });
    } catch (cause) {
      throw new RunloreError('unreachable', `the service at ${this.options.url} does not answer`, { cause });
    }
    if (answer.ok) return answer;
    throw await problemOf(answer);
  }
}

/** How long to wait before a read is tried again, in milliseconds; undefined where that is of no use. */
function waitBefore(error: RunloreError, attempt: number): number | undefined {
  if (error.kind !== 'unreachable' && error.status !== 503 && error.status !== 502) return undefined;
  return Math.min(error.details.retryAfterMs ?? 100 * 2 ** attempt, RETRY_AFTER_MS_MAX);
}

/** RFC 9457, with the service's own members. */
interface Problem {
  kind?: string;
  title?: string;
  detail?: string;
  hint?: string;
}

async function problemOf(answer: Response): Promise<RunloreError> {
  const body = (await answer.json().catch(() => ({}))) as Problem;
  const seconds = Number(answer.headers.get('retry-after') ?? NaN);
  const retryAfterMs = Number.isFinite(seconds) ? seconds * 1000 : undefined;
  const message = body.detail ?? body.title ?? `the service answered ${answer.status}`;
  return new RunloreError(body.kind ?? `http_${answer.status}`, message, {
    status: answer.status,
    ...(body.hint ? { hint: body.hint } : {}),
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
  });
}
