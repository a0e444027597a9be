/** What goes wrong, with the service's own `kind`: a program matches on that, a person reads the message. */

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

  /** Whether the service said that this will never be taken, however often it is sent. */
  get isRefusal(): boolean {
    return [400, 409, 413, 415, 416, 422].includes(this.details.status ?? 0);
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
