/**
 * Storability: what a shared cache may keep of a response, and for how long.
 *
 * Promise: what a response forbids is not kept; what it says nothing of is kept only for as long as the options say, and
 * never for a request with credentials.
 * After: RFC 9111 (HTTP caching) sections 3, 3.5, 4.2; RFC 5861 (stale-while-revalidate, stale-if-error).
 */
import type { AnswerHead } from '../capture.js';

/** How long a response is fresh, and how long it may be shown after that. */
export interface ResponseLifetime {
  readonly ttl: number;
  readonly staleWhileRevalidate: number;
  readonly staleIfError: number;
}

/** What may be kept: its lifetime, its age when it came, and the request headers that it depends on. */
export interface Storable {
  readonly lifetime: ResponseLifetime;
  readonly initialAgeMs: number;
  readonly vary: readonly string[];
}

/** Statuses that may be kept although the response does not say for how long. RFC 9110, section 15.1, without 5xx and 206. */
const heuristicStatuses: ReadonlySet<number> = /* @__PURE__ */ new Set([
  ...[200, 203, 204, 300, 301, 308, 404, 405, 410, 414],
]);
const longestMs = 2 ** 31 - 1;
const mostVary = 20;

/** Whether a response says that the handler failed, so that an older one may be shown in its place. */
export function isFailure(status: number): boolean {
  return status >= 500 || status === 429;
}

/**
 * Undefined for what may not be kept.
 *
 * @param isCredentialed - The request came with `Authorization` or cookies.
 * @param defaults - What holds where the response does not say.
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
  // It has no end.
  if (fields.get('content-type')?.startsWith('text/event-stream')) return undefined;
  const said = directivesOf(fields.get('cache-control'));
  if (said.has('no-store') || said.has('private') || said.has('no-cache')) return undefined;
  const isValidated = said.has('must-revalidate') || said.has('proxy-revalidate');
  // RFC 9111, 3.5, takes must-revalidate for a third word of this kind. Few who write it mean that.
  const isShared = said.has('public') || said.has('s-maxage');
  if (isCredentialed && !isShared) return undefined;
  const vary = varyOf(fields);
  if (vary === undefined) return undefined;

  const initialAgeMs = Math.max(msOf(fields.get('age') ?? '0'), apparentAgeMs(fields, wallMs));
  const statedMs = statedLifetimeMs(said, fields, wallMs);
  if (statedMs === undefined && !heuristicStatuses.has(status)) return undefined;
  const freshMs = (statedMs ?? defaults.ttl) - initialAgeMs;
  // What must be asked for anew is never shown when it is old; s-maxage says so as well, unless it is taken back in the same line.
  const mayBeStale = !isValidated && !said.has('s-maxage');
  const window = (name: 'stale-while-revalidate' | 'stale-if-error', otherwise: number) =>
    isValidated ? 0 : said.has(name) ? msOf(said.get(name)) : mayBeStale ? otherwise : 0;
  const staleWhileRevalidate = window('stale-while-revalidate', defaults.staleWhileRevalidate);
  const staleIfError = window('stale-if-error', defaults.staleIfError);
  // `max-age=0, stale-while-revalidate=60` is old at once and of use all the same.
  const isOfUse = freshMs > 0 || (statedMs !== undefined && freshMs + staleWhileRevalidate > 0);
  if (!isOfUse) return undefined;
  return {
    lifetime: {
      ttl: Math.max(1, freshMs),
      staleWhileRevalidate: Math.max(0, staleWhileRevalidate + Math.min(0, freshMs)),
      staleIfError: Math.max(0, staleIfError + Math.min(0, freshMs)),
    },
    ...{ initialAgeMs, vary },
  };
}

/** Of the headers that count here, all lines of one name joined. */
export function fieldsOf(headers: readonly string[]): ReadonlyMap<string, string> {
  const fields = new Map<string, string>();
  for (let index = 0; index < headers.length; index += 2) {
    const name = headers[index]!.toLowerCase();
    const before = fields.get(name);
    fields.set(name, before === undefined ? headers[index + 1]! : `${before}, ${headers[index + 1]}`);
  }
  return fields;
}

/** The directives of a `Cache-Control`, names in lower case; of those that are there twice the first counts. */
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

/** What the response says of its freshness. What cannot be read counts as nothing left. RFC 9111, section 4.2.1. */
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

/** By its date, for what a handler has fetched elsewhere and somebody else has kept before. RFC 9111, section 4.2.3. */
function apparentAgeMs(fields: ReadonlyMap<string, string>, wallMs: number): number {
  const seconds = Math.floor((wallMs - Date.parse(fields.get('date') ?? '')) / 1_000);
  return seconds > 0 ? Math.min(seconds * 1_000, longestMs) : 0;
}

function msOf(seconds: string | undefined): number {
  return /^\d+$/.test(seconds ?? '') ? Math.min(Number(seconds) * 1_000, longestMs) : 0;
}

/** The request headers that a response depends on; undefined for what nobody can know. */
function varyOf(fields: ReadonlyMap<string, string>): readonly string[] | undefined {
  const names = new Set<string>();
  for (const part of (fields.get('vary') ?? '').split(',')) {
    const name = part.trim().toLowerCase();
    if (name === '*') return undefined;
    if (name !== '') names.add(name);
  }
  // Answers that say these depend on the request, whether they mention it or not.
  const origin = fields.get('access-control-allow-origin');
  if (origin !== undefined && origin !== '*') names.add('origin');
  if (fields.has('content-encoding')) names.add('accept-encoding');
  return names.size > mostVary ? undefined : [...names].sort();
}
