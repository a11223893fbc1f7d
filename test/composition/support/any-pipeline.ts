/** Pipelines of any policies in any order, and scripts of what happens to them. fast-check draws them; they are played in virtual time and reported in full. */
import { getEventListeners } from 'node:events';
import fc from 'fast-check';
import type { Call } from '../../../src/core/call.js';
import {
  type AnyPolicy,
  adaptiveLimit,
  bulkhead,
  circuitBreaker,
  deadline,
  type ExecuteOptions,
  fallback,
  type Guard,
  type Handles,
  type HoldfastEvent,
  hedge,
  keyed,
  OptionsError,
  type Outcome,
  type Permit,
  type Pipeline,
  pipeline,
  type Refusal,
  type RetryBudget,
  rateLimit,
  retry,
  retryBudget,
  type Strategy,
  singleFlight,
  throttle,
  timeout,
} from '../../../src/index.js';
import { type VirtualClock, virtualClock } from '../../../src/testing/index.js';

const ms = (max: number, min = 1) => fc.integer({ min, max });
const count = (max: number, min = 1) => fc.integer({ min, max });
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined, freq: 2 });
const rarely = <T>(arbitrary: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 5, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary });

const guardSpecs = {
  recorder: fc.record({
    kind: fc.constant('recorder' as const),
    endsMs: maybe(ms(60)),
    refusesEvery: maybe(count(4, 2)),
    queueMs: rarely(ms(20, 0)),
    abortsWhen: rarely(fc.constantFrom('asked', 'settled', 'released', 'ended')),
  }),
  timeout: fc.record({ kind: fc.constant('timeout' as const), afterMs: ms(40) }),
  deadline: fc.record({ kind: fc.constant('deadline' as const), afterMs: ms(90) }),
  breaker: fc.record({
    kind: fc.constant('breaker' as const),
    window: fc.constantFrom('consecutive' as const, 'calls' as const, 'time' as const),
    calls: count(3),
    slowMs: maybe(ms(20)),
    shadow: fc.boolean(),
    openMs: ms(40),
    permits: count(3),
    successes: count(2),
    probeMs: maybe(ms(30)),
    rampMs: fc.integer({ min: 0, max: 20 }),
  }),
  bulkhead: fc.record({
    kind: fc.constant('bulkhead' as const),
    limit: count(2),
    queue: count(3, 0),
    order: fc.constantFrom('oldest-first' as const, 'newest-first' as const, 'codel' as const),
    maxWaitMs: maybe(ms(40)),
    releaseOn: fc.constantFrom('settle' as const, 'settle' as const, 'timeout' as const),
  }),
  rate: fc.record({
    kind: fc.constant('rate' as const),
    limit: count(3),
    periodMs: ms(50),
    burst: count(3),
    waits: fc.boolean(),
    queue: count(3, 0),
  }),
  throttle: fc.record({ kind: fc.constant('throttle' as const) }),
  adaptive: fc.record({
    kind: fc.constant('adaptive' as const),
    algorithm: fc.constantFrom('knee' as const, 'aimd' as const, 'vegas' as const, 'gradient2' as const),
    max: count(2),
    queue: count(2, 0),
  }),
};

const retrySpec = fc.record({
  kind: fc.constant('retry' as const),
  attempts: count(4),
  delayMs: ms(20, 0),
  hasBudget: fc.boolean(),
  minAttemptMs: fc.integer({ min: 0, max: 5 }),
  /** Treats the values of the first attempts as failures. */
  refusesValues: fc.boolean(),
  abortsWhen: rarely(fc.constantFrom('judging', 'waiting', 'paid', 'discarding')),
});

const strategySpecs = {
  fallback: fc.record({ kind: fc.constant('fallback' as const) }),
  hedge: fc.record({
    kind: fc.constant('hedge' as const),
    delayMs: ms(20),
    max: count(2),
    refusesValues: fc.boolean(),
    abortsWhen: rarely(fc.constantFrom('judging', 'paid', 'discarding')),
  }),
  flight: fc.record({ kind: fc.constant('flight' as const) }),
  passes: fc.record({ kind: fc.constant('passes' as const) }),
};

const anyGuard = fc.oneof(...Object.values(guardSpecs)) as fc.Arbitrary<GuardSpec>;
const anyStrategy = fc.oneof(...Object.values(strategySpecs)) as fc.Arbitrary<StrategySpec>;

type Of<T> = T extends fc.Arbitrary<infer U> ? U : never;
type GuardSpec = Of<(typeof guardSpecs)[keyof typeof guardSpecs]>;
type StrategySpec = Of<(typeof strategySpecs)[keyof typeof strategySpecs]>;
interface KeyedSpec {
  readonly kind: 'keyed';
  readonly of: readonly PolicySpec[];
  readonly isPipeline: boolean;
  readonly maxKeys: number;
  readonly idleMs: number | undefined;
}
export type PolicySpec = GuardSpec | StrategySpec | Of<typeof retrySpec> | KeyedSpec;

const keyedParts = fc.oneof(
  fc.record({
    of: fc.array(fc.oneof({ weight: 3, arbitrary: anyGuard }, anyStrategy, retrySpec), { minLength: 1, maxLength: 1 }),
    isPipeline: fc.constant(false),
  }),
  fc.record({
    of: fc
      .tuple(
        fc.array(anyGuard, { maxLength: 2 }),
        fc.array(retrySpec, { maxLength: 1 }),
        fc.array(anyGuard, { maxLength: 2 }),
      )
      .map((parts) => parts.flat()),
    isPipeline: fc.constant(true),
  }),
);
const keyedSpec: fc.Arbitrary<KeyedSpec> = fc
  .tuple(keyedParts, fc.constantFrom(1, 10), maybe(ms(20)))
  .map(([parts, maxKeys, idleMs]) => ({ kind: 'keyed', ...parts, maxKeys, idleMs }));

const outerParts = fc.array(
  fc.oneof({ weight: 6, arbitrary: anyGuard }, { weight: 2, arbitrary: anyStrategy }, keyedSpec),
  {
    maxLength: 4,
  },
) as fc.Arbitrary<PolicySpec[]>;

/** Mostly a retry among other policies. Guards stand next to it more often than not, so that they become one layer. */
const policies = (retries: number): fc.Arbitrary<PolicySpec[]> =>
  fc
    .tuple(outerParts, fc.array(retrySpec, { minLength: retries, maxLength: 1 }), outerParts)
    .map((parts) => parts.flat())
    .filter(({ length }) => length > 0);

const ends = [
  'value',
  'value',
  'error',
  'error',
  'never',
  'throws at once',
  'value at once',
  'thenable',
  'aborts itself',
  'asks to wait',
] as const;

/** What one run of the operation does: how it ends, after which time, and whether it obeys its signal. */
const behaviour = fc.record({ ends: fc.constantFrom(...ends), afterMs: ms(30), mindsSignal: fc.boolean() });

const oneCall = fc.record({
  startMs: ms(60, 0),
  abortAfterMs: maybe(ms(60, 0)),
  deadlineAfterMs: maybe(ms(80, 0)),
  key: fc.constantFrom('a', 'b'),
  isUnsafe: fc.boolean(),
  behaviours: fc.array(behaviour, { minLength: 1, maxLength: 4 }),
});

/** What a hook does at the event with this number: it throws, or ends a call. */
const mischief = fc.record({
  atEvent: count(12, 0),
  does: fc.constantFrom('throws', 'aborts'),
  callIndex: count(3, 0),
});

export const scripts = (minCalls: number, maxCalls: number, minRetries: number) =>
  fc.record({
    policies: policies(minRetries),
    calls: fc.array(oneCall, { minLength: minCalls, maxLength: maxCalls }),
    mischiefs: fc.array(mischief, { maxLength: 2 }),
  });

export type Script = Of<ReturnType<typeof scripts>>;

/** Gives each time of a script its own fraction, so that no two things happen at the same instant by chance. */
export function withoutTies(script: Script): Script {
  let drawn = 0;
  const spread = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(spread);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([name, inner]) =>
        name.endsWith('Ms') && typeof inner === 'number'
          ? [name, inner + 0.25 + ((++drawn * 0.6180339887498949) % 1) / 2]
          : [name, spread(inner)],
      ),
    );
  };
  return spread(script) as Script;
}

class Failure extends Error {}

/** How one permit of a recorder ended. */
export interface PermitRecord {
  readonly name: string;
  readonly admittedMs: number;
  readonly told: string[];
}

/** Everything that can be observed of a script that was played. */
export interface Played {
  readonly outcomes: readonly { readonly settledMs: readonly number[]; readonly outcome: Outcome | undefined }[];
  readonly starts: readonly string[];
  readonly aborts: readonly string[];
  readonly permits: readonly PermitRecord[];
  readonly events: readonly { readonly atMs: number; readonly text: string }[];
  /** What is wrong, whatever the script. */
  readonly faults: readonly string[];
}

interface PlayOptions {
  readonly way?: 'attempt' | 'execute';
  /** The policies of a pipeline through which every second run of the operation does its work. */
  readonly nested?: readonly PolicySpec[];
  /** What each retry is replaced with. */
  readonly changeRetry?: (made: Strategy) => AnyPolicy;
  /** The number of timers after which a script counts as endless. Default 10,000. */
  readonly maxTimers?: number;
}

/** All policies, including those in a policy per key. */
export const allOf = (specs: readonly PolicySpec[]): readonly PolicySpec[] =>
  specs.flatMap((spec) => (spec.kind === 'keyed' ? spec.of : spec));

/** Whether each retry has a guard as its neighbour, with which it becomes one step. */
export function hasFusedRetries(specs: readonly PolicySpec[]): boolean {
  return specs.every((spec, index) => {
    if (spec.kind === 'keyed') return hasFusedRetries(spec.of);
    return spec.kind !== 'retry' || isGuard(specs[index - 1]) || isGuard(specs[index + 1]);
  });
}

export const guardKinds: ReadonlySet<string> = new Set(Object.keys(guardSpecs));

const isGuard = (spec: PolicySpec | undefined) => spec !== undefined && guardKinds.has(spec.kind);

export function isAccepted({ policies: specs }: Script): boolean {
  try {
    new Stage({ policies: specs, calls: [], mischiefs: [] }, {}).build();
    return true;
  } catch (error) {
    if (error instanceof OptionsError) return false;
    throw error;
  }
}

/** Runs a script to its end on its own clock. */
export async function play(script: Script, options: PlayOptions = {}): Promise<Played> {
  const stage = new Stage(script, options);
  return stage.play();
}

/** A budget that counts. */
class Ledger implements RetryBudget {
  withdrawals = 0;
  deposits = 0;
  private readonly budget: RetryBudget;
  private readonly whenPaid: (() => void) | undefined;

  constructor(clock: VirtualClock, whenPaid: (() => void) | undefined) {
    this.whenPaid = whenPaid;
    this.budget = retryBudget({ clock, initial: 2, ratio: 0.5, minPerSecond: 20 });
  }

  get balance(): number {
    return this.budget.balance;
  }

  deposit(): void {
    this.deposits++;
    this.budget.deposit();
    this.whenPaid?.();
  }

  tryWithdraw(): boolean {
    const granted = this.budget.tryWithdraw();
    if (granted) this.withdrawals++;
    this.whenPaid?.();
    return granted;
  }
}

class Stage {
  private readonly clock = virtualClock();
  private readonly script: Script;
  private readonly options: PlayOptions;
  private readonly faults: string[] = [];
  private readonly events: { atMs: number; text: string }[] = [];
  private readonly permits: PermitRecord[] = [];
  private readonly starts: string[] = [];
  private readonly aborts: string[] = [];
  private readonly seenCalls = new Set<Call>();
  private readonly controllers: AbortController[];
  /** What must hold at any time, and what must hold at the end. */
  private readonly always: (() => void)[] = [];
  private readonly atEnd: (() => void)[] = [];
  private readonly eventCounts = new Map<string, number>();
  /** The values that callers got. */
  private readonly given = new Set<unknown>();
  private inner: Pipeline<unknown> | undefined = undefined;
  private running = 0;
  private successes = 0;
  private made = 0;

  constructor(script: Script, options: PlayOptions) {
    this.script = script;
    this.options = options;
    this.controllers = script.calls.map(() => new AbortController());
  }

  build(): Pipeline<unknown> {
    return pipeline(...this.script.policies.map((spec, index, all) => this.make(spec, all.slice(index + 1))));
  }

  async play(): Promise<Played> {
    const { clock, script } = this;
    const built = this.build();
    const { nested } = this.options;
    if (nested !== undefined) this.inner = pipeline(...nested.map((spec) => this.make(spec, [{ kind: 'passes' }])));
    const outcomes = script.calls.map(() => ({ settledMs: [] as number[], outcome: undefined as Outcome | undefined }));
    for (const [index, call] of script.calls.entries()) {
      void clock.sleep(call.startMs).then(() => this.begin(built, index, outcomes[index]!));
    }
    await clock.runAll({ maxTimers: this.options.maxTimers ?? 10_000 });
    for (const [index, { settledMs }] of outcomes.entries()) {
      if (settledMs.length !== 1) this.fault(`call ${index} settled ${settledMs.length} times`);
      const latestMs = this.latestMs(index);
      if (settledMs[0]! > latestMs) this.fault(`call ${index} settled at ${settledMs[0]}, must by ${latestMs}`);
    }
    if (this.running > 0) this.fault(`${this.running} operations run on`);
    this.check();
    for (const check of this.atEnd) check();
    if (clock.pendingTimers > 0) this.fault(`${clock.pendingTimers} timers left`);
    for (const { signal } of this.controllers) {
      if (getEventListeners(signal, 'abort').length > 0) this.fault('a listener left on a signal of a caller');
    }
    this.checkCalls();
    for (const { name, told } of this.permits) {
      const [settlement, end, ...more] = told.map((text) => text.split(' ')[0]);
      const isFine = (settlement === 'settled' || settlement === 'released') && end === 'ended' && more.length === 0;
      if (!isFine) this.fault(`a permit of ${name} was told: ${told.join(', ') || 'nothing'}`);
    }
    const { starts, aborts, permits, events, faults } = this;
    return { outcomes, starts, aborts, permits, events, faults };
  }

  private fault(text: string): void {
    this.faults.push(text);
  }

  private check(): void {
    for (const check of this.always) check();
  }

  private begin(
    built: Pipeline<unknown>,
    index: number,
    told: { settledMs: number[]; outcome: Outcome | undefined },
  ): void {
    const { clock, script, options } = this;
    const { abortAfterMs, deadlineAfterMs, key, isUnsafe } = script.calls[index]!;
    const controller = this.controllers[index]!;
    const settle = (outcome: Outcome) => {
      told.settledMs.push(clock.now());
      told.outcome = outcome;
      if (outcome.ok) this.given.add(outcome.value);
      this.check();
    };
    let runs = 0;
    const task = (call: Call) => {
      const run = runs++;
      if (this.inner === undefined || run % 2 === 1) return this.operation(index, run, call);
      return this.throughInner(this.inner, call, (inside) => this.operation(index, runs++, inside));
    };
    const given = {
      signal: controller.signal,
      key,
      attributes: { id: index },
      ...(isUnsafe && { unsafe: true, idempotencyKey: 'once' }),
      ...(deadlineAfterMs !== undefined && { deadline: clock.now() + deadlineAfterMs }),
    } as ExecuteOptions;
    // A rejection of `attempt` is left unhandled, so that it fails the test.
    if (options.way === 'execute') {
      void built.execute(task, given).then(
        (value) => settle({ ok: true, value }),
        (error) => settle({ ok: false, error }),
      );
    } else void built.attempt(task, given).then(settle);
    if (abortAfterMs === undefined) return;
    if (abortAfterMs === 0) controller.abort('gone');
    else void clock.sleep(abortAfterMs).then(() => controller.abort('gone'));
  }

  /** The inner call must end with the call around it, whether or not it is told about that call. */
  private throughInner(inner: Pipeline<unknown>, around: Call, task: (call: Call) => unknown): Promise<unknown> {
    this.seenCalls.add(around);
    this.running++;
    const end = () => {
      this.running--;
      // A timer for an end that came from outside yields to the timer that it came from.
      if (around.deadline + 1 < this.clock.now()) this.fault(`an inner call ended after ${around.deadline}`);
    };
    const running = inner.execute((call) => task(this.mustBeUnder(call, around)), { key: 'inner' });
    running.then(end, end);
    return running;
  }

  /** A flight runs for all its callers, so it belongs to none of them. */
  private mustBeUnder(call: Call, around: Call): Call {
    const isShared = allOf(this.options.nested ?? []).some(({ kind }) => kind === 'flight');
    for (let each: Call | undefined = call; each !== around && !isShared; each = each.parent) {
      if (each !== undefined) continue;
      this.fault('an inner call does not know of the call around it');
      break;
    }
    return call;
  }

  private operation(index: number, run: number, call: Call): unknown {
    const { clock, script } = this;
    const { behaviours } = script.calls[index]!;
    const { ends, afterMs, mindsSignal } = behaviours[run % behaviours.length]!;
    const name = `${index}.${call.attempt} run ${run}`;
    this.starts.push(`${name} at ${clock.now()}, until ${call.deadline}`);
    if (call.aborted) this.fault(`${name} begins although its call is over`);
    this.seenCalls.add(call);
    this.running++;
    this.check();
    if (run % 2 === 0)
      call.signal.addEventListener('abort', () => this.aborts.push(`${name} at ${clock.now()}`), { once: true });
    const end = (isSuccess: boolean) => {
      this.running--;
      if (isSuccess) this.successes++;
    };
    switch (ends) {
      case 'throws at once':
        end(false);
        throw new Failure(name);
      case 'value at once':
        end(true);
        return name;
      case 'thenable':
        end(true);
        return {
          then(resolve: (value: string) => void, reject: (error: unknown) => void) {
            resolve(name);
            resolve('again');
            reject(new Error('too late'));
          },
        };
      case 'aborts itself':
        call.abort(new Failure(`${name} aborts itself`));
    }
    const sleeping = clock.sleep(
      ends === 'never' ? 400 + afterMs : afterMs,
      mindsSignal ? { signal: call.signal } : {},
    );
    const isSuccess = ends === 'value' || ends === 'never';
    return sleeping.then(
      () => {
        end(isSuccess);
        if (isSuccess) return name;
        throw ends === 'asks to wait' ? Object.assign(new Failure(name), { retryAfterMs: 7 }) : new Failure(name);
      },
      (error) => {
        end(false);
        throw error;
      },
    );
  }

  private latestMs(index: number): number {
    const {
      startMs,
      abortAfterMs = Number.POSITIVE_INFINITY,
      deadlineAfterMs = Number.POSITIVE_INFINITY,
    } = this.script.calls[index]!;
    const [first] = this.script.policies;
    const endMs = first?.kind === 'timeout' || first?.kind === 'deadline' ? first.afterMs : Number.POSITIVE_INFINITY;
    return startMs + Math.min(abortAfterMs, deadlineAfterMs, endMs);
  }

  /** No call that was seen may still have a listener, or something that it waits for. */
  private checkCalls(): void {
    interface Inside {
      readonly firstDependent: unknown;
      readonly owner: unknown;
      readonly aftermath: { readonly abandonedWork: number; readonly whenIdle: readonly unknown[] } | undefined;
    }
    for (const seen of this.seenCalls) {
      for (let call: Call | undefined = seen; call !== undefined; call = call.parent) {
        const { firstDependent, owner, aftermath } = call as unknown as Inside;
        if (firstDependent !== undefined) this.fault('a dependent left');
        if (owner !== undefined) this.fault('a call left with its parent');
        if (aftermath !== undefined && aftermath.abandonedWork !== 0)
          this.fault(`abandoned work ${aftermath.abandonedWork}`);
        if (aftermath !== undefined && aftermath.whenIdle.length > 0) this.fault('someone waits for abandoned work');
      }
    }
  }

  private readonly on = (event: HoldfastEvent): void => {
    const { type, name, error: _, outcome: __, errors: ___, ...more } = event as unknown as Record<string, unknown>;
    const number = this.events.length;
    this.events.push({ atMs: this.clock.now(), text: `${name} ${type} ${JSON.stringify(more)}` });
    const counted = `${name} ${type}`;
    this.eventCounts.set(counted, (this.eventCounts.get(counted) ?? 0) + 1);
    this.check();
    for (const { atEvent, does, callIndex } of this.script.mischiefs) {
      if (atEvent !== number) continue;
      if (does === 'throws') throw new Error('hook');
      this.controllers[callIndex % this.controllers.length]?.abort('gone by a hook');
    }
  };

  private times(name: string, type: string): number {
    return this.eventCounts.get(`${name} ${type}`) ?? 0;
  }

  /** `inside` is what stands inside of the policy, where the place matters for what must hold. */
  private make(spec: PolicySpec, inside: readonly PolicySpec[]): AnyPolicy {
    const { clock, on } = this;
    const name = `${spec.kind} ${++this.made}`;
    switch (spec.kind) {
      case 'recorder':
        return this.recorder(spec, name);
      case 'timeout':
        return timeout({ after: spec.afterMs, name, on, clock });
      case 'deadline':
        return deadline({ after: spec.afterMs, name, on, clock });
      case 'fallback':
        return fallback(() => 'instead', { name, on, clock });
      case 'passes':
        return { name, traits: { kind: 'passes', summary: '', clock }, handle: (call, next) => next(call) } as Strategy;
      case 'flight':
        return singleFlight({ key: (call) => call.key, name, on, clock });
      case 'keyed':
        return this.keyed(spec, name, inside);
      case 'throttle': {
        let drawn = 0;
        return throttle({
          minimumCalls: 2,
          window: 100,
          factor: 1.1,
          random: () => (++drawn * 0.618) % 1,
          name,
          on,
          clock,
        });
      }
      case 'hedge': {
        const ledger = new Ledger(clock, spec.abortsWhen === 'paid' ? this.abortAll : undefined);
        this.atEnd.push(() => {
          if (ledger.withdrawals !== this.times(name, 'hedge'))
            this.fault(`${name}: ${ledger.withdrawals} withdrawals`);
        });
        return hedge({
          delay: spec.delayMs,
          max: spec.max,
          budget: ledger,
          handles: this.handles(spec),
          onDiscard: this.onDiscard(spec, name),
          name,
          on,
          clock,
        });
      }
      case 'retry':
        return this.retry(spec, name);
      case 'breaker':
        return this.breaker(spec, name);
      case 'bulkhead':
        return this.bulkhead(spec, name, inside);
      case 'rate':
        return this.rate(spec, name);
      case 'adaptive': {
        const { algorithm, max, queue } = spec;
        const made = adaptiveLimit({ algorithm, initial: max, max, queue, random: () => 0.5, name, on, clock });
        this.atEnd.push(() => {
          if (made.running + made.waiting > 0) this.fault(`${name}: ${made.running} run, ${made.waiting} wait`);
        });
        return made;
      }
    }
  }

  private readonly abortAll = () => {
    for (const controller of this.controllers) controller.abort('all gone');
  };

  private handles(spec: { readonly refusesValues: boolean; readonly abortsWhen: string | undefined }): Handles {
    return (outcome) => {
      if (spec.abortsWhen === 'judging') this.abortAll();
      return !outcome.ok || (spec.refusesValues && /\.1 /.test(outcome.value));
    };
  }

  /** A value may be discarded only once, and only if no caller got it. */
  private onDiscard({ abortsWhen }: { readonly abortsWhen: string | undefined }, name: string) {
    const isShared = allOf([...this.script.policies, ...(this.options.nested ?? [])]).some(
      ({ kind }) => kind === 'flight',
    );
    const discarded = new Set<unknown>();
    this.atEnd.push(() => {
      for (const value of discarded)
        if (this.given.has(value) && !isShared) this.fault(`${name}: discarded what was given`);
    });
    return (value: unknown) => {
      if (discarded.has(value) && value !== 'instead' && !isShared) this.fault(`${name}: ${value} discarded again`);
      if (value !== 'instead') discarded.add(value);
      if (abortsWhen === 'discarding') this.abortAll();
    };
  }

  private keyed(spec: KeyedSpec, name: string, inside: readonly PolicySpec[]): AnyPolicy {
    const { maxKeys, idleMs, of, isPipeline } = spec;
    const all: AnyPolicy[] = [];
    const factory = () => {
      const made = of.map((part) => this.make(part, [...inside, { kind: 'passes' }]));
      all.push(...made);
      return isPipeline ? pipeline(...made) : made[0]!;
    };
    const options = { name, clock: this.clock, maxKeys, maxEjected: 0.5 };
    const made = keyed(factory, idleMs === undefined ? options : { ...options, idle: idleMs });
    interface Member {
      readonly state: string;
      readonly settings: { readonly group?: unknown };
    }
    this.atEnd.push(() => {
      const members = (all as unknown as Member[]).filter(({ settings }) => settings?.group === made);
      const open = members.filter(({ state }) => state === 'open' || state === 'half-open').length;
      const { openMembers } = made as unknown as { readonly openMembers: number };
      if (openMembers !== open) this.fault(`${name}: counts ${openMembers} open circuits of ${open}`);
      if (made.size > maxKeys) this.fault(`${name}: keeps ${made.size} keys`);
    });
    return made;
  }

  private retry(spec: Of<typeof retrySpec>, name: string): AnyPolicy {
    const { clock, on } = this;
    const ledger = spec.hasBudget
      ? new Ledger(clock, spec.abortsWhen === 'paid' ? this.abortAll : undefined)
      : undefined;
    this.atEnd.push(() => {
      if (ledger === undefined) return;
      if (ledger.withdrawals !== this.times(name, 'retry')) this.fault(`${name}: ${ledger.withdrawals} withdrawals`);
    });
    const made = retry({
      attempts: spec.attempts,
      backoff: ({ attempt }) => {
        if (spec.abortsWhen === 'waiting') this.abortAll();
        return spec.delayMs * (1 + attempt / 8);
      },
      ...(spec.refusesValues || spec.abortsWhen === 'judging' ? { handles: this.handles(spec) } : {}),
      onDiscard: this.onDiscard(spec, name),
      minAttemptTime: spec.minAttemptMs,
      random: () => 0.5,
      ...(ledger === undefined ? {} : { budget: ledger }),
      name,
      on,
      clock,
    });
    return this.options.changeRetry?.(made) ?? made;
  }

  private breaker(spec: Of<typeof guardSpecs.breaker>, name: string): Guard {
    const { clock, on } = this;
    const made = circuitBreaker({
      ...(spec.window === 'consecutive'
        ? { window: { consecutive: spec.calls } }
        : {
            window: spec.window === 'calls' ? { calls: 4 } : 60,
            minimumCalls: spec.calls,
            ...(spec.slowMs !== undefined && { slowCallRate: 0.5, slowCallDuration: spec.slowMs }),
          }),
      shadow: spec.shadow,
      openFor: spec.openMs,
      maxOpenFor: spec.openMs * 2,
      halfOpen: {
        permits: Math.max(spec.permits, spec.successes),
        successes: spec.successes,
        ...(spec.probeMs === undefined ? {} : { timeout: spec.probeMs }),
      },
      ...(spec.rampMs < 1 ? {} : { rampUp: spec.rampMs }),
      random: () => 0.5,
      name,
      on,
      clock,
    });
    const inside = made as unknown as {
      readonly current: {
        readonly kind: string;
        readonly left: number;
        readonly probes: Set<unknown>;
        successes: number;
        failures: number;
      };
    };
    const permits = Math.max(spec.permits, spec.successes);
    this.always.push(() => {
      const { kind, left, probes, successes, failures } = inside.current;
      if (kind === 'half-open' && (left < 0 || left + probes.size + successes + failures !== permits)) {
        this.fault(
          `${name}: ${left} probes left and ${probes.size} out, ${successes} and ${failures} ended, of ${permits}`,
        );
      }
    });
    this.atEnd.push(() => {
      if (inside.current.kind === 'half-open' && inside.current.probes.size > 0)
        this.fault(`${name}: a probe is out for ever`);
    });
    return made;
  }

  private bulkhead(spec: Of<typeof guardSpecs.bulkhead>, name: string, inside: readonly PolicySpec[]): Guard {
    const { clock, on } = this;
    const { limit, queue, order, maxWaitMs, releaseOn } = spec;
    const made = bulkhead({
      limit,
      queue,
      order,
      releaseOn,
      ...(maxWaitMs === undefined ? {} : { maxWait: maxWaitMs }),
      name,
      on,
      clock,
    });
    // Further inside, more than one operation may run for one slot, and a bulkhead of a key counts only its own calls.
    const boundsAll =
      releaseOn === 'settle' &&
      this.options.nested === undefined &&
      !inside.some(({ kind }) => ['retry', 'hedge', 'keyed', 'passes'].includes(kind));
    this.always.push(() => {
      if (made.running > limit || made.waiting > queue)
        this.fault(`${name}: ${made.running} run, ${made.waiting} wait`);
      if (boundsAll && this.running > limit) this.fault(`${name}: ${this.running} operations run`);
    });
    this.atEnd.push(() => {
      const left = [made.running, made.waiting, made.abandoned];
      if (left.some((number) => number !== 0)) this.fault(`${name}: ${left.join(', ')} left`);
    });
    return made;
  }

  private rate(spec: Of<typeof guardSpecs.rate>, name: string): Guard {
    const { clock, on } = this;
    const { limit, periodMs, burst, waits, queue } = spec;
    const options = { limit, period: periodMs, burst, name, on, clock };
    const made = rateLimit(waits ? { ...options, whenFull: 'wait', queue } : options);
    const grantedMs: number[] = [];
    const note = <T extends object>(answer: T): T => {
      if ('settle' in answer) grantedMs.push(clock.now());
      return answer;
    };
    this.atEnd.push(() => {
      if (made.waiting > 0) this.fault(`${name}: ${made.waiting} wait`);
      for (const [first, fromMs] of grantedMs.entries()) {
        for (let last = first; last < grantedMs.length; last++) {
          const allowed = burst + ((grantedMs[last]! - fromMs) * limit) / periodMs;
          if (last - first + 1 > allowed + 1e-6) this.fault(`${name}: ${last - first + 1} starts where ${allowed} may`);
        }
      }
    });
    return {
      name,
      ...(made.traits === undefined ? {} : { traits: made.traits }),
      admit(call) {
        const answer = made.admit(call);
        return answer instanceof Promise ? answer.then(note) : note(answer);
      },
    };
  }

  /** A guard that records what its permits are told. If it queues, it ignores aborts. */
  private recorder(spec: Of<typeof guardSpecs.recorder>, name: string): Guard {
    const { clock } = this;
    const { endsMs, refusesEvery, queueMs, abortsWhen } = spec;
    let asked = 0;
    const answer = (): Permit | Refusal => {
      if (refusesEvery !== undefined && asked % refusesEvery === 0) return { error: new Failure(`${name} refuses`) };
      const record: PermitRecord = { name, admittedMs: clock.now(), told: [] };
      this.permits.push(record);
      const note = (when: string, text = when) => {
        record.told.push(`${text} at ${clock.now()}`);
        if (abortsWhen === when) this.abortAll();
      };
      return {
        ...(endsMs === undefined ? {} : { endsAt: clock.now() + endsMs }),
        settle: ({ ok }) => note('settled', `settled ${ok}`),
        release: () => note('released'),
        ended: () => note('ended'),
      };
    };
    return {
      name,
      traits: { kind: 'recorder', summary: '', clock },
      admit: (call) => {
        this.seenCalls.add(call);
        asked++;
        if (abortsWhen === 'asked') this.abortAll();
        return queueMs === undefined ? answer() : clock.sleep(queueMs).then(answer);
      },
    };
  }
}
