/**
 * Load: users who come at a fixed rate, whether or not those before them have been answered (an open loop).
 *
 * Promise: both paths get the same requests at the same instants; the number of requests and the time of each are
 * bounded; a user's wait counts from the instant at which he meant to come, so a late generator hides nothing.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { seededRandom } from 'holdfast/testing';
import { actIndexAt } from './acts.ts';

export const paths = ['naked', 'protected'] as const;
export type Path = (typeof paths)[number];

/** After this time a user goes away, on either path. */
export const patienceMs = 10_000;

const symbols = ['ACME', 'KELP', 'REEF', 'SURF', 'TIDE'];

/** How one user's request ended. `stale`: answered by the fallback, with an old price. */
export type Ending =
  | { readonly kind: 'fresh' }
  | { readonly kind: 'stale' }
  | { readonly kind: 'failed'; readonly error: string };

export interface Result {
  readonly requestNumber: number;
  readonly isCharge: boolean;
  /** The act in which the user came. */
  readonly actIndex: number;
  readonly latencyMs: number;
  readonly ending: Ending;
}

/** Everything that happened to the users of one path. */
export interface PathLog {
  readonly results: Result[];
  waiting: number;
  waitingMax: number;
}

export type Logs = Readonly<Record<Path, PathLog>>;

export interface LoadOptions {
  readonly origin: string;
  readonly seed: number;
  readonly ratePerSecond: number;
  readonly durationMs: number;
  readonly logs: Logs;
  readonly signal: AbortSignal;
}

interface UserRequest {
  readonly requestNumber: number;
  /** Whose price is asked for; undefined for a charge. */
  readonly symbol: string | undefined;
}

interface Arrival extends UserRequest {
  readonly actIndex: number;
  readonly dueMs: number;
}

export function emptyLogs(): Logs {
  const empty = (): PathLog => ({ results: [], waiting: 0, waitingMax: 0 });
  return { naked: empty(), protected: empty() };
}

/** The first calls of a process are slow, whatever is called: a few on each path that nobody counts. */
export async function warmUp(origin: string, signal: AbortSignal): Promise<void> {
  for (let round = 0; round < 10; round++) {
    signal.throwIfAborted();
    const visits = symbols.map((symbol) => ({ requestNumber: -1, symbol }));
    await Promise.all(paths.flatMap((path) => visits.map((request) => ask(`${origin}/${path}`, request))));
  }
}

/** Sends all requests and resolves when every user has been answered or has gone away. */
export async function runLoad({ origin, seed, ratePerSecond, durationMs, logs, signal }: LoadOptions): Promise<void> {
  const draw = seededRandom(seed).fork('load');
  const requests = Math.floor((ratePerSecond * durationMs) / 1_000);
  const beganMs = performance.now();
  const users: Promise<void>[] = [];
  for (let requestNumber = 0; requestNumber < requests; requestNumber++) {
    const afterMs = (requestNumber * 1_000) / ratePerSecond;
    const arrival: Arrival = {
      requestNumber,
      actIndex: actIndexAt(afterMs, durationMs),
      dueMs: beganMs + afterMs,
      symbol: draw.chance(0.25) ? undefined : draw.pick(symbols),
    };
    const waitMs = arrival.dueMs - performance.now();
    if (waitMs > 0) await sleep(waitMs, undefined, { signal });
    for (const path of paths) users.push(visit(`${origin}/${path}`, arrival, logs[path]));
  }
  await Promise.all(users);
}

/** One user: never rejects, however the visit ends. */
async function visit(base: string, arrival: Arrival, log: PathLog): Promise<void> {
  log.waiting++;
  log.waitingMax = Math.max(log.waitingMax, log.waiting);
  const ending = await ask(base, arrival);
  log.waiting--;
  const { requestNumber, actIndex, dueMs, symbol } = arrival;
  const latencyMs = performance.now() - dueMs;
  log.results.push({ requestNumber, actIndex, latencyMs, ending, isCharge: symbol === undefined });
}

async function ask(base: string, { requestNumber, symbol }: UserRequest): Promise<Ending> {
  const headers: Record<string, string> = { 'x-request-number': String(requestNumber) };
  if (symbol === undefined) headers['idempotency-key'] = `order-${requestNumber}`;
  try {
    const response = await fetch(symbol === undefined ? `${base}/charges` : `${base}/quotes/${symbol}`, {
      method: symbol === undefined ? 'POST' : 'GET',
      headers,
      signal: AbortSignal.timeout(patienceMs),
    });
    const { error = `HTTP ${response.status}` } = (await response.json()) as { error?: string };
    if (!response.ok) return { kind: 'failed', error };
    return { kind: response.headers.has('x-stale') ? 'stale' : 'fresh' };
  } catch (error) {
    const isTimeout = error instanceof DOMException && error.name === 'TimeoutError';
    return { kind: 'failed', error: isTimeout ? `user left after ${patienceMs / 1_000} s` : `server: ${error}` };
  }
}
