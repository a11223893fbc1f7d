/**
 * opossum: uses an existing `CircuitBreaker` of that package as a policy, and converts its options to ours.
 *
 * Promise: opossum itself decides, counts and reports; its state is shared with everything else that fires it. Refusals of policies inside, and an
 * abort by the caller, do not count as failures. When opossum refuses a call or times it out, the caller gets our error.
 * Written against opossum 10.
 */
import type { Call, Dependent } from '../core/call.js';
import {
  BulkheadFullError,
  CircuitOpenError,
  isAbandoned,
  isRejected,
  OptionsError,
  TimeoutError,
} from '../core/errors.js';
import {
  checkOptions,
  duration,
  type Field,
  func,
  integer,
  number,
  optional,
  text,
  withDefault,
} from '../core/options.js';
import type { Handles, Outcome } from '../core/outcome.js';
import type { Strategy } from '../core/policy.js';

/** The parts of an opossum breaker that the bridge uses. */
export interface OpossumBreaker {
  readonly name: string;
  readonly opened: boolean;
  readonly halfOpen: boolean;
  /** Every breaker has them; `@types/opossum` does not mention them. */
  readonly options?: {
    readonly timeout?: unknown;
    readonly capacity?: unknown;
    readonly cache?: unknown;
    readonly coalesce?: unknown;
  };
  /** Runs its action with `context` as `this`, if its circuit lets it. */
  call(context: unknown, ...args: unknown[]): Promise<unknown>;
}

/**
 * Turns an existing opossum breaker into a policy: it guards whatever is inside it in a pipeline, not its own action.
 *
 * Use it to migrate step by step: calls through the pipeline and calls by `breaker.fire()` share one circuit. Its listeners,
 * `errorFilter` and `fallback` receive the call in place of the arguments. Opossum knows only success and failure: an outcome
 * that is no failure of the service counts as a success while the circuit is closed, and reopens it while it is half-open.
 *
 * @typeParam Added - What its `fallback` returns, if it has one.
 * @param breaker - Created by `new CircuitBreaker(...)` of opossum, without its `cache` and `coalesce`.
 * @throws {@link CircuitOpenError} `ERR_CIRCUIT_OPEN`, when it lets no call through or was shut down (`isolated`).
 * @throws {@link BulkheadFullError} `ERR_BULKHEAD_FULL`, when its `capacity` is used up.
 * @throws {@link TimeoutError} `ERR_TIMEOUT`, after its `timeout`; the call inside is aborted.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for anything but such a breaker.
 * @example
 * ```js
 * import CircuitBreaker from 'opossum';
 * import { pipeline } from 'holdfast';
 * import { fromOpossum } from 'holdfast/opossum';
 *
 * const breaker = new CircuitBreaker((id) => `user ${id}`, { timeout: 1000 });
 * const users = pipeline(fromOpossum(breaker));
 * console.log(await users.execute(() => 'through the pipeline'), breaker.stats.successes); // through the pipeline 1
 * breaker.shutdown();
 * ```
 */
export function fromOpossum<Added = never>(breaker: OpossumBreaker): Strategy<Added> {
  const doubt = doubtOf(breaker);
  if (doubt !== undefined) {
    throw new OptionsError(`fromOpossum: ${doubt}`, {
      policy: 'fromOpossum',
      option: 'breaker',
      value: breaker,
      allowed: 'a CircuitBreaker of opossum without cache and coalesce',
    });
  }
  const guarding = withAction(breaker, runInside);
  return {
    name: breaker.name,
    traits: { kind: 'circuit-breaker', summary: 'an opossum breaker lets calls through while its circuit is closed' },
    handle: <T>(call: Call, next: (call: Call) => Promise<T>) =>
      new OpossumRun(guarding, call, next).go() as Promise<T>,
  };
}

/** The options of opossum that {@link fromOpossumOptions} understands. */
export interface OpossumOptions {
  readonly name?: string | undefined;
  /** Becomes the timeout; `false` for none. Default 10 s, as with opossum. */
  readonly timeout?: number | false | undefined;
  /** Becomes the limit of the bulkhead. Default: none. */
  readonly capacity?: number | undefined;
  /** Becomes `failureRate`. Default 50; from 1 to 100. */
  readonly errorThresholdPercentage?: number | undefined;
  /** Becomes `minimumCalls`. Default 0, which means 1 here. */
  readonly volumeThreshold?: number | undefined;
  /** Becomes `window`. Default 10 s. */
  readonly rollingCountTimeout?: number | undefined;
  /** Becomes `openFor`. Default 30 s. */
  readonly resetTimeout?: number | undefined;
  /** Returns true for errors that are not failures. It receives the error alone. */
  // biome-ignore lint/suspicious/noExplicitAny: opossum declares it so, and existing filters name the class of error that they look at.
  readonly errorFilter?: ((error: any) => boolean) | undefined;
  /** These four concern only opossum's statistics and are ignored. */
  readonly group?: string | undefined;
  readonly rollingCountBuckets?: number | undefined;
  readonly rollingPercentilesEnabled?: boolean | undefined;
  readonly enableSnapshots?: boolean | undefined;
}

/** Options of our policies that correspond to the given options of opossum. */
export interface FromOpossumOptions {
  /** For `circuitBreaker`. */
  readonly circuitBreaker: {
    readonly name: string;
    readonly failureRate: number;
    readonly minimumCalls: number;
    readonly window: number;
    readonly openFor: number;
    readonly maxOpenFor: number;
    readonly halfOpen: { readonly permits: 1; readonly successes: 1 };
    readonly handles: Handles;
  };
  /** For `bulkhead`, inside the breaker; undefined without `capacity`. */
  readonly bulkhead: { readonly limit: number; readonly queue: 0 } | undefined;
  /** For `timeout`, innermost; undefined when opossum's was off. */
  readonly timeout: { readonly after: number } | undefined;
}

/**
 * Translates options of opossum into ours, for the day on which its breaker goes.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an option that is invalid or has no counterpart: `cache` and
 * `coalesce` are separate policies here, and each call has its own signal.
 * @example
 * ```ts
 * import { pipeline, timeout } from 'holdfast';
 * import { fromOpossumOptions } from 'holdfast/opossum';
 *
 * const ours = fromOpossumOptions({ timeout: 3000, errorThresholdPercentage: 50, resetTimeout: 30000 });
 * const users = pipeline(timeout(ours.timeout ?? '10s'));
 * console.log(await users.execute(() => 'user 42'), ours.circuitBreaker.openFor); // user 42 30000
 * ```
 */
export function fromOpossumOptions(options?: OpossumOptions): FromOpossumOptions {
  const { name, timeout, capacity, errorFilter, ...checked } = checkOptions('fromOpossumOptions', options, {
    name: withDefault(text(), 'circuitBreaker'),
    timeout: withDefault(timeoutField, 10_000),
    capacity: optional(integer({ min: 1 })),
    errorThresholdPercentage: withDefault(number({ min: 1, max: 100 }), 50),
    volumeThreshold: withDefault(integer({ min: 0 }), 0),
    rollingCountTimeout: withDefault(duration({}), 10_000),
    resetTimeout: withDefault(duration({}), 30_000),
    errorFilter: optional(func<(error: unknown) => boolean>()),
    group: optional(anything),
    rollingCountBuckets: optional(anything),
    rollingPercentilesEnabled: optional(anything),
    enableSnapshots: optional(anything),
  });
  return {
    circuitBreaker: {
      name,
      failureRate: checked.errorThresholdPercentage / 100,
      minimumCalls: Math.max(1, checked.volumeThreshold),
      window: checked.rollingCountTimeout,
      openFor: checked.resetTimeout,
      maxOpenFor: checked.resetTimeout,
      halfOpen: { permits: 1, successes: 1 },
      handles: (outcome) => !outcome.ok && !errorFilter?.(outcome.error),
    },
    bulkhead: capacity === undefined ? undefined : { limit: capacity, queue: 0 },
    timeout: timeout === false ? undefined : { after: timeout },
  };
}

const anything: Field<unknown> = { allowed: 'anything', parse: (value) => value };

const milliseconds = duration({});
const timeoutField: Field<number | false> = {
  allowed: `${milliseconds.allowed}, or false`,
  parse: (value) => (value === false ? false : milliseconds.parse(value)),
};

function doubtOf(breaker: OpossumBreaker): string | undefined {
  const { call, options } = (breaker ?? {}) as Partial<OpossumBreaker>;
  if (typeof call !== 'function' || typeof options !== 'object' || options === null) {
    return 'the argument must be a CircuitBreaker of opossum';
  }
  // opossum derives its cache keys from the arguments, so all calls would share one answer.
  if (options.cache || options.coalesce)
    return 'opossum\'s "cache" and "coalesce" must be off; use cache or singleFlight';
  return undefined;
}

/** The same breaker, with its state, but another action: reads of `action` are intercepted, everything else passes through. */
function withAction(breaker: OpossumBreaker, action: (this: OpossumRun) => Promise<unknown>): OpossumBreaker {
  return new Proxy(breaker, {
    get: (target, property) => (property === 'action' ? action : Reflect.get(target, property)),
  });
}

/** The action that opossum runs, with the run as `this`, if its circuit admits the call. */
function runInside(this: OpossumRun): Promise<unknown> {
  return this.start();
}

/** One call through an opossum breaker, and the listener for its abort. */
class OpossumRun implements Dependent {
  owner: Call | undefined = undefined;
  previousDependent: Dependent | undefined = undefined;
  nextDependent: Dependent | undefined = undefined;

  private readonly breaker: OpossumBreaker;
  private readonly call: Call;
  private readonly scope: Call;
  private readonly next: (call: Call) => Promise<unknown>;
  private hasStarted = false;
  /** Whether the operation may still be running although nobody waits for it. */
  private isGivenUp = false;
  /** How the operation ended, as soon as that is known; never, if opossum's timeout comes first. */
  private outcome: Outcome | undefined = undefined;
  private isIgnored = false;
  private tell: ((value: unknown) => void) | undefined = undefined;

  constructor(breaker: OpossumBreaker, call: Call, next: (call: Call) => Promise<unknown>) {
    this.breaker = breaker;
    this.call = call;
    this.scope = call.child();
    this.next = next;
  }

  async go(): Promise<unknown> {
    let answer: Outcome;
    try {
      answer = { ok: true, value: await this.breaker.call(this, this.call) };
    } catch (error) {
      answer = { ok: false, error };
    }
    if (this.hasStarted && this.outcome === undefined) answer = this.timedOut(answer);
    const ended = this.outcome;
    // Whatever a listener or a filter made of it, this is how the operation ended. Only a fallback may replace a failure.
    if (ended !== undefined && (ended.ok || !answer.ok || this.isIgnored)) answer = ended;
    if (answer.ok) return answer.value;
    throw this.hasStarted ? answer.error : this.refusalOf(answer.error);
  }

  /** opossum admits the call. */
  start(): Promise<unknown> {
    this.hasStarted = true;
    const told = new Promise((resolve) => {
      this.tell = resolve;
    });
    const { call } = this;
    if (call.aborted) {
      // A listener of the breaker has ended the call.
      this.end({ ok: false, error: call.reason }, !isAbandoned(call.reason));
      return told;
    }
    call.attach(this);
    this.next(this.scope).then(
      (value) => this.workEnded({ ok: true, value }),
      (error) => this.workEnded({ ok: false, error }),
    );
    return told;
  }

  onAbort(reason: unknown): void {
    this.giveUp();
    this.end({ ok: false, error: reason }, !isAbandoned(reason));
  }

  private workEnded(outcome: Outcome): void {
    if (this.isGivenUp) this.call.endAbandonedWork();
    else this.end(outcome, !outcome.ok && isRejected(outcome.error));
  }

  private end(outcome: Outcome, isIgnored: boolean): void {
    this.outcome = outcome;
    this.isIgnored = isIgnored;
    this.call.detach(this);
    this.call.detach(this.scope);
    if (outcome.ok) this.tell?.(outcome.value);
    else if (isIgnored && !this.breaker.halfOpen) this.tell?.(outcome.error);
    else this.tell?.(Promise.reject(outcome.error));
  }

  private timedOut(answer: Outcome): Outcome {
    const afterMs = Number(this.breaker.options?.timeout);
    const error = new TimeoutError({ policy: this.breaker.name, afterMs });
    this.giveUp();
    this.scope.abort(error);
    this.call.detach(this);
    this.call.detach(this.scope);
    return answer.ok ? answer : { ok: false, error };
  }

  private giveUp(): void {
    this.isGivenUp = true;
    this.call.beginAbandonedWork();
  }

  private refusalOf(error: unknown): unknown {
    const { name: policy, halfOpen, options } = this.breaker;
    switch ((error as { readonly code?: unknown } | null | undefined)?.code) {
      case 'EOPENBREAKER':
        return new CircuitOpenError({ policy, state: halfOpen ? 'half-open' : 'open', cause: error });
      case 'ESHUTDOWN':
        return new CircuitOpenError({ policy, state: 'isolated', cause: error });
      case 'ESEMLOCKED':
        return new BulkheadFullError({ policy, limit: Number(options?.capacity), queue: 0, cause: error });
      default:
        return error;
    }
  }
}
