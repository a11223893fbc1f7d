/**
 * Backoff: how long to wait before the next attempt.
 *
 * Promise: jitter is drawn inside the cap, so clients that have reached it still spread; a backoff holds no state, so one object serves any number of
 * concurrent calls.
 * After: Brooker, "Exponential backoff and jitter" (AWS, 2015), for full, equal and decorrelated jitter. Decorrelated is drawn after capping here:
 * drawn before, every delay at the cap is the same.
 */
import type { Duration } from '../../core/duration.js';
import {
  checkArgument,
  checkOptions,
  duration,
  type Field,
  func,
  impossibleOption,
  number,
  oneOf,
  refuseSecond,
  show,
  withDefault,
} from '../../core/options.js';

/** What a backoff can base its delay on. */
export interface BackoffState {
  /** The attempt that failed, from 1. */
  readonly attempt: number;
  /** The delay that this backoff chose before that attempt, in milliseconds; undefined after the first attempt. */
  readonly previousDelayMs: number | undefined;
  /** The error of that attempt; undefined when `handles` took a value for a failure. */
  readonly error: unknown;
  /** Draws from [0, 1), from the retry's own source of randomness. */
  readonly random: () => number;
}

/** Chooses a delay in milliseconds: not negative, not NaN. {@link exponential}, {@link decorrelated}, {@link constant}, or your own. */
export interface Backoff {
  (state: BackoffState): number;
  /** The longest delay it can choose after an attempt, in milliseconds, for `explain()`. */
  readonly ceilingMs?: (attempt: number) => number;
  /** What it does, in words, for `explain()`. */
  readonly summary?: string;
}

/** Options of {@link exponential}. */
export interface ExponentialOptions {
  /** The first ceiling. Default 100 ms; from 0 to 24.8 days. */
  readonly initial?: Duration | undefined;
  /** The highest ceiling. Default 5 s; not below `initial`. */
  readonly max?: Duration | undefined;
  /** The ratio of each ceiling to the previous one. Default 2; from 1 to 100. */
  readonly factor?: number | undefined;
  /** `'full'`, the default: from 0 to the ceiling. `'equal'`: from half of it. `'none'`: the ceiling itself, so that clients that failed together return together. */
  readonly jitter?: 'full' | 'equal' | 'none' | undefined;
}

/** Options of {@link decorrelated}. */
export interface DecorrelatedOptions {
  /** The shortest delay. Default 100 ms; from 0 to 24.8 days. */
  readonly initial?: Duration | undefined;
  /** The longest delay. Default 5 s; not below `initial`. */
  readonly max?: Duration | undefined;
}

const initial = /* @__PURE__ */ withDefault(/* @__PURE__ */ duration({ min: 0 }), 100);
const max = /* @__PURE__ */ withDefault(/* @__PURE__ */ duration({ min: 0 }), 5_000);

/**
 * Delays whose ceiling grows by a factor: `min(max, initial * factor ** (attempt - 1))`, with jitter inside it.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { exponential } from 'holdfast';
 *
 * const backoff = exponential({ initial: 100, max: 1000, jitter: 'equal' });
 * console.log(backoff({ attempt: 2, previousDelayMs: 75, error: undefined, random: () => 0.5 })); // 150
 * ```
 */
export function exponential(options?: ExponentialOptions): Backoff {
  const checked = checkOptions('exponential', options, {
    initial,
    max,
    factor: withDefault(number({ min: 1, max: 100 }), 2),
    jitter: withDefault(oneOf(['full', 'equal', 'none']), 'full'),
  });
  refuseInitialAboveMax('exponential', checked);
  const { initial: initialMs, max: maxMs, factor, jitter } = checked;
  const shortestMs = jitter === 'full' ? 0 : jitter === 'equal' ? initialMs / 2 : initialMs;
  const summary = `waiting ${shortestMs} to ${maxMs} ms with ${jitter === 'none' ? 'no' : jitter} jitter`;
  const ceilingMs = (attempt: number) => grown(initialMs, factor, attempt - 1, maxMs);
  return described({ ceilingMs, summary }, ({ attempt, random }) => {
    const longestMs = ceilingMs(attempt);
    if (jitter === 'none') return longestMs;
    if (jitter === 'full') return random() * longestMs;
    return longestMs / 2 + (random() * longestMs) / 2;
  });
}

/**
 * Delays drawn between `initial` and three times the previous delay, capped before the draw.
 *
 * It spreads clients as well as full jitter and never retries at once.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { decorrelated } from 'holdfast';
 *
 * const backoff = decorrelated({ initial: 100, max: 2000 });
 * console.log(backoff({ attempt: 1, previousDelayMs: undefined, error: undefined, random: () => 0.5 })); // 200
 * ```
 */
export function decorrelated(options?: DecorrelatedOptions): Backoff {
  const checked = checkOptions('decorrelated', options, { initial, max });
  refuseInitialAboveMax('decorrelated', checked);
  const { initial: initialMs, max: maxMs } = checked;
  const summary = `waiting ${initialMs} to ${maxMs} ms with decorrelated jitter`;
  return described(
    { ceilingMs: (attempt) => grown(initialMs, 3, attempt, maxMs), summary },
    ({ previousDelayMs = initialMs, random }) => {
      const ceilingMs = Math.min(maxMs, Math.max(initialMs, 3 * previousDelayMs));
      return initialMs + random() * (ceilingMs - initialMs);
    },
  );
}

/**
 * The same delay each time. For tests, and for waiting on something local; with many clients of one service, use jitter.
 *
 * @param delay - Milliseconds or a literal such as `'1s'`, from 0 to 24.8 days.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid delay.
 * @example
 * ```ts
 * import { constant, pipeline, retry } from 'holdfast';
 *
 * const patient = pipeline(retry({ attempts: 3, backoff: constant('5ms') }));
 * console.log(await patient.execute(({ attempt }) => (attempt < 3 ? Promise.reject(new Error('not yet')) : attempt)));
 * ```
 */
export function constant(delay: Duration): Backoff;
export function constant(...[delay, second]: readonly unknown[]): Backoff {
  refuseSecond('constant', second);
  const delayMs = checkArgument('constant', 'delay', delay, duration({ min: 0 }));
  return described({ ceilingMs: () => delayMs, summary: `waiting ${delayMs} ms` }, () => delayMs);
}

const factories: readonly unknown[] = [exponential, decorrelated, constant];

/** The backoff of a retry. A factory passed by mistake is a function too, and would fail only when the first delay is needed. */
export const backoffField: Field<Backoff> = {
  allowed: "exponential(), constant('1s') or another function",
  parse: (value) => (factories.includes(value) ? undefined : func<Backoff>().parse(value)),
  shown: (value) => (factories.includes(value) ? 'the factory itself; call it' : show(value)),
};

function grown(initialMs: number, factor: number, times: number, maxMs: number): number {
  // Not infinite, because 0 times infinity is NaN.
  return Math.min(maxMs, initialMs * Math.min(factor ** times, Number.MAX_VALUE));
}

function described(
  description: Required<Pick<Backoff, 'ceilingMs' | 'summary'>>,
  choose: (state: BackoffState) => number,
): Backoff {
  return Object.assign(choose, description);
}

function refuseInitialAboveMax(
  policy: string,
  { initial, max }: { readonly initial: number; readonly max: number },
): void {
  if (initial > max) throw impossibleOption(policy, 'initial', initial, `at most "max" (${max} ms)`);
}
