/**
 * Problem: an answer that describes an error, for people and for programs.
 *
 * After: RFC 9457 (Problem Details for HTTP APIs).
 */

/** The contents of a problem. */
export interface Problem {
  /** A URI that names the kind of problem. Default `about:blank`: the status says what kind it is, `code` which one. */
  readonly type?: string;
  readonly status: number;
  /** The reason phrase of the status, such as `Gateway Timeout`. */
  readonly title: string;
  readonly detail: string;
  /** The code of the holdfast error, such as `ERR_DEADLINE_EXCEEDED`. */
  readonly code: string;
  /** Whether the same request may succeed later, where that is known. */
  readonly retryable?: boolean;
  /** What else is sent along. */
  readonly headers?: Readonly<Record<string, string>>;
}

export const problemType = 'application/problem+json';

export function problemBody({ type = 'about:blank', title, status, detail, code, retryable }: Problem): string {
  return JSON.stringify({ type, title, status, detail, code, retryable });
}
