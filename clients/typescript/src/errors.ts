/** What goes wrong, with the service's own `kind`: a program matches on that, a person reads the message. */

/** A person may mend these, or they pass: a key, a place, a rate. */
const PASSING = [401, 403, 404, 408, 425, 429];
/** How the kind of an answer begins that says none itself. */
export const NOT_OURS = 'http_';

export class RunloreError extends Error {
  constructor(
    /** Stable and append-only, as in the service's docs; `unreachable` and the like are the client's own. */
    readonly kind: string,
    message: string,
    readonly details: { status?: number; hint?: string; retryAfterMs?: number; cause?: unknown } = {},
  ) {
    super(details.hint ? `${message} (${details.hint})` : message, { cause: details.cause });
    this.name = 'RunloreError';
  }

  get status(): number | undefined {
    return this.details.status;
  }

  /**
   * Whether the service said that this will never be taken, however often it is sent. What says nothing of a `kind`
   * comes from something in between: an outage. Only a body that is too large for a proxy is so tomorrow, too.
   */
  get isRefusal(): boolean {
    const status = this.details.status ?? 0;
    return status === 413 || (this.isOurs && status >= 400 && status < 500 && !PASSING.includes(status));
  }

  /** Whether the service itself answered this. */
  get isOurs(): boolean {
    return this.details.status !== undefined && !this.kind.startsWith(NOT_OURS);
  }
}

/** How a problem is told where nothing may be thrown: the run it concerns has ended well. */
export type Report = (problem: { message: string; error?: unknown }) => void;

export const warn: Report = ({ message, error }) => {
  console.warn(`runlore: ${message}${error === undefined ? '' : `: ${textOf(error)}`}`);
};

export function textOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause instanceof Error ? `: ${error.cause.message}` : '';
  return error.message + cause;
}
