/*!
 * This bundle contains structured-headers.
 *
 * MIT License
 *
 * Copyright (c) 2018-2026 Evert Pot
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
/**
 * Protocol: what the `Idempotency-Key` header means, which answers are stored, and what a replay looks like.
 *
 * Everything that a new version of the draft may change is in this file, and nothing else.
 * After: draft-ietf-httpapi-idempotency-key-header-07 (2025-10-15); RFC 9651 (structured fields), RFC 9457 (problem details). Where the draft is
 * silent, common practice of payment APIs: bare keys, `Idempotent-Replayed`.
 */
import { parseItem } from 'structured-headers';
import type { Problem } from '../problem.js';

/** In the draft's spelling. */
const keyHeader = 'Idempotency-Key';
const replayedHeader = 'Idempotent-Replayed';

/** The methods for which the draft defines the header. The others are safe or idempotent by themselves. */
export const defaultMethods: readonly string[] = ['POST', 'PATCH'];

const longestKey = 255;
/** Each character of a key may need a backslash; the rest is room for parameters. */
const longestHeader = 2 * longestKey + 200;

/** The result of parsing a request's key. */
export type ParsedKey =
  | { readonly kind: 'absent' }
  | { readonly kind: 'key'; readonly key: string }
  | { readonly kind: 'invalid'; readonly reason: string };

const absent: ParsedKey = { kind: 'absent' };

/**
 * Parses the key: a structured string, as the draft requires, or bare, as most APIs send it; both name the same key.
 *
 * @param values - Every header line of that name, or one string in which they are joined by `, `.
 */
export function parseKey(values: readonly string[]): ParsedKey {
  if (values.length === 0) return absent;
  if (values.length > 1) return invalid('the header is there more than once');
  const value = values[0]!.trim();
  if (value.length > longestHeader) return invalid(`it is longer than ${longestKey} characters`);
  const key = value.startsWith('"') ? structuredString(value) : value;
  if (key === undefined) return invalid('it begins like a structured string, which it is not');
  if (key === '') return invalid('it is empty');
  if (key.length > longestKey) return invalid(`it is longer than ${longestKey} characters`);
  // A blank key, or keys that differ only in surrounding blanks, would be a mistake that nobody notices.
  if (!/^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/.test(key)) {
    return invalid('it has characters besides printable ASCII, or blanks around it');
  }
  return { kind: 'key', key };
}

/** Splits lines that a platform has joined into one. A structured string has its commas inside quotes. */
export function joinedLines(value: string | readonly string[] | null | undefined): readonly string[] {
  if (value === null || value === undefined) return [];
  if (typeof value !== 'string') return value;
  return value.startsWith('"') ? [value] : value.split(/, |,$/);
}

function structuredString(value: string): string | undefined {
  try {
    const [item] = parseItem(value);
    return typeof item === 'string' ? item : undefined;
  } catch {
    return undefined;
  }
}

function invalid(reason: string): ParsedKey {
  return { kind: 'invalid', reason };
}

/** Formats a key as a header value: a structured string. */
function keyHeaderValue(key: string): string {
  // Looking first costs a fifth of a replacement that finds nothing.
  const escaped = /["\\]/.test(key) ? key.replace(/["\\]/g, '\\$&') : key;
  return `"${escaped}"`;
}

/** Statuses that are not stored: another try may succeed (408, 421, 425, 429), or the answer depends on the caller (401, 403). */
const passingStatuses: ReadonlySet<number> = /* @__PURE__ */ new Set([401, 403, 408, 421, 425, 429]);

/** Whether an answer with this status is final. A 5xx is not; a 409 of the handler itself is. */
export function isKeptStatus(status: number): boolean {
  return status >= 200 && status < 500 && !passingStatuses.has(status);
}

/** Headers that belong to this connection, moment or caller, or are computed anew for each answer. */
const deniedHeaders: ReadonlySet<string> = /* @__PURE__ */ new Set([
  ...['set-cookie', 'date', 'connection', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade'],
  ...['content-length', 'vary', 'alt-svc', 'strict-transport-security', 'server-timing', 'traceparent'],
  ...['x-request-id', 'age', 'idempotency-key', 'idempotent-replayed'],
]);

/** Whether a header is excluded from the record by its name. */
export function isDeniedHeader(lowerCaseName: string): boolean {
  return (
    deniedHeaders.has(lowerCaseName) ||
    lowerCaseName.startsWith('access-control-') ||
    lowerCaseName.startsWith('proxy-') ||
    lowerCaseName.startsWith('ratelimit-')
  );
}

/** The headers to store, as a flat list of alternating names and values. Headers listed in `Connection` belong to the connection and are left out. */
export function keptHeaders(headers: readonly (readonly [name: string, value: unknown])[]): string[] {
  const kept: string[] = [];
  let listed: readonly string[] | undefined;
  for (const [name, value] of headers) {
    const lowerCaseName = name.toLowerCase();
    if (lowerCaseName === 'connection')
      listed = String(value)
        .toLowerCase()
        .split(/\s*,\s*/);
    if (value === undefined || isDeniedHeader(lowerCaseName)) continue;
    if (Array.isArray(value)) for (const one of value) kept.push(name, String(one));
    else kept.push(name, String(value));
  }
  return listed === undefined ? kept : without(kept, listed);
}

function without(kept: readonly string[], listed: readonly string[]): string[] {
  return kept.filter((_, index) => !listed.includes(kept[index - (index % 2)]!.toLowerCase()));
}

/** Headers that a replay carries in addition to the record. It is one caller's answer: no cache may give it to another. */
export function replayMarks(key: string): readonly (readonly [name: string, value: string])[] {
  return [
    [replayedHeader, 'true'],
    [keyHeader, keyHeaderValue(key)],
    ['Cache-Control', 'no-store'],
  ];
}

/** An answer sent in place of the handler's. */
export type Refusal =
  | { readonly kind: 'missing-key' }
  | { readonly kind: 'invalid-key'; readonly reason: string }
  | { readonly kind: 'body-too-large'; readonly maxBytes: number }
  | { readonly kind: 'key-reused' }
  | { readonly kind: 'in-progress'; readonly retryAfterMs: number }
  | { readonly kind: 'outcome-unknown' }
  | { readonly kind: 'result-not-stored' }
  | { readonly kind: 'store-unavailable' };

interface Wording {
  readonly status: number;
  readonly code: string;
  readonly retryable: boolean;
  readonly detail: string;
}

const wordings: Readonly<Record<Refusal['kind'], Wording>> = {
  'missing-key': {
    ...{ status: 400, code: 'ERR_KEY_MISSING', retryable: false },
    detail: `This operation needs an ${keyHeader} header.`,
  },
  'invalid-key': {
    ...{ status: 400, code: 'ERR_KEY_MISSING', retryable: false },
    detail: `The ${keyHeader} header is invalid`,
  },
  'body-too-large': {
    ...{ status: 413, code: 'ERR_BODY_TOO_LARGE', retryable: false },
    detail: 'The body is too long to be compared with that of a retry',
  },
  'key-reused': {
    ...{ status: 422, code: 'ERR_KEY_REUSED', retryable: false },
    detail: 'This key was used with another request. A new request needs a new key.',
  },
  'in-progress': {
    ...{ status: 409, code: 'ERR_IN_FLIGHT', retryable: true },
    detail: 'A request with this key is in progress. Repeat it with the same key to get its response.',
  },
  'outcome-unknown': {
    ...{ status: 409, code: 'ERR_IN_DOUBT', retryable: false },
    detail: 'A request with this key was started and its outcome is unknown. It will not be run again.',
  },
  'result-not-stored': {
    ...{ status: 409, code: 'ERR_IN_DOUBT', retryable: false },
    detail: 'The request with this key was handled, but its response is not available.',
  },
  'store-unavailable': {
    ...{ status: 503, code: 'ERR_STORE', retryable: true },
    detail: 'The store of idempotency keys is unavailable; the request was not run.',
  },
};

const titles: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  409: 'Conflict',
  413: 'Content Too Large',
  422: 'Unprocessable Content',
  503: 'Service Unavailable',
};

/**
 * A refusal as a problem of RFC 9457.
 *
 * @param documentation - The address of the API's page on idempotency; it becomes the type of the problem.
 */
export function problemOf(refusal: Refusal, documentation: string | undefined): Problem {
  const { kind } = refusal;
  const { status, code, retryable, detail } = wordings[kind];
  const headers: Record<string, string> = { 'Cache-Control': 'no-store' };
  if (documentation !== undefined) headers.Link = `<${documentation}>; rel="describedby"`;
  if (kind === 'in-progress') headers['Retry-After'] = String(Math.max(1, Math.ceil(refusal.retryAfterMs / 1_000)));
  if (kind === 'store-unavailable') headers['Retry-After'] = '1';
  return {
    type: documentation === undefined ? `urn:holdfast:idempotency:${kind}` : `${documentation}#${kind}`,
    status,
    title: titles[status]!,
    detail: detailOf(refusal, detail),
    code,
    retryable,
    headers,
  };
}

function detailOf(refusal: Refusal, detail: string): string {
  if (refusal.kind === 'invalid-key') return `${detail}: ${refusal.reason}.`;
  if (refusal.kind === 'body-too-large') return `${detail}: at most ${refusal.maxBytes} bytes.`;
  return detail;
}
