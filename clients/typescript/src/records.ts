/**
 * The SDK's session lines as runs: one line is one record, known by its hash.
 *
 * Invariant: the same line has the same run id wherever it is read from (a write of the memory store, the archive of
 * a workspace, `runlore import agents-sdk`), so a run that comes twice takes effect once.
 */

import { createHash } from 'node:crypto';

import { RunloreError } from './errors.js';

export interface Run {
  run: string;
  /** A run that was interrupted and went on is one run: its later line is a higher attempt, and stands for both. */
  attempt: number;
  line: string;
  /** As the record says it; empty where it does not. */
  updatedAt: string;
}

const NOT_ASCII = /[^\x00-\x7f]/g;
const VERBATIM = /^[a-z0-9][a-z0-9._-]{0,127}$/;
const NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/;
const ID_CHARS_MAX = 1024;
/** Control characters, half a surrogate pair, a step of a path that climbs. */
const REFUSED = /[\x00-\x1f\x7f]|\p{Surrogate}|(^|[\\/])\.\.($|[\\/])/u;
const RESERVED_STEMS = /^(con|prn|aux|nul|com\d|lpt\d)$/;
const ALIAS_PREFIX = 'rl-';

/** `line` with every character beyond ASCII as its JSON escape: readers split lines at a raw U+2028, too. */
export function toAscii(line: string): string {
  return line.replace(NOT_ASCII, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function isFileSafe(value: string): boolean {
  const stem = value.split('.', 1)[0] ?? '';
  return (
    VERBATIM.test(value) && !value.startsWith(ALIAS_PREFIX) && !value.endsWith('.') && !RESERVED_STEMS.test(stem)
  );
}

/** The name of a project or a memory. Raises `RunloreError` where the service would take none: `..` climbs in a path. */
export function checkedName(value: string, what: string): string {
  if (NAME.test(value) && isFileSafe(value)) return value;
  const hint = "use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit";
  throw new RunloreError('invalid_id', `${what} ${JSON.stringify(value)} is not a name`, { hint });
}

/** Whether the service takes this as a rollout's id. */
export function isAcceptedId(value: string): boolean {
  return value.trim() !== '' && [...value].length <= ID_CHARS_MAX && !REFUSED.test(value);
}

/** The file-safe name of a rollout, as the service makes it. */
export function alias(original: string): string {
  if (isFileSafe(original)) return original;
  const ascii = original.toLowerCase().replace(NOT_ASCII, '');
  const readable = ascii.replace(/[^a-z0-9]+/g, '-').slice(0, 40).replace(/^-+|-+$/g, '');
  const digest = createHash('sha256').update(original, 'utf8').digest('hex').slice(0, 32);
  return readable ? `${ALIAS_PREFIX}${readable}-${digest}` : `${ALIAS_PREFIX}${digest}`;
}

/** The runs of a session file of `rollout`, in order. Lines that are no record are told to `skip`. */
export function runsOf(text: string, rollout: string, skip: (why: string) => void = () => {}): Run[] {
  const runs: Run[] = [];
  let before: Payload | undefined;
  // Only '\n' ends a line here: a U+2028 inside of a string is content.
  for (const raw of text.split('\n')) {
    const line = toAscii(raw.endsWith('\r') ? raw.slice(0, -1) : raw);
    if (!line.trim()) continue;
    const payload = parsed(line);
    if (payload === undefined) {
      skip(`a line of the session file of ${rollout} is no record`);
      continue;
    }
    const last = runs.at(-1);
    const updatedAt = typeof payload.updated_at === 'string' ? payload.updated_at : '';
    runs.push(
      last && before && goesOn(before, payload)
        ? { run: last.run, attempt: last.attempt + 1, line, updatedAt }
        : { run: `${alias(rollout)}-${hashOf(line)}`, attempt: 1, line, updatedAt },
    );
    before = payload;
  }
  return runs;
}

type Payload = Record<string, unknown>;

function parsed(line: string): Payload | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
  const payload = value as Payload;
  const isOne = ['input', 'generated_items', 'terminal_metadata'].some((name) => name in payload);
  return isOne ? payload : undefined;
}

/** Whether `later` is the run of `earlier`, resumed after its interruption: what it was asked stays, its items grow. */
function goesOn(earlier: Payload, later: Payload): boolean {
  return (
    Array.isArray(earlier.interruptions) &&
    earlier.interruptions.length > 0 &&
    JSON.stringify(earlier.input) === JSON.stringify(later.input)
  );
}

function hashOf(line: string): string {
  return createHash('sha256').update(line, 'ascii').digest('hex').slice(0, 32);
}
