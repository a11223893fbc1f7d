/**
 * Storability: what a shared cache may store of a response, and for how long.
 *
 * Promise: a response that forbids storing is not stored. A response that says nothing about it is stored only for as long as the options say, and
 * never for a request with credentials.
 * After: RFC 9111 (HTTP caching) sections 3, 3.5, 4.2; RFC 5861 (stale-while-revalidate, stale-if-error).
 */
import type { AnswerHead } from '../response-head.js';

/** How long a response is fresh, and how long it may be served stale after that. */
export interface ResponseLifetime {
  readonly ttl: number;
  readonly staleWhileRevalidate: number;
  readonly staleIfError: number;
}

/** What may be stored: the response's lifetime, its age on arrival, and the request headers that it depends on. */
export interface Storable {
  readonly lifetime: ResponseLifetime;
  readonly initialAgeMs: number;
  readonly vary: readonly string[];
}

/** Statuses that may be stored even if the response does not say for how long. RFC 9110, section 15.1, without 5xx and 206. */
const heuristicStatuses: ReadonlySet<number> = /* @__PURE__ */ new Set([
  ...[200, 203, 204, 300, 301, 308, 404, 405, 410, 414],
]);
const longestMs = 2 ** 31 - 1;
const mostVary = 20;

/** Whether a response reports a failure, so that an older one may be served instead. */
export function isFailure(status: number): boolean {
  return status >= 500 || status === 429;
}

/**
 * Undefined for a response that may not be stored.
 *
 * @param isCredentialed - Whether the request came with `Authorization` or cookies.
 * @param defaults - What applies if the response does not say.
 */
export function storableOf(
  { status, headers }: AnswerHead,
  isCredentialed: boolean,
  defaults: ResponseLifetime,
  wallMs: number,
): Storable | undefined {
  if (status < 200 || status === 206 || status === 304 || isFailure(status)) return undefined;
  const fields = fieldsOf(headers);
  if (fields.has('set-cookie') || fields.has('trailer') || fields.has('content-range')) return undefined;
  // An event stream has no end.
  if (fields.get('content-type')?.startsWith('text/event-stream')) return undefined;
  const said = directivesOf(fields.get('cache-control'));
  if (said.has('no-store') || said.has('private') || said.has('no-cache')) return undefined;
  const isValidated = said.has('must-revalidate') || said.has('proxy-revalidate');
  // RFC 9111, 3.5, also counts must-revalidate. Few authors of that directive mean it so.
  const isShared = said.has('public') || said.has('s-maxage');
  if (isCredentialed && !isShared) return undefined;
  const vary = varyOf(fields);
  if (vary === undefined) return undefined;

  const initialAgeMs = Math.max(msOf(fields.get('age') ?? '0'), apparentAgeMs(fields, wallMs));
  const statedMs = statedLifetimeMs(said, fields, wallMs);
  if (statedMs === undefined && !heuristicStatuses.has(status)) return undefined;
  const freshMs = (statedMs ?? defaults.ttl) - initialAgeMs;
  // A response that must be revalidated is never served stale. `s-maxage` demands that too, unless the same line revokes it.
  const mayBeStale = !isValidated && !said.has('s-maxage');
  const window = (name: 'stale-while-revalidate' | 'stale-if-error', otherwise: number) =>
    isValidated ? 0 : said.has(name) ? msOf(said.get(name)) : mayBeStale ? otherwise : 0;
  const staleWhileRevalidate = window('stale-while-revalidate', defaults.staleWhileRevalidate);
  const staleIfError = window('stale-if-error', defaults.staleIfError);
  // `max-age=0, stale-while-revalidate=60` is stale at once and still useful.
  const isOfUse = freshMs > 0 || (statedMs !== undefined && freshMs + staleWhileRevalidate > 0);
  if (!isOfUse) return undefined;
  return {
    lifetime: {
      ttl: Math.max(1, freshMs),
      staleWhileRevalidate: Math.max(0, staleWhileRevalidate + Math.min(0, freshMs)),
      staleIfError: Math.max(0, staleIfError + Math.min(0, freshMs)),
    },
    initialAgeMs,
    vary,
  };
}

/** The headers that matter here, with all lines of one name joined. */
export function fieldsOf(headers: readonly string[]): ReadonlyMap<string, string> {
  const fields = new Map<string, string>();
  for (let index = 0; index < headers.length; index += 2) {
    const name = headers[index]!.toLowerCase();
    const before = fields.get(name);
    fields.set(name, before === undefined ? headers[index + 1]! : `${before}, ${headers[index + 1]}`);
  }
  return fields;
}

/** The directives of a `Cache-Control`, with names in lower case. Of a repeated directive the first one counts. */
function directivesOf(value: string | undefined): ReadonlyMap<string, string> {
  const directives = new Map<string, string>();
  for (const [, name, quoted, token] of (value ?? '').matchAll(
    /([^\s,;="]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]*)))?/g,
  )) {
    const key = name!.toLowerCase();
    if (!directives.has(key)) directives.set(key, quoted ?? token ?? '');
  }
  return directives;
}

/** The freshness lifetime that the response states. A value that cannot be parsed counts as none left. RFC 9111, section 4.2.1. */
function statedLifetimeMs(
  said: ReadonlyMap<string, string>,
  fields: ReadonlyMap<string, string>,
  wallMs: number,
): number | undefined {
  for (const name of ['s-maxage', 'max-age']) if (said.has(name)) return msOf(said.get(name));
  const expires = fields.get('expires');
  if (expires === undefined) return undefined;
  const date = Date.parse(fields.get('date') ?? '');
  const left = Date.parse(expires) - (Number.isNaN(date) ? wallMs : date);
  return Number.isNaN(left) ? 0 : Math.min(Math.max(0, left), longestMs);
}

/** The age by the response's date, for a response that its handler fetched elsewhere and another cache stored before. RFC 9111, section 4.2.3. */
function apparentAgeMs(fields: ReadonlyMap<string, string>, wallMs: number): number {
  const seconds = Math.floor((wallMs - Date.parse(fields.get('date') ?? '')) / 1_000);
  return seconds > 0 ? Math.min(seconds * 1_000, longestMs) : 0;
}

function msOf(seconds: string | undefined): number {
  return /^\d+$/.test(seconds ?? '') ? Math.min(Number(seconds) * 1_000, longestMs) : 0;
}

/** The request headers that a response depends on; undefined if they cannot be known. */
function varyOf(fields: ReadonlyMap<string, string>): readonly string[] | undefined {
  const names = new Set<string>();
  for (const part of (fields.get('vary') ?? '').split(',')) {
    const name = part.trim().toLowerCase();
    if (name === '*') return undefined;
    if (name !== '') names.add(name);
  }
  // Answers with these headers depend on the request, whether `Vary` says so or not.
  const origin = fields.get('access-control-allow-origin');
  if (origin !== undefined && origin !== '*') names.add('origin');
  if (fields.has('content-encoding')) names.add('accept-encoding');
  return names.size > mostVary ? undefined : [...names].sort();
}
