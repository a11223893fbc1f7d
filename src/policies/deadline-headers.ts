/**
 * Deadline headers: carry the remaining time with a request, as a duration, because clocks differ.
 *
 * Promise: reading never throws, whatever a header holds, and reads no more than 16 characters of it. A value that makes no sense is ignored. The
 * time sent on is always less than the time left.
 * After: gRPC over HTTP/2 (`grpc-timeout`) and the rounding of grpc-js; Envoy (`x-envoy-expected-rq-timeout-ms`).
 */
import { longestWaitMs } from '../core/clock.js';

/** Where headers are found by their name in lower case: `(name) => headers.get(name)`, `(name) => request.headers[name]`. */
export type HeaderReader = (name: string) => string | readonly string[] | null | undefined;

/** In which header the time left is sent. */
export type DeadlineForm = 'holdfast' | 'grpc' | 'envoy';

/** The number of an attempt, from 1. Callers that retry send it, so that the retries of the services they call do not multiply with theirs. */
export const attemptHeader = 'request-attempt';

const headerNames: Readonly<Record<DeadlineForm, string>> = {
  holdfast: 'request-deadline-ms',
  grpc: 'grpc-timeout',
  envoy: 'x-envoy-expected-rq-timeout-ms',
};

const longestHeader = 16;
const milliseconds = /^\d{1,16}$/;
const grpcTimeout = /^(\d{1,8})([HMSmun])$/;
const grpcUnitsMs: Readonly<Record<string, number>> = {
  m: 1,
  S: 1_000,
  M: 60_000,
  H: 3_600_000,
  u: 1e-3,
  n: 1e-6,
};

/** Options of {@link parseDeadlineHeaders}. */
export interface ParseDeadlineOptions {
  /** The longest time accepted, in milliseconds; longer ones are cut to it. Default and maximum: 24.8 days. */
  readonly maxAcceptMs?: number | undefined;
}

/**
 * The milliseconds that a request allows; undefined when it says nothing valid. Of several headers the
 * nearest deadline applies; a repeated header is ignored.
 */
export function parseDeadlineHeaders(
  header: HeaderReader,
  { maxAcceptMs = longestWaitMs }: ParseDeadlineOptions = {},
): number | undefined {
  const nearestMs = Math.min(
    parseMilliseconds(header(headerNames.holdfast)),
    parseGrpcTimeout(header(headerNames.grpc)),
    parseMilliseconds(header(headerNames.envoy)),
  );
  return nearestMs === Number.POSITIVE_INFINITY ? undefined : Math.min(nearestMs, maxAcceptMs, longestWaitMs);
}

/** The number of the attempt that a request is; undefined when its caller does not retry. */
export function parseAttemptHeader(header: HeaderReader): number | undefined {
  const text = single(header(attemptHeader));
  return text !== undefined && /^[1-9]\d{0,3}$/.test(text) ? Number(text) : undefined;
}

/**
 * How much of the time left may be passed on, in whole milliseconds: less a margin for the way back of 1 %, at least
 * 5 ms. 0: the response would come too late, so the request is not worth sending.
 */
export function relayedMs(remainingMs: number): number {
  return Math.max(0, Math.floor(remainingMs - Math.max(5, remainingMs / 100)));
}

/**
 * The header that tells the called service how long it may take: `relayedMs(remainingMs)`. Without a deadline (`Infinity`)
 * there is none.
 */
export function deadlineHeaders(remainingMs: number, form: DeadlineForm = 'holdfast'): Record<string, string> {
  if (remainingMs === Number.POSITIVE_INFINITY) return {};
  const ms = relayedMs(remainingMs);
  return { [headerNames[form]]: form === 'grpc' ? formatGrpcTimeout(ms) : String(ms) };
}

/** Uses the finest unit that fits into eight digits, rounded down, so that the result is never longer than what was meant. */
function formatGrpcTimeout(ms: number): string {
  for (const unit of ['m', 'S', 'M'] as const) {
    const amount = Math.floor(ms / grpcUnitsMs[unit]!);
    if (amount < 1e8) return `${amount}${unit}`;
  }
  return `${Math.min(Math.floor(ms / grpcUnitsMs.H!), 99_999_999)}H`;
}

function parseMilliseconds(value: unknown): number {
  const text = single(value);
  return text !== undefined && milliseconds.test(text) ? Number(text) : Number.POSITIVE_INFINITY;
}

function parseGrpcTimeout(value: unknown): number {
  const text = single(value);
  const match = text === undefined ? null : grpcTimeout.exec(text);
  return match === null ? Number.POSITIVE_INFINITY : Number(match[1]) * grpcUnitsMs[match[2]!]!;
}

/** The single value of a header, if it is short enough to be read. */
function single(value: unknown): string | undefined {
  const only: unknown = Array.isArray(value) && value.length === 1 ? value[0] : value;
  return typeof only === 'string' && only.length <= longestHeader ? only : undefined;
}
