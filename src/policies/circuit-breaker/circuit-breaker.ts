/**
 * Circuit breaker: stops calling a service that fails, and uses a few probes to find out whether it has recovered.
 *
 * Promise: the result of a call that began before the circuit changed its state says nothing about the current state and changes nothing. A caller's
 * abort and our own refusals never count. A probe that hangs cannot keep the circuit half-open for ever. Recording a result costs the same whatever
 * the window holds. There are no timers.
 * After: Nygard, "Release It!" 2nd ed., ch. 5; sony/gobreaker; resilience4j; Finagle (growing openings).
 */
import { showBriefly } from '../../core/brief.js';
import type { Call } from '../../core/call.js';
import { type Duration, parseDuration } from '../../core/duration.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  type Field,
  flag,
  func,
  impossibleOption,
  integer,
  number,
  optional,
  type RefusalOptions,
  withDefault,
} from '../../core/options.js';
import { type Handles, handlesThrows } from '../../core/outcome.js';
import type { Guard, Permit, Refusal } from '../../core/policy.js';
import { bucketsPerWindow } from '../../structures/time-window.js';
import { Breaker } from './breaker.js';
import { noteMade } from './made-per-call.js';
import type { Settings } from './settings.js';
import type { CircuitSnapshot, CircuitState } from './snapshot.js';

/** Options of {@link circuitBreaker}. */
export interface CircuitBreakerOptions extends CommonOptions, RefusalOptions {
  /**
   * What the rates are computed over: the calls of a time (from 10 ms to 24 h), the last calls (`{ calls }`, from 1 to
   * 100,000), or only failures in a row (`{ consecutive }`, from 1 to 100,000). Default `'30s'`.
   */
  readonly window?: Duration | { readonly calls: number } | { readonly consecutive: number } | undefined;
  /** Calls that the window must hold before its rates count. Default 20, or `window.calls` if that is less. */
  readonly minimumCalls?: number | undefined;
  /** The share of failures, above 0 to 1, at which it opens. Default 0.5. */
  readonly failureRate?: number | undefined;
  /** The share of slow calls, above 0 to 1, at which it opens. Default: slowness does not count. */
  readonly slowCallRate?: number | undefined;
  /** Calls that take longer than this are slow. Requires `slowCallRate`. */
  readonly slowCallDuration?: Duration | undefined;
  /** Upper bound of the first opening of a series; the lower bound is half of it. Default 5 s; from 1 ms to 24 h. */
  readonly openFor?: Duration | undefined;
  /** The limit up to which the openings of a series double. Default 60 s, or `openFor` if that is more. */
  readonly maxOpenFor?: Duration | undefined;
  /** How it finds out whether the service has recovered. */
  readonly halfOpen?: HalfOpenOptions | undefined;
  /** Time after the probes over which the share of calls let through grows from a tenth to all. Default: off. */
  readonly rampUp?: Duration | undefined;
  /** Which outcomes are failures. Default: every throw, and no value. */
  readonly handles?: Handles | undefined;
  /** Decides and reports, but refuses nothing: for trying out settings. Default `false`. */
  readonly shadow?: boolean | undefined;
  /** The source of randomness, in [0, 1), for the length of openings. Default `Math.random`. */
  readonly random?: (() => number) | undefined;
}

/** What a circuit does once its opening is over. */
export interface HalfOpenOptions {
  /** Probes per half-open cycle, both concurrent and in total. Default 3; from 1 to 1,000. */
  readonly permits?: number | undefined;
  /** How many of the probes must succeed. Default: all. */
  readonly successes?: number | undefined;
  /** How long a probe may take before it counts as a failure. Default: the length of the opening, at most 10 s. */
  readonly timeout?: Duration | undefined;
}

/** A circuit breaker. Outside a pipeline `admit()` works without a call. */
export interface CircuitBreaker extends Guard {
  /** The state of the circuit. An expired state ends when the next call arrives, because no timer watches it. */
  readonly state: CircuitState;
  /** Returns a permit, or a refusal with a `CircuitOpenError`. Settle or release the permit; a second time has no effect. */
  admit(call?: Call): Permit | Refusal;
  /** Refuses every call until `reset()`. */
  isolate(): void;
  /** Lets every call through and counts nothing until `reset()`. */
  forceClosed(): void;
  /** Closes it with an empty window; the next opening is as short as the first. */
  reset(): void;
  /** The circuit in numbers, for a metric or for {@link CircuitBreaker.restore}. */
  snapshot(): CircuitSnapshot;
  /**
   * Resumes from a snapshot: an open circuit stays open for the rest of its time, a half-open one starts with new
   * probes, a closed one with an empty window. Returns whether the snapshot was consistent; an inconsistent one changes nothing.
   */
  restore(snapshot: unknown): boolean;
  /** Ends its work: outstanding permits no longer count, and every call is let through, as after `forceClosed()`. It has no timers to stop. */
  dispose(): void;
  [Symbol.dispose](): void;
}

interface WindowSettings {
  readonly kind: Settings['windowKind'];
  readonly size: number;
}

const longestMs = 86_400_000;
const mostCalls = 100_000;
const defaultFailuresInARow = 100;

const windowField: Field<WindowSettings> = {
  allowed: `a duration from 10 ms to 24 h such as '30s', { calls: 100 } or { consecutive: 5 } (1 to 100000)`,
  parse(value) {
    const ms = parseDuration(value);
    if (ms !== undefined) {
      return ms >= 10 && ms <= longestMs ? { kind: 'time', size: ms / bucketsPerWindow } : undefined;
    }
    const [[kind, size] = [], ...others] = Object.entries(value ?? {});
    if (others.length > 0 || (kind !== 'calls' && kind !== 'consecutive')) return undefined;
    return Number.isInteger(size) && size >= 1 && size <= mostCalls ? { kind, size } : undefined;
  },
};

const rateField = (): Field<number> => ({
  ...number({ min: Number.MIN_VALUE, max: 1 }),
  allowed: 'a number above 0, at most 1',
});

/**
 * Stops calling a service that fails, and finds out with a few probes whether it has recovered.
 *
 * Use one per dependency, or per host or tenant with {@link keyed}. Place it inside a {@link retry}, so that each attempt counts, and
 * around {@link bulkhead} and {@link timeout}: their refusals do not count, timeouts do. By default it opens when at least
 * half of 20 or more calls in the last 30 s failed, and after 100 failures in a row, whatever the window holds.
 *
 * @param options - `window`, `minimumCalls`, `failureRate`, `slowCallRate`, `slowCallDuration`, `openFor`, `maxOpenFor`,
 * `halfOpen`, `rampUp`, `handles`, `shadow`, `random`, `stack`, `name`, `on`, `clock`.
 * @throws {@link CircuitOpenError} `ERR_CIRCUIT_OPEN` from the call, when it is refused; `retryAfterMs` is the time left of the opening.
 * @throws {@link TimeoutError} `ERR_TIMEOUT` from the call, when it was a probe and took longer than `halfOpen.timeout`.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` from the call, when `handles` throws; that counts as a failure.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { circuitBreaker, pipeline } from 'holdfast';
 *
 * const breaker = circuitBreaker({ name: 'payments', minimumCalls: 4 });
 * const payments = pipeline(breaker);
 * for (let call = 1; call <= 4; call++) await payments.attempt(() => Promise.reject(new Error('503')));
 * console.log(breaker.state); // open
 * const outcome = await payments.attempt(() => 'not called');
 * console.log(!outcome.ok && String(outcome.error)); // ... "payments" is open for another ... ms (4 of 4 calls failed)
 * ```
 */
export function circuitBreaker(options?: CircuitBreakerOptions): CircuitBreaker {
  return breakerOf(settingsOf(options));
}

/** @internal The same, but it opens for as long as it says itself, whatever a failure asks for. */
export function steadyBreaker(options?: CircuitBreakerOptions): CircuitBreaker {
  return breakerOf({ ...settingsOf(options), longestHintMs: 0 });
}

type NamedSettings = Settings & { readonly name: string };

function breakerOf({ name, ...settings }: NamedSettings): CircuitBreaker {
  noteMade(name, settings.clock);
  showBriefly(Breaker.prototype, ({ name, state }) => ({ name, state }));
  return new Breaker(name, settings);
}

function settingsOf(options: CircuitBreakerOptions | undefined): NamedSettings {
  const policy = 'circuitBreaker';
  const checked = checkOptions(policy, options, {
    window: withDefault<WindowSettings>(windowField, { kind: 'time', size: 30_000 / bucketsPerWindow }),
    minimumCalls: optional(integer({ min: 1 })),
    failureRate: withDefault(rateField(), 0.5),
    slowCallRate: optional(rateField()),
    slowCallDuration: optional(duration({ max: longestMs })),
    openFor: { ...withDefault(duration({ max: longestMs }), 5_000), elsewhere: ['halfOpenAfter', 'resetTimeout'] },
    maxOpenFor: optional(duration({ max: longestMs })),
    halfOpen: optional<unknown>({ allowed: 'an object', parse: (value) => value }),
    rampUp: withDefault(duration({ min: 0, max: longestMs }), 0),
    handles: withDefault(func<Handles>(), handlesThrows),
    shadow: withDefault(flag(), false),
    random: withDefault(func<() => number>(), Math.random),
    stack: withDefault(flag(), false),
    ...commonFields('circuitBreaker'),
  });
  const { window, openFor, slowCallRate, slowCallDuration } = checked;
  const halfOpen = checkOptions(`${policy} "halfOpen"`, checked.halfOpen, {
    permits: withDefault(integer({ min: 1, max: 1_000 }), 3),
    successes: optional(integer({ min: 1, max: 1_000 })),
    timeout: optional(duration({ max: longestMs })),
  });
  const { permits, successes = permits } = halfOpen;
  const mostInWindow = window.kind === 'calls' ? window.size : Number.POSITIVE_INFINITY;
  const { minimumCalls = Math.min(20, mostInWindow), maxOpenFor = Math.max(60_000, openFor) } = checked;
  if (minimumCalls > mostInWindow) {
    throw impossibleOption(policy, 'minimumCalls', minimumCalls, `at most "window.calls" (${mostInWindow})`);
  }
  if (maxOpenFor < openFor) {
    throw impossibleOption(policy, 'maxOpenFor', maxOpenFor, `at least "openFor" (${openFor} ms)`);
  }
  if (successes > permits) {
    throw impossibleOption(policy, 'halfOpen.successes', successes, `at most "halfOpen.permits" (${permits})`);
  }
  if ((slowCallRate === undefined) !== (slowCallDuration === undefined)) {
    throw impossibleOption(policy, 'slowCallRate', slowCallRate, 'given together with "slowCallDuration", or neither');
  }
  return {
    name: checked.name,
    windowKind: window.kind,
    windowSize: window.size,
    failuresInARow: window.kind === 'consecutive' ? window.size : defaultFailuresInARow,
    minimumCalls,
    failureRate: checked.failureRate,
    slowCallRate: slowCallRate ?? Number.POSITIVE_INFINITY,
    slowCallMs: slowCallDuration ?? 0,
    openForMs: openFor,
    maxOpenForMs: maxOpenFor,
    longestHintMs: 3_600_000,
    permits,
    successes,
    probeTimeoutMs: halfOpen.timeout,
    rampUpMs: checked.rampUp,
    handles: checked.handles,
    random: checked.random,
    shadow: checked.shadow,
    stack: checked.stack,
    on: checked.on,
    clock: checked.clock,
    group: undefined,
  };
}
