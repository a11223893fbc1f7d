/**
 * Problem: an answer that describes an error, for people and for programs.
 *
 * After: RFC 9457 (Problem Details for HTTP APIs).
 */

/** The contents of a problem. */
export interface Problem {
  /** A URI that identifies the kind of problem. Default `about:blank`: then the status tells the kind, and `code` the exact error. */
  readonly type?: string;
  readonly status: number;
  /** The reason phrase of the status, such as `Gateway Timeout`. */
  readonly title: string;
  readonly detail: string;
  /** The code of the holdfast error, such as `ERR_DEADLINE_EXCEEDED`. */
  readonly code: string;
  /** Whether the same request may succeed later, if known. */
  readonly retryable?: boolean;
  /** Further headers of the answer. */
  readonly headers?: Readonly<Record<string, string>>;
}

export const problemType = 'application/problem+json';

/**
 * Headers that a handler may have set before a problem is sent in its place: they describe another body, or let caches keep it. With some of them Node
 * could not send this one at all.
 */
export const unsentAnswerHeaders: readonly string[] = [
  ...['content-length', 'transfer-encoding', 'trailer', 'content-encoding', 'content-language', 'content-location'],
  ...['content-range', 'content-disposition', 'etag', 'last-modified', 'cache-control', 'expires'],
];

export function problemBody({ type = 'about:blank', title, status, detail, code, retryable }: Problem): string {
  return JSON.stringify({ type, title, status, detail, code, retryable });
}
