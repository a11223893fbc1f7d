/**
 * Overload scenarios: users who come regardless of what happened to earlier ones, a service that can be overloaded, and any strategy between them. `play`
 * runs in virtual time, where the same seed gives the same run; `playIn` runs in a given place.
 *
 * By default, users come at half the rate that the service can sustain. Then, for 20 s, ten times as many come (`spike`), or the service takes ten times as
 * long (`slow`), or its answers take a second to arrive (`late`), or every call fails at once (`down`), or nothing happens (`calm`). After that everything is
 * as before. A user waits 2 s; an answer within that time is good, whatever the strategy did to get it.
 */
import { type Clock, callbackTimer, Timer } from '../../core/clock.js';
import { type SeededRandom, seededRandom } from '../random.js';
import { virtualClock } from '../virtual-clock.js';
import { type Service, type Shape, serviceOf } from './services.ts';

export type Scenario = 'spike' | 'slow' | 'late' | 'down' | 'calm';

/** One call of the service. It rejects when the signal aborts, as an HTTP client does; the service works on regardless. */
export type Task = (context: { readonly signal?: AbortSignal }) => Promise<unknown>;

/** What stands between the users and the service: for a given world, it returns the function that makes a user's request. */
export type Strategy = (world: {
  readonly clock: Clock;
  readonly random: SeededRandom;
}) => (task: Task) => Promise<unknown>;

export interface Report {
  readonly seed: number;
  /** Good answers during the 20 s, in percent of what the service could have given. */
  readonly goodput: number;
  /** The 99th percentile of the time these answers took. */
  readonly p99Ms: number;
  /** Calls of the service per user's request, during the 20 s. */
  readonly callsPerRequest: number;
  /** Seconds after the 20 s until the share of good answers is as before and stays so for 5 s; Infinity if that is not seen, NaN if none was good before. */
  readonly recoverySeconds: number;
  /** The service's work that gave no good answer, in percent of all its work. */
  readonly wasted: number;
  /** Requests that were refused without a call before the 20 s, in percent. */
  readonly shedBefore: number;
  /** Good answers in percent of requests: before the 20 s, during them, and afterwards. */
  readonly goodBefore: number;
  readonly goodDuring: number;
  readonly goodAfter: number;
}

export interface Played extends Report {
  /** Timers left when nothing was running any more. */
  readonly timersLeft: number;
}

export interface PlayOptions {
  readonly strategy: Strategy;
  readonly shape: Shape;
  readonly scenario: Scenario;
  readonly seed: number;
  /** The rate of users before and after, as a share of what the service can sustain. Default 0.5. */
  readonly load?: number | undefined;
  /** How long the disturbance lasts. Default 20. */
  readonly disturbanceSeconds?: number | undefined;
  /** Seconds before and after the disturbance. Default 20 and 30. */
  readonly beforeSeconds?: number | undefined;
  readonly afterSeconds?: number | undefined;
  /** The share of calls that fail at once, at random, before they reach the service. Default 0. */
  readonly failing?: number | undefined;
  /** How long a user waits. Default 2,000. */
  readonly patienceMs?: number | undefined;
}

/** Where a run takes place. */
export interface Place {
  readonly clock: Clock;
  readonly random: SeededRandom;
  readonly service: Service;
  /** Resolves when the clock has reached this instant. */
  until(atMs: number): Promise<void>;
  /** Resolves when every request has ended. No more users come. */
  end(): Promise<unknown>;
}

/** How many times as many users come in a spike. */
export const spikeFactor = 10;
const failsAfterMs = 2;
const lateByMs = 1_000;

/** Plays one run in virtual time. */
export async function play(options: PlayOptions): Promise<Played> {
  const clock = virtualClock();
  const random = seededRandom(options.seed);
  const report = await playIn(
    {
      clock,
      random,
      service: serviceOf(options.shape, clock, random.fork('service')),
      until: (atMs) => clock.advanceTo(atMs),
      end: () => clock.runAll({ maxTimers: 10_000_000 }),
    },
    options,
  );
  return { ...report, timersLeft: clock.pendingTimers };
}

/** Plays one run. */
export async function playIn(place: Place, options: PlayOptions): Promise<Report> {
  return reportOf(await runIn(place, options));
}

/** All events of a run. */
export interface Run {
  readonly options: PlayOptions;
  readonly requests: readonly UserRequest[];
  /** Calls of the service, by the second in which they were made. */
  readonly callsBySecond: readonly number[];
  readonly callsDuring: number;
  /** Requests that the service has completed, whether or not anybody still waited. */
  readonly completed: number;
  readonly capacityPerMs: number;
  readonly beginMs: number;
  readonly startMs: number;
  readonly endMs: number;
  readonly lastMs: number;
}

/** Plays one run, for {@link reportOf} and {@link secondsOf}. */
export async function runIn(place: Place, options: PlayOptions): Promise<Run> {
  const { strategy, shape, scenario, load = 0.5, disturbanceSeconds = 20 } = options;
  const { beforeSeconds = 20, afterSeconds = 30, failing = 0, patienceMs = 2_000 } = options;
  const { clock, random, service } = place;
  const request = strategy({ clock, random: random.fork('strategy') });
  const beginMs = clock.now();
  const startMs = beginMs + beforeSeconds * 1_000;
  const endMs = startMs + disturbanceSeconds * 1_000;
  const lastMs = endMs + afterSeconds * 1_000;
  const capacityPerMs = shape.workers / shape.meanMs;
  const usual = capacityPerMs * load;

  const users = new Users({ clock, random: random.fork('arrivals'), service, request, patienceMs });
  users.failing = failing;
  users.come(usual);
  await place.until(startMs);
  if (scenario === 'slow') service.slowDown(10);
  if (scenario === 'late') users.lateByMs = lateByMs;
  if (scenario === 'down') users.failing = 1;
  users.come(scenario === 'spike' ? spikeFactor * usual : usual);
  const callsBefore = users.calls;
  await place.until(endMs);
  const callsDuring = users.calls - callsBefore;
  service.slowDown(1);
  users.lateByMs = 0;
  users.failing = failing;
  users.come(usual);
  await place.until(lastMs);
  users.leave();
  await place.end();
  const { requests, callsBySecond } = users;
  const { completed } = service;
  return { options, requests, callsBySecond, callsDuring, completed, capacityPerMs, beginMs, startMs, endMs, lastMs };
}

/** The figures of a run. */
export function reportOf(run: Run): Report {
  const { requests, beginMs, startMs, endMs, lastMs } = run;
  const { seed, patienceMs = 2_000 } = run.options;
  const during = requests.filter(({ atMs }) => atMs >= startMs && atMs < endMs);
  const answers = requests.filter((one) => one.isGood && one.endedMs >= startMs && one.endedMs < endMs);
  const latencies = answers.map(({ atMs, endedMs }) => endedMs - atMs).sort((left, right) => left - right);
  const before = requests.filter(({ atMs }) => atMs < startMs);
  // The last users may still have been waiting when the run ended; the first ones met a cold start.
  const coldMs = (startMs - beginMs) / 4;
  const settledBefore = before.filter(({ atMs }) => atMs >= beginMs + coldMs && atMs < startMs - patienceMs);
  return {
    seed,
    goodput: (100 * answers.length) / (run.capacityPerMs * (endMs - startMs)),
    p99Ms: latencies[Math.floor(0.99 * latencies.length)] ?? Number.NaN,
    callsPerRequest: run.callsDuring / during.length,
    recoverySeconds: recoveryOf(requests, endMs, lastMs, goodShare(settledBefore)),
    wasted: 100 * (1 - requests.filter(({ isGood }) => isGood).length / run.completed),
    shedBefore: (100 * before.filter(({ wasShed }) => wasShed).length) / before.length,
    goodBefore: 100 * goodShare(settledBefore),
    goodDuring: 100 * goodShare(during),
    goodAfter: 100 * goodShare(requests.filter(({ atMs }) => atMs >= endMs)),
  };
}

/** One second of a run. */
export interface Second {
  /** Counted from the start of the disturbance; negative before it. */
  readonly second: number;
  /** Users who came. */
  readonly requests: number;
  /** Calls that the service got. */
  readonly calls: number;
  /** How many of those users got a good answer, then or later. */
  readonly good: number;
}

/** The figures of a run, second by second. */
export function secondsOf(run: Run): readonly Second[] {
  const before = Math.round((run.startMs - run.beginMs) / 1_000);
  const seconds = Array.from({ length: Math.round((run.lastMs - run.beginMs) / 1_000) }, (_, index) => ({
    second: index - before,
    requests: 0,
    calls: run.callsBySecond[index] ?? 0,
    good: 0,
  }));
  for (const { atMs, isGood } of run.requests) {
    const one = seconds[Math.floor((atMs - run.beginMs) / 1_000)];
    if (one === undefined) continue;
    one.requests++;
    if (isGood) one.good++;
  }
  return seconds;
}

export interface UserRequest {
  readonly atMs: number;
  /** NaN for a request that never ended. */
  endedMs: number;
  isGood: boolean;
  wasShed: boolean;
  /** The error that the user got instead of an answer. */
  error: unknown;
}

/** Users as an open loop: the next one comes whatever happens to this one. */
class Users extends Timer {
  readonly requests: UserRequest[] = [];
  readonly callsBySecond: number[] = [];
  calls = 0;
  /** The share of calls that fail. */
  failing = 0;
  /** How long answers take to arrive. */
  lateByMs = 0;
  private readonly beginMs: number;
  private perMs = 0;
  private nextAtMs = 0;
  private readonly clock: Clock;
  private readonly random: SeededRandom;
  private readonly chance: SeededRandom;
  private readonly service: Service;
  private readonly request: (task: Task) => Promise<unknown>;
  private readonly patienceMs: number;

  constructor(parts: {
    readonly clock: Clock;
    readonly random: SeededRandom;
    readonly service: Service;
    readonly request: (task: Task) => Promise<unknown>;
    readonly patienceMs: number;
  }) {
    super();
    this.clock = parts.clock;
    this.beginMs = parts.clock.now();
    this.patienceMs = parts.patienceMs;
    this.random = parts.random;
    this.chance = parts.random.fork('failures');
    this.service = parts.service;
    this.request = parts.request;
  }

  come(perMs: number): void {
    this.perMs = perMs;
    this.nextAtMs = this.clock.now() + this.random.exponential(1 / perMs);
    this.clock.schedule(this, this.nextAtMs);
  }

  leave(): void {
    this.clock.cancel(this);
  }

  override expire(): void {
    // Real timers are late: users that are overdue come now, so that the rate holds.
    do {
      this.nextAtMs += this.random.exponential(1 / this.perMs);
      this.ask();
    } while (this.nextAtMs <= this.clock.now());
    this.clock.schedule(this, this.nextAtMs);
  }

  private ask(): void {
    const atMs = this.clock.now();
    const one: UserRequest = { atMs, endedMs: Number.NaN, isGood: false, wasShed: false, error: undefined };
    this.requests.push(one);
    let wasCalled = false;
    const settle = (isGood: boolean) => {
      one.endedMs = this.clock.now();
      one.isGood = isGood && one.endedMs - atMs <= this.patienceMs;
      one.wasShed = !wasCalled;
    };
    this.request(({ signal }) => {
      wasCalled = true;
      return this.call(signal);
    }).then(
      () => settle(true),
      (error) => {
        one.error = error;
        settle(false);
      },
    );
  }

  private call(signal: AbortSignal | undefined): Promise<unknown> {
    const { clock, chance, failing, lateByMs } = this;
    const second = Math.floor((clock.now() - this.beginMs) / 1_000);
    this.callsBySecond[second] = (this.callsBySecond[second] ?? 0) + 1;
    this.calls++;
    return new Promise((resolve, reject) => {
      signal?.addEventListener('abort', () => reject(signal.reason), { once: true });
      if (failing > 0 && chance() < failing) {
        const fail = () => reject(new Error('the service fails'));
        return clock.schedule(callbackTimer(fail), clock.now() + failsAfterMs);
      }
      const arrive = (answer: unknown) =>
        lateByMs === 0
          ? resolve(answer)
          : clock.schedule(
              callbackTimer(() => resolve(answer)),
              clock.now() + lateByMs,
            );
      this.service.serve(signal).then(arrive, reject);
    });
  }
}

function goodShare(requests: readonly UserRequest[]): number {
  if (requests.length === 0) return Number.NaN;
  return requests.filter(({ isGood }) => isGood).length / requests.length;
}

function recoveryOf(requests: readonly UserRequest[], fromMs: number, toMs: number, usualShare: number): number {
  if (!(usualShare > 0)) return Number.NaN;
  const after = requests.filter(({ atMs }) => atMs >= fromMs);
  const shareIn = (beginMs: number, lengthMs: number) =>
    goodShare(after.filter(({ atMs }) => atMs >= beginMs && atMs < beginMs + lengthMs));
  for (let beginMs = fromMs; beginMs + 5_000 <= toMs; beginMs += 500) {
    // Few users come in half a second, so a share slightly below the usual one means nothing.
    if (!(shareIn(beginMs, 500) < 0.9 * usualShare) && shareIn(beginMs, 5_000) >= 0.95 * usualShare) {
      return (beginMs - fromMs) / 1_000;
    }
  }
  return Number.POSITIVE_INFINITY;
}

/** The twelve services of the robustness grid, named like its columns: workers / mean ms / gamma shape. */
export const grid: Readonly<Record<string, Shape>> = Object.fromEntries(
  (['pool', 'thrash'] as const).flatMap((kind) =>
    (
      [
        [20, 100, 4],
        [4, 50, 4],
        [20, 100, 1],
        [100, 20, 4],
        [200, 500, 4],
        [8, 400, 2],
      ] as const
    ).map(([workers, meanMs, gamma]) => [
      `${kind === 'pool' ? 's' : 't'}${workers}/${meanMs}/${gamma}`,
      { workers, meanMs, gamma, kind },
    ]),
  ),
);
