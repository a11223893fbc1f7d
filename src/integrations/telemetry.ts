/**
 * Telemetry: which metrics exist, their names, and their sources. `holdfast/prometheus` and `holdfast/opentelemetry` only translate it, so both
 * export the same; docs/telemetry.md is the contract.
 *
 * Promise: metric labels take few values. A call's key, an event's origin and an error's text are never among them, and names beyond `maxNames` count
 * as `other`.
 */

import { type CallObserver, observeCalls } from '../core/ambient.js';
import type { Call, Dependent } from '../core/call.js';
import { isAbandoned, isRejected, OptionsError } from '../core/errors.js';
import { Events, type HoldfastEvent, hearEvents } from '../core/events.js';
import type { Outcome } from '../core/outcome.js';
import type { Policy } from '../core/policy.js';

/** Incremented when a name or its meaning changes; used as the version of the OpenTelemetry scope. */
export const contractVersion = '1';

/** A label of a metric. In OpenTelemetry it is prefixed with `holdfast.`. */
export type Label = 'pipeline' | 'policy' | 'outcome' | 'reason' | 'source' | 'state';

export interface Metric {
  /** The OpenTelemetry name. Prometheus uses underscores, the unit of a duration, and `_total` for counters. */
  readonly name: string;
  readonly kind: 'counter' | 'histogram' | 'gauge';
  /** In UCUM notation. */
  readonly unit: string;
  readonly help: string;
  readonly labels: readonly Label[];
  /** Upper bounds of a histogram's buckets in seconds, if those for calls would not fit. */
  readonly buckets?: readonly number[];
}

/** The buckets of the durations of calls. */
export const defaultBuckets: readonly number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

type Kind = Metric['kind'];

const metric = (kind: Kind, name: string, unit: string, help: string, ...labels: readonly Label[]): Metric => ({
  name: `holdfast.${name}`,
  kind,
  unit,
  help,
  labels,
});

/** Every metric. */
export const metrics = {
  callDuration: metric('histogram', 'call.duration', 's', 'Calls of a pipeline, waits included', 'pipeline', 'outcome'),
  attemptDuration: metric('histogram', 'attempt.duration', 's', 'Runs of the operation', 'pipeline', 'outcome'),
  retries: metric('counter', 'retries', '{retry}', 'Attempts that were to be repeated after a wait', 'policy'),
  retriesSucceeded: metric('counter', 'retries.succeeded', '{call}', 'Calls that succeeded after a retry', 'policy'),
  retriesStopped: metric('counter', 'retries.stopped', '{call}', 'Calls that a retry gave up', 'policy', 'reason'),
  timeouts: metric('counter', 'timeouts', '{call}', 'Attempts and calls that took too long', 'policy', 'reason'),
  rejections: metric('counter', 'rejections', '{call}', 'Calls that a policy turned away', 'policy', 'reason'),
  fallbacks: metric('counter', 'fallbacks', '{call}', 'Errors that a fallback answered', 'policy'),
  hedges: metric('counter', 'hedges', '{copy}', 'Copies of a call that were sent', 'policy', 'reason'),
  hedgesWon: metric('counter', 'hedges.won', '{call}', 'Calls that a copy answered', 'policy'),
  hedgesSkipped: metric('counter', 'hedges.skipped', '{copy}', 'Copies that were due and not sent', 'policy', 'reason'),
  hedgesFailed: metric('counter', 'hedges.failed', '{call}', 'Calls whose copies all failed', 'policy'),
  flightsShared: metric('counter', 'flights.shared', '{call}', 'Calls that joined one under way', 'policy'),
  paced: metric('counter', 'paced', '{request}', 'Requests held back for what answers said', 'policy'),
  reconnects: metric('counter', 'reconnects', '{request}', 'Requests sent again on a new connection', 'policy'),
  transitions: metric(
    'counter',
    'circuit.transitions',
    '{change}',
    'Circuits that came into a state',
    'policy',
    'state',
  ),
  keptClosed: metric('counter', 'circuit.kept_closed', '{change}', 'Circuits kept closed by their group', 'policy'),
  notRestored: metric('counter', 'circuit.not_restored', '{snapshot}', 'Snapshots that were not taken', 'policy'),
  cacheGets: metric(
    'counter',
    'cache.gets',
    '{get}',
    'Answers of a cache, by where they came from',
    'policy',
    'source',
  ),
  cacheLoads: metric('counter', 'cache.loads', '{load}', 'Loads of a cache that have ended', 'policy', 'outcome'),
  cacheLoadDuration: metric(
    'histogram',
    'cache.load.duration',
    's',
    'Loads of a cache, from the loader’s call to its end',
    'policy',
    'outcome',
  ),
  cacheWarnings: metric('counter', 'cache.warnings', '{warning}', 'What a cache warned of', 'policy', 'reason'),
  idempotentOperations: metric(
    'counter',
    'idempotency.operations',
    '{operation}',
    'What became of operations with an idempotency key',
    'policy',
    'outcome',
  ),
  idempotencyDuration: metric(
    'histogram',
    'idempotency.duration',
    's',
    'What idempotency keys took to begin, to end or to wait, whichever the outcome is about',
    'policy',
    'outcome',
  ),
  replayAge: {
    ...metric('histogram', 'idempotency.replay.age', 's', 'How long ago the result of a replay was stored', 'policy'),
    buckets: [0.1, 1, 10, 60, 600, 3_600, 21_600, 86_400, 604_800],
  },
  locks: metric('counter', 'locks', '{lock}', 'What became of locks and permits', 'policy', 'outcome'),
  lockWait: metric('histogram', 'locks.wait', 's', 'Waits for a lock or permit', 'policy', 'outcome'),
  lockHeld: metric('histogram', 'locks.held', 's', 'Locks and permits held, until given back', 'policy'),
  hookFailures: metric('counter', 'hook_failures', '{failure}', 'Hooks that threw', 'policy', 'reason'),
  circuits: metric('gauge', 'circuits', '{circuit}', 'Circuits in a state', 'policy', 'state'),
  running: metric('gauge', 'running', '{call}', 'Calls that hold a slot', 'policy'),
  waiting: metric('gauge', 'waiting', '{call}', 'Calls that wait', 'policy'),
  abandoned: metric('gauge', 'abandoned', '{call}', 'Operations given up that still run', 'policy'),
  limit: metric('gauge', 'limit', '{call}', 'Calls that may run at once', 'policy'),
  remaining: metric('gauge', 'remaining', '{unit}', 'What a rate limit could start at once', 'policy'),
  balance: metric('gauge', 'retry_budget.balance', '{retry}', 'Retries that a budget has', 'policy'),
  keys: metric('gauge', 'keys', '{key}', 'Keys that a keyed policy has', 'policy'),
} as const satisfies Record<string, Metric>;

export type MetricId = keyof typeof metrics;

type EventOf<Type> = Extract<HoldfastEvent, { readonly type: Type }>;

/** What an event contributes: a metric, the value of its second label if it has one, and for a histogram the milliseconds. */
type Measure = readonly [metric: MetricId, second?: string | undefined, durationMs?: number | undefined];

/** One line per event. */
const measures: { readonly [Type in HoldfastEvent['type']]: (event: EventOf<Type>) => readonly Measure[] } = {
  retry: () => [['retries']],
  'retry-succeeded': () => [['retriesSucceeded']],
  'retry-stopped': ({ stoppedBy }) => [['retriesStopped', stoppedBy]],
  timeout: () => [['timeouts', 'attempt']],
  'deadline-exceeded': () => [['timeouts', 'call']],
  'deadline-too-short': () => [['rejections', 'deadline-too-short']],
  fallback: () => [['fallbacks']],
  'bulkhead-full': ({ reason }) => [['rejections', `bulkhead-${reason}`]],
  'limit-changed': () => [],
  'rate-limited': () => [['rejections', 'rate-limited']],
  throttled: () => [['rejections', 'throttled']],
  shed: () => [['rejections', 'shed']],
  hedge: ({ because }) => [['hedges', because]],
  'hedge-won': () => [['hedgesWon']],
  'hedge-skipped': ({ reason }) => [['hedgesSkipped', reason]],
  'hedge-failed': () => [['hedgesFailed']],
  'flight-shared': () => [['flightsShared']],
  paced: ({ refused }) => [refused ? ['rejections', 'paced'] : ['paced']],
  reconnected: () => [['reconnects']],
  'circuit-changed': ({ to }) => [['transitions', to]],
  'circuit-refused': ({ shadow }) => (shadow ? [] : [['rejections', 'circuit-open']]),
  'circuit-kept-closed': () => [['keptClosed']],
  'circuit-not-restored': () => [['notRestored']],
  'cache-get': ({ source }) => [['cacheGets', source]],
  'cache-load': ({ outcome: { ok }, durationMs }) => {
    const outcome = ok ? 'success' : 'failure';
    return [
      ['cacheLoads', outcome],
      ['cacheLoadDuration', outcome, durationMs],
    ];
  },
  'cache-warning': ({ reason }) => [['cacheWarnings', reason]],
  idempotency: ({ outcome, durationMs, ageMs }) => [
    ['idempotentOperations', outcome],
    ['idempotencyDuration', outcome, durationMs],
    ['replayAge', undefined, ageMs],
  ],
  'lock-acquired': ({ waitedMs }) => [
    ['locks', 'acquired'],
    ['lockWait', 'acquired', waitedMs],
  ],
  'lock-unavailable': ({ reason, waitedMs }) => [
    ['locks', `unavailable-${reason}`],
    ['lockWait', `unavailable-${reason}`, waitedMs],
  ],
  'lock-lost': ({ reason }) => [['locks', `lost-${reason}`]],
  'lock-released': ({ result, heldMs }) => [
    ['locks', result === 'released' ? 'released' : `release-${result}`],
    ['lockHeld', undefined, heldMs],
  ],
  'lock-force-released': () => [['locks', 'force-released']],
  'hook-failed': ({ hook }) => [['hookFailures', hook]],
};

/** Receives measurements. `labels` are in the order of the metric's labels. */
export interface Sink {
  count(metric: MetricId, labels: readonly string[]): void;
  observe(metric: MetricId, labels: readonly string[], seconds: number): void;
}

/** What `watch` accepts: a policy, all policies of a pipeline, or a retry budget. */
export interface Watchable {
  readonly name?: string;
  /** The balance of a retry budget. */
  readonly balance?: number;
}

/** What `instrument` returns. */
export interface Instrumentation {
  /**
   * Exposes the state of a policy, of all policies of a pipeline, or of a retry budget as gauges, until the returned
   * function is called. Things of the same name are summed.
   *
   * @param name - The label `policy`. Default: the policy's own name. A budget has no name.
   */
  watch(thing: Watchable, name?: string): () => void;
  /** Ends the instrumentation: nothing is measured any more. */
  stop(): void;
}

/** The current value of a gauge. */
export interface Reading {
  readonly labels: readonly string[];
  readonly value: number;
}

const mostWatched = 1_000;

/** Limits names used as labels: the first `maxNames` are kept, all others become `other`. */
export class Names {
  readonly #kept = new Set<string>();
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  of(name: string): string {
    if (this.#kept.has(name)) return name;
    if (this.#kept.size >= this.#max) return 'other';
    this.#kept.add(name);
    return name;
  }
}

/** Sends all measurements to the sink and returns a function that stops it. */
export function measure(name: string, sink: Sink, names: Names): () => void {
  const stopHearing = hearEvents(name, (event) => {
    if (!Object.hasOwn(measures, event.type)) return;
    const measuresOf = measures[event.type] as (event: HoldfastEvent) => readonly Measure[];
    for (const [id, second, durationMs] of measuresOf(event)) {
      const labels = second === undefined ? [names.of(event.name)] : [names.of(event.name), second];
      if (metrics[id].kind === 'counter') sink.count(id, labels);
      else if (durationMs !== undefined) sink.observe(id, labels, durationMs / 1_000);
    }
  });
  const stopObserving = observeCalls(new DurationObserver(name, sink, names));
  return () => {
    stopHearing();
    stopObserving();
  };
}

class DurationObserver implements CallObserver {
  readonly #reports: Events;
  readonly #sink: Sink;
  readonly #names: Names;
  readonly #pipelines = new WeakMap<Call, string>();

  constructor(name: string, sink: Sink, names: Names) {
    this.#reports = new Events(name, undefined);
    this.#sink = sink;
    this.#names = names;
  }

  call(call: Call, policies: readonly Policy<unknown>[], run: () => Promise<unknown>): Promise<unknown> {
    const pipeline = this.#names.of(pipelineName(policies));
    this.#pipelines.set(call, pipeline);
    return untilEnd(this.#reports, run(), this.#timing('callDuration', pipeline, call));
  }

  attempt(call: Call, run: () => Promise<unknown>): Promise<unknown> {
    const pipeline = nearest(this.#pipelines, call) ?? 'pipeline';
    return untilLeft(this.#reports, call, run(), this.#timing('attemptDuration', pipeline, call));
  }

  adopt(call: Call, by: Call): void {
    adopt(this.#pipelines, call, by);
  }

  #timing(metric: MetricId, pipeline: string, call: Call): (outcome: Outcome) => void {
    const beganMs = call.clock.now();
    return (outcome) => {
      this.#sink.observe(metric, [pipeline, outcomeWord(outcome, call)], (call.clock.now() - beganMs) / 1_000);
    };
  }
}

/** What is stored for a call or else for the nearest call around it. */
export function nearest<Kept>(kept: WeakMap<Call, Kept>, call: Call): Kept | undefined {
  for (let one: Call | undefined = call; one !== undefined; one = one.parent) {
    const found = kept.get(one);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** What is kept for a call is kept for one that it began, too. */
export function adopt<Kept>(kept: WeakMap<Call, Kept>, call: Call, by: Call): void {
  const found = nearest(kept, by);
  if (found !== undefined) kept.set(call, found);
}

/** Tells how a promise ended; answers the promise. An exception of `end` is contained: the rejection that it would cause ends the process. */
export function untilEnd(
  reports: Events,
  running: Promise<unknown>,
  end: (outcome: Outcome) => void,
): Promise<unknown> {
  const tell = (outcome: Outcome) => reports.contain('listener', () => end(outcome));
  running.then(
    (value) => tell({ ok: true, value }),
    (error) => tell({ ok: false, error }),
  );
  return running;
}

/** The same for an attempt, which also ends when nobody waits for it any more: its operation may run for ever. */
export function untilLeft(
  reports: Events,
  call: Call,
  running: Promise<unknown>,
  end: (outcome: Outcome) => void,
): Promise<unknown> {
  let isOver = false;
  const endOnce = (outcome: Outcome) => {
    if (isOver) return;
    isOver = true;
    call.detach(dependent);
    reports.contain('listener', () => end(outcome));
  };
  const dependent: Dependent = {
    owner: undefined,
    previousDependent: undefined,
    nextDependent: undefined,
    onAbort: (reason) => endOnce({ ok: false, error: reason }),
  };
  call.attach(dependent);
  return untilEnd(reports, running, endOnce);
}

/** The outcome as one of a few words. */
export function outcomeWord(outcome: Outcome, call: Call): 'ok' | 'failed' | 'rejected' | 'abandoned' | 'aborted' {
  if (outcome.ok) return 'ok';
  if (isRejected(outcome.error)) return 'rejected';
  if (isAbandoned(outcome.error)) return 'abandoned';
  return call.aborted && call.reason === outcome.error ? 'aborted' : 'failed';
}

const pipelineNames = /* @__PURE__ */ new WeakMap<readonly Policy<unknown>[], string>();

/** The first custom name among the policies; `pipeline` if there is none. */
export function pipelineName(policies: readonly Policy<unknown>[]): string {
  const known = pipelineNames.get(policies);
  if (known !== undefined) return known;
  const named = policies.find(({ name, traits }) => name !== defaultName(traits?.kind));
  const found = named?.name ?? 'pipeline';
  pipelineNames.set(policies, found);
  return found;
}

/** `circuit-breaker` is created by `circuitBreaker`, which is also its default name. */
function defaultName(kind: string | undefined): string | undefined {
  return kind?.replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase());
}

/** The watched objects and their current readings. */
export class Watched {
  readonly #things = new Map<object, { readonly thing: Watchable; readonly name: string | undefined }>();
  readonly #names: Names;
  #hasEnded = false;

  constructor(names: Names) {
    this.#names = names;
  }

  add(thing: Watchable, name: string | undefined): () => void {
    if (typeof thing !== 'object' || thing === null || !parts(thing).some(readable)) {
      const allowed =
        'a policy with a state (a circuit breaker, bulkhead, limit or keyed), a pipeline with one, or a retry budget';
      throw new OptionsError(`watch: the argument must be ${allowed}`, {
        policy: 'watch',
        option: 'thing',
        value: thing,
        allowed,
      });
    }
    if (this.#things.size >= mostWatched) {
      throw new OptionsError(`watch: ${mostWatched} things are watched already; stop watching those that are gone`, {
        policy: 'watch',
        option: 'thing',
        value: thing,
        allowed: `at most ${mostWatched} things`,
      });
    }
    const token = {};
    if (!this.#hasEnded) this.#things.set(token, { thing, name });
    return () => void this.#things.delete(token);
  }

  /** Forgets them, and what is added from now on. */
  end(): void {
    this.#hasEnded = true;
    this.#things.clear();
  }

  /** One reading per set of labels. */
  read(metric: MetricId): readonly Reading[] {
    const sums = new Map<string, { readonly labels: readonly string[]; value: number }>();
    for (const { thing, name } of this.#things.values()) {
      for (const part of parts(thing)) {
        const label = this.#names.of(name ?? part.name ?? 'retry-budget');
        for (const [value, ...more] of readings(metric, part)) {
          const labels = [label, ...more];
          const key = labels.join('\n');
          const sum = sums.get(key);
          if (sum === undefined) sums.set(key, { labels, value });
          else sum.value += value;
        }
      }
    }
    return [...sums.values()];
  }
}

/** The state that a policy may expose. */
interface Stateful extends Watchable {
  readonly state?: unknown;
  readonly running?: unknown;
  readonly waiting?: unknown;
  readonly abandoned?: unknown;
  readonly limit?: unknown;
  readonly remaining?: unknown;
  readonly size?: unknown;
}

const circuitStates = ['closed', 'open', 'half-open', 'ramping', 'isolated', 'forced-closed'];

const numbers = {
  running: 'running',
  waiting: 'waiting',
  abandoned: 'abandoned',
  limit: 'limit',
  remaining: 'remaining',
  balance: 'balance',
  keys: 'size',
} as const satisfies Partial<Record<MetricId, keyof Stateful>>;

function readings(metric: MetricId, part: Stateful): readonly (readonly [number, ...string[]])[] {
  if (metric === 'circuits') {
    if (!isCircuitState(part.state)) return [];
    return circuitStates.map((state) => [state === part.state ? 1 : 0, state] as const);
  }
  const value = metric in numbers ? part[numbers[metric as keyof typeof numbers]] : undefined;
  return typeof value === 'number' ? [[value]] : [];
}

/** Whether an object is a policy. Stores, caches and maps also have a size or a state; a policy can be called as well. */
function readable(part: Stateful): boolean {
  const { admit, handle } = part as { readonly admit?: unknown; readonly handle?: unknown };
  if (typeof part.balance === 'number') return true;
  if (typeof admit !== 'function' && typeof handle !== 'function') return false;
  return isCircuitState(part.state) || Object.values(numbers).some((field) => typeof part[field] === 'number');
}

function isCircuitState(state: unknown): state is string {
  return typeof state === 'string' && circuitStates.includes(state);
}

function parts(thing: Watchable): readonly Stateful[] {
  const { policies } = thing as { readonly policies?: unknown };
  return Array.isArray(policies) ? policies : [thing];
}
