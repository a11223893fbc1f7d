/**
 * Retry-After: how long the service asks its callers to wait, in all forms in which that is expressed.
 *
 * Promise: parsing never throws, whatever a header holds. At most the first 100 characters of a header are read. A value that makes no sense is
 * ignored.
 * After: RFC 9110, 10.2.3 and 5.6.7 (three date forms); draft-ietf-httpapi-ratelimit-headers; gRPC A6 (pushback).
 */
import type { Outcome } from '../../core/outcome.js';

/** Milliseconds to wait, or `'never'`: the other side refuses further attempts. */
export type RetryHint = number | 'never';

interface HeaderSource {
  readonly headers?: object;
  readonly response?: { readonly headers?: object };
  /** Of the AWS SDK. */
  readonly $response?: { readonly headers?: object };
  /** Of gRPC. */
  readonly metadata?: object;
  readonly retryAfterMs?: unknown;
}

type HeaderReader = (name: string) => string | undefined;

const longestHeader = 100;
/** The start of 2024 in seconds: a larger `X-RateLimit-Reset` is an instant, a smaller one a time span. */
const epochBeginsSeconds = 1_704_067_200;

/**
 * Reads the hint of an outcome: `retryAfterMs` of its error or value, else the headers of either, of its response, or of a gRPC status.
 *
 * @param wallNowMs - Now, in milliseconds since 1970, for dates.
 */
export function retryHintOf(outcome: Outcome, wallNowMs: number): RetryHint | undefined {
  const carrier = outcome.ok ? outcome.value : outcome.error;
  try {
    const { headers, response, $response, metadata, retryAfterMs } = (carrier ?? {}) as HeaderSource;
    if (typeof retryAfterMs === 'number' && retryAfterMs >= 0) return retryAfterMs;
    const source = headers ?? response?.headers ?? $response?.headers ?? metadata;
    return source === undefined ? undefined : retryHintOfHeaders((name) => headerOf(source, name), wallNowMs);
  } catch {
    // A getter of a foreign object threw: no hint.
    return undefined;
  }
}

/** The hint that a set of headers gives. The most exact form takes precedence. */
function retryHintOfHeaders(header: HeaderReader, wallNowMs: number): RetryHint | undefined {
  const pushback = header('grpc-retry-pushback-ms');
  if (pushback !== undefined) return /^\d{1,9}$/.test(pushback) ? Number(pushback) : 'never';
  const nowMs = serverNowMs(header, wallNowMs);
  return (
    parseNumber(header('retry-after-ms'), 1) ??
    parseRetryAfter(header('retry-after'), nowMs) ??
    parseReset(header('ratelimit-reset'), header('ratelimit-remaining'), nowMs) ??
    parseReset(header('x-ratelimit-reset'), header('x-ratelimit-remaining'), nowMs) ??
    parseReset(header('x-rate-limit-reset'), header('x-rate-limit-remaining'), nowMs)
  );
}

/**
 * Now, in milliseconds since 1970, by the clock that the instants in a response are from. With a clock of ours that is minutes off, a short wait would
 * become a long one, or none. `Date` is when the response was made, and a cache adds its `Age`; without a date our clock counts.
 */
export function serverNowMs(header: HeaderReader, wallNowMs: number): number {
  const madeMs = parseHttpDate(header('date') ?? '', wallNowMs);
  return madeMs === undefined ? wallNowMs : madeMs + (parseNumber(header('age'), 1_000) ?? 0);
}

/** `Retry-After` of HTTP: seconds or a date. Of several values the longest counts. */
export function parseRetryAfter(value: string | undefined, nowMs: number): number | undefined {
  if (value === undefined) return undefined;
  const date = parseHttpDate(value, nowMs);
  if (date !== undefined) return Math.max(0, date - nowMs);
  let longest: number | undefined;
  for (const part of value.split(',')) {
    const ms = parseNumber(part.trim(), 1_000);
    if (ms === undefined) return undefined;
    longest = Math.max(longest ?? 0, ms);
  }
  return longest;
}

/** Parses the seconds until a quota is full again, or the instant at which it is. While quota is left, it is no reason to wait. */
function parseReset(reset: string | undefined, remaining: string | undefined, nowMs: number): number | undefined {
  if (remaining !== undefined && Number.parseFloat(remaining) !== 0) return undefined;
  const given = parseNumber(reset?.trim(), 1);
  return given === undefined ? undefined : msUntilReset(given, nowMs);
}

/** The milliseconds until a reset, which is given as a time span in seconds, or as an instant in seconds or milliseconds since 1970. */
export function msUntilReset(given: number, nowMs: number): number {
  if (!isInstant(given)) return given * 1_000;
  const instantMs = given < epochBeginsSeconds * 1_000 ? given * 1_000 : given;
  return Math.max(0, instantMs - nowMs);
}

/** Whether a reset is given as an instant. */
export function isInstant(given: number): boolean {
  return given >= epochBeginsSeconds;
}

function parseNumber(value: string | undefined, scale: number): number | undefined {
  if (value === undefined || !/^\d{1,20}(?:\.\d{1,9})?$/.test(value)) return undefined;
  return Number(value) * scale;
}

const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
const fixdate = /^[A-Z][a-z]{2}, (?<day>\d{2}) (?<month>[A-Z][a-z]{2}) (?<year>\d{4}) (?<time>\d{2}:\d{2}:\d{2}) GMT$/;
const rfc850 = /^[A-Z][a-z]{5,8}, (?<day>\d{2})-(?<month>[A-Z][a-z]{2})-(?<year>\d{2}) (?<time>\d{2}:\d{2}:\d{2}) GMT$/;
const asctime = /^[A-Z][a-z]{2} (?<month>[A-Z][a-z]{2}) (?<day>[ \d]\d) (?<time>\d{2}:\d{2}:\d{2}) (?<year>\d{4})$/;

/** An HTTP date in any of its three forms, in milliseconds since 1970. */
export function parseHttpDate(value: string, wallNowMs: number): number | undefined {
  const groups = (fixdate.exec(value) ?? rfc850.exec(value) ?? asctime.exec(value))?.groups;
  if (groups === undefined) return undefined;
  const month = months.indexOf(groups.month ?? '');
  const [hour = 0, minute = 0, second = 0] = (groups.time ?? '').split(':').map(Number);
  const day = Number(groups.day);
  if (hour > 23 || minute > 59 || second > 60) return undefined;
  const digits = groups.year ?? '';
  const year = digits.length === 2 ? fullYear(Number(digits), wallNowMs) : Number(digits);
  const instant = new Date(0);
  // Not `Date.UTC`, which maps the years 0 to 99 to 1900 to 1999.
  instant.setUTCFullYear(year, month, day);
  // The day does not exist, or the month was unknown, which is -1 here.
  if (instant.getUTCMonth() !== month) return undefined;
  return instant.setUTCHours(hour, minute, second);
}

/** RFC 9110: a two-digit year that seems more than 50 years ahead is in the past. */
function fullYear(twoDigits: number, wallNowMs: number): number {
  const thisYear = new Date(wallNowMs).getUTCFullYear();
  const year = thisYear - (thisYear % 100) + twoDigits;
  return year > thisYear + 50 ? year - 100 : year;
}

/** Reads a header from a `Headers` object or a plain one, cut to a length that is always quick to process. */
export function headerOf(source: object, name: string, longest = longestHeader): string | undefined {
  const { get } = source as { readonly get?: unknown };
  const value =
    typeof get === 'function'
      ? get.call(source, name)
      : plainHeaderOf(source as Readonly<Record<string, unknown>>, name);
  // gRPC has an empty list for what is not there.
  const text = Array.isArray(value) && value.length > 0 ? value.slice(0, 10).join(', ') : value;
  if (typeof text === 'number') return String(text);
  return typeof text === 'string' ? text.slice(0, longest + 1) : undefined;
}

function plainHeaderOf(source: Readonly<Record<string, unknown>>, name: string): unknown {
  if (source[name] !== undefined) return source[name];
  for (const key of Object.keys(source)) {
    if (key.length === name.length && key.toLowerCase() === name) return source[key];
  }
  return undefined;
}
