/**
 * Retry budget: successes pay for retries, so that a failing dependency does not receive a multiple of its load.
 *
 * Promise: over any time span, retries are at most `initial + ratio * successes + minPerSecond * seconds`. In an outage they end once the balance is
 * spent, whatever the number of calls.
 * After: Brooker, "Fixing retries with token buckets and circuit breakers" (2022): fed by successes, not by requests, because requests continue in an
 * outage. The floor is Finagle's `minRetriesPerSec`.
 */
import { type Clock, systemClock } from '../../core/clock.js';
import { checkOptions, having, impossibleOption, number, optional, withDefault } from '../../core/options.js';

/** Options of {@link retryBudget}. */
export interface RetryBudgetOptions {
  /** How much a success pays in, in retries. Default 0.1: one retry for ten successes. From 0 to 10. */
  readonly ratio?: number | undefined;
  /** The most that can be saved up, in retries. Default 100; from 1 to 1,000,000. */
  readonly capacity?: number | undefined;
  /** The balance at the start, in retries. Default 10, or `capacity` if that is less. */
  readonly initial?: number | undefined;
  /**
   * Retries per second that are granted even when the balance is empty, so that a client with little traffic still gets one.
   * Default 1; from 0 to 1,000. They do not accumulate.
   */
  readonly minPerSecond?: number | undefined;
  /** The time source. Default: `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** The budget that retries, hedges and redeliveries to one dependency draw from. Share one object among all of them. */
export interface RetryBudget {
  /** Retries that could be made now, without the floor. */
  readonly balance: number;
  /** Records that a call succeeded. `key` is the call's partition, if it has one; `retryBudget()` does not distinguish them. */
  deposit(key?: string): void;
  /** Takes one retry for a call with this key; false when there is none. Must return at once: a promise would grant every retry. */
  tryWithdraw(key?: string): boolean;
}

const defaultCapacity = 100;

/**
 * Creates a retry budget. Give one object to all policies that repeat calls to the same dependency.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { exponential, pipeline, retry, retryBudget } from 'holdfast';
 *
 * const budget = retryBudget({ initial: 1, minPerSecond: 0 });
 * const payments = pipeline(retry({ attempts: 5, backoff: exponential({ initial: 1 }), budget }));
 * let calls = 0;
 * await payments.attempt(() => {
 *   calls++;
 *   throw new Error('down');
 * });
 * console.log(calls); // 2: the first attempt and the one retry that the budget had
 * ```
 */
export function retryBudget(options?: RetryBudgetOptions): RetryBudget {
  const checked = checkOptions('retryBudget', options, {
    ratio: withDefault(number({ min: 0, max: 10 }), 0.1),
    capacity: withDefault(number({ min: 1, max: 1_000_000 }), defaultCapacity),
    initial: optional(number({ min: 0, max: 1_000_000 })),
    minPerSecond: withDefault(number({ min: 0, max: 1_000 }), 1),
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now'), systemClock),
  });
  const { ratio, capacity, minPerSecond, clock } = checked;
  const { initial = Math.min(10, capacity) } = checked;
  if (initial > capacity) {
    throw impossibleOption('retryBudget', 'initial', initial, `at most "capacity" (${capacity})`);
  }
  // Counted in ten-thousandths: ten deposits of 0.1 must pay for one retry, which binary fractions do not guarantee.
  const scale = 10_000;
  const depositUnits = Math.round(ratio * scale);
  const capacityUnits = Math.round(capacity * scale);
  let units = Math.round(initial * scale);
  let lastGrantMs = Number.NEGATIVE_INFINITY;

  return {
    get balance() {
      return units / scale;
    },
    deposit() {
      units = Math.min(capacityUnits, units + depositUnits);
    },
    tryWithdraw() {
      const fromBalance = units >= scale;
      if (!fromBalance && minPerSecond === 0) return false;
      const nowMs = minPerSecond === 0 ? 0 : clock.now();
      // The floor serves an idle budget; it adds nothing while retries are granted from the balance.
      if (!fromBalance && nowMs - lastGrantMs < 1_000 / minPerSecond) return false;
      if (fromBalance) units -= scale;
      lastGrantMs = nowMs;
      return true;
    },
  };
}

/**
 * @internal A budget that all keys share, but none can use up: a key may take what a full budget holds, then what its own successes pay in, and one retry
 * per second. Otherwise a host that is down takes all that the others pay in, for as long as it is down.
 *
 * @param maxKeys - The most keys for which it is remembered that they owe.
 */
export function fairBudget(maxKeys: number, clock: Clock | undefined): RetryBudget {
  const shared = retryBudget({ clock });
  // A key that owes nothing needs no account, so there is none for a service whose calls succeed.
  const accounts = new Map<string, RetryBudget>();

  function accountOf(key: string): RetryBudget {
    const known = accounts.get(key);
    if (known !== undefined) return known;
    const [oldest] = accounts.size < maxKeys ? [] : accounts.keys();
    if (oldest !== undefined) accounts.delete(oldest);
    const account = retryBudget({ clock, initial: defaultCapacity });
    accounts.set(key, account);
    return account;
  }

  return {
    get balance() {
      return shared.balance;
    },
    deposit(key = '') {
      shared.deposit();
      const account = accounts.get(key);
      account?.deposit();
      if (account?.balance === defaultCapacity) accounts.delete(key);
    },
    tryWithdraw(key = '') {
      const account = accountOf(key);
      // What the shared part refuses costs the key nothing: it has not got it.
      if (account.balance >= 1) return shared.tryWithdraw() && account.tryWithdraw();
      return account.tryWithdraw() && shared.tryWithdraw();
    },
  };
}
