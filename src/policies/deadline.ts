/**
 * Deadline: bounds a whole call, with all its attempts and waits.
 *
 * Promise: of nested deadlines the nearest applies; an operation that has no time left is refused instead of started.
 */
import type { Call } from '../core/call.js';
import type { Duration } from '../core/duration.js';
import { DeadlineExceededError } from '../core/errors.js';
import { Events } from '../core/events.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  flag,
  type RefusalOptions,
  withDefault,
} from '../core/options.js';
import type { Guard, Permit, Refusal } from '../core/policy.js';
import { afterOptions, endingGuard } from './timeout.js';

/** Options of {@link deadline}. */
export interface DeadlineOptions extends CommonOptions, RefusalOptions {
  /** Time allowed for the whole call: milliseconds or a literal such as `'5s'`, from 1 ms to 24.8 days. */
  readonly after: Duration;
}

/** A guard whose permits end the whole call. Outside a pipeline `admit()` works without a call. */
export interface DeadlineGuard extends Guard {
  admit(call?: Call): Permit | Refusal;
}

/**
 * Bounds a whole call, with all its attempts and waits, and tells every policy inside how much time is left.
 *
 * Place it around a retry. A call with a nearer deadline of its own (`execute(fn, { deadline })`) keeps that one.
 *
 * @param after - Time allowed: milliseconds, or a literal such as `'5s'`, from 1 ms to 24.8 days; or
 * `{ after, stack, name, on, clock }`.
 * @throws {@link DeadlineExceededError} `ERR_DEADLINE_EXCEEDED` from the call, when the time has passed.
 * @throws {@link DeadlineTooShortError} `ERR_DEADLINE_TOO_SHORT` from the call, when no time is left to start it.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { deadline, pipeline, retry } from 'holdfast';
 *
 * const bounded = pipeline(deadline('50ms'), retry({ attempts: 100 }));
 * const outcome = await bounded.attempt(() => Promise.reject(new Error('down')));
 * console.log(outcome.ok); // false, after at most 50 ms
 * ```
 */
export function deadline(after: Duration | DeadlineOptions): DeadlineGuard;
export function deadline(...given: readonly unknown[]): DeadlineGuard {
  const options = checkOptions('deadline', afterOptions('deadline', given), {
    after: duration({}),
    stack: withDefault(flag(), false),
    ...commonFields('deadline'),
  });
  const { name, after: afterMs, clock, stack } = options;
  const events = new Events(name, options.on);
  const traits = { kind: 'deadline', summary: `ends the whole call after ${afterMs} ms`, clock, afterMs };
  const reason = () => {
    if (events.heard) events.emit({ type: 'deadline-exceeded', name, afterMs });
    return new DeadlineExceededError({ policy: name, afterMs });
  };
  return endingGuard({ name, traits, afterMs, clock, events, stack, reason });
}
