/**
 * Problem: an answer that says what went wrong, for people and for programs.
 *
 * After: RFC 9457 (Problem Details for HTTP APIs).
 */

/** What is told. `type` is `about:blank`: the status says what kind of problem it is, `code` which one. */
export interface Problem {
  readonly status: number;
  /** The words of the status, such as `Gateway Timeout`. */
  readonly title: string;
  readonly detail: string;
  /** The code of the error of ours, such as `ERR_DEADLINE_EXCEEDED`. */
  readonly code: string;
}

export const problemType = 'application/problem+json';

export function problemBody({ status, title, detail, code }: Problem): string {
  return JSON.stringify({ type: 'about:blank', title, status, detail, code });
}
