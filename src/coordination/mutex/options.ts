/** Options that mutex, semaphore and leader have in common. */
import { type Clock, systemClock } from '../../core/clock.js';
import type { Duration } from '../../core/duration.js';
import {
  type CommonOptions,
  commonFields,
  duration,
  flag,
  func,
  having,
  impossibleOption,
  integer,
  oneOf,
  optional,
  type RefusalOptions,
  withDefault,
} from '../../core/options.js';
import type { Store } from '../../stores/store.js';
import { defaultMarginMs, safeLeaseMs } from '../lease.js';
import type { CheckedLockOptions } from './settings.js';

/** Options of everything that holds leases. */
export interface LeaseOptions extends CommonOptions {
  /**
   * Where the lock is kept, for all processes that use the same store. Without it the lock is local to this process: there is no lease to renew, it is held
   * until it is released, and `ttl`, `margin` and `renewEvery` have no effect.
   */
  readonly store?: Store | undefined;
  /**
   * How long the store keeps a lock after its owner's last renewal. From 100 ms; default `'10s'`: it is renewed three times in that time, and a
   * crashed owner blocks others for no longer.
   */
  readonly ttl?: Duration | undefined;
  /** How long before the lease expires its owner treats it as lost. Up to half of `ttl`; default a tenth, at least 50 ms. */
  readonly margin?: Duration | undefined;
  /** Interval between renewals. Default a third of `ttl`. */
  readonly renewEvery?: Duration | undefined;
  /**
   * What a store does after a restart, a failover or the loss of its data, when it may have lost its locks. `'grant'`: grants at once, so
   * that two owners may hold a key until the first of them renews. `'wait'`: grants nothing for one `ttl`; the first use of an empty store waits as long. For stores
   * that can detect it, such as `redisStore`; all processes that share the keys must use the same setting and `ttl`, and `extend` may not go beyond it. Default `'grant'`.
   */
  readonly afterRestart?: 'grant' | 'wait' | undefined;
  /** Jitter of renewals and polls: returns a number from 0 up to 1. Default `Math.random`. */
  readonly random?: (() => number) | undefined;
}

/** Options of locks that callers wait for. */
export interface LockOptions extends LeaseOptions, RefusalOptions {
  /** How long a call may wait. 0: not at all. Default `'30s'`: longer than a crashed owner's lease. */
  readonly wait?: Duration | undefined;
  /** How many callers of this process may wait for one key. With 0 a call gets a free lock or is refused. Default 10 000. */
  readonly queue?: number | undefined;
}

const defaultWaitMs = 30_000;

export function leaseFields(name: string) {
  return {
    ...commonFields(name),
    store: optional(having<Store>('a store such as memoryStore() or redisStore(client)', 'read', 'write', 'remove')),
    ttl: withDefault(duration({ min: 100 }), 10_000),
    margin: optional(duration({ min: 0 })),
    renewEvery: optional(duration({})),
    random: withDefault(func<() => number>(), Math.random),
    afterRestart: withDefault(oneOf(['grant', 'wait']), 'grant'),
  };
}

export function lockFields(name: string) {
  return {
    ...leaseFields(name),
    wait: withDefault(duration({ min: 0 }), defaultWaitMs),
    queue: withDefault(integer({}), 10_000),
    stack: withDefault(flag(), false),
  };
}

type LeaseTerms = Pick<CheckedLockOptions, 'ttl' | 'renewEvery' | 'store' | 'afterRestart' | 'fair'> & {
  readonly margin: number | undefined;
  readonly clock: Clock | undefined;
};

/** The settings derived from the options of a lease, once these are found to be consistent. */
export function leaseTerms(kind: CheckedLockOptions['kind'], options: LeaseTerms) {
  const { ttl, margin, renewEvery, clock, store, afterRestart, fair } = options;
  if (afterRestart === 'wait' && store !== undefined && store.native?.guardedWrite === undefined) {
    throw impossibleOption(kind, 'afterRestart', afterRestart, "'grant' for a store that cannot tell of its restarts");
  }
  if (fair === true && store !== undefined && store.native?.queue === undefined) {
    throw impossibleOption(
      kind,
      'fair',
      fair,
      'false for a store without "native.queue"; redisStore with a "subscriber" has it',
    );
  }
  if (margin !== undefined && margin > ttl / 2) {
    throw impossibleOption(kind, 'margin', margin, `at most half of "ttl", ${ttl / 2} ms`);
  }
  const marginMs = margin ?? defaultMarginMs(ttl);
  const safeMs = safeLeaseMs(ttl, marginMs);
  if (renewEvery !== undefined && renewEvery > safeMs / 2) {
    const allowed = `at most half of what "ttl" and "margin" leave, ${Math.floor(safeMs / 2)} ms`;
    throw impossibleOption(kind, 'renewEvery', renewEvery, allowed);
  }
  return { kind, ttl, margin: marginMs, renewEvery, clock: clock ?? systemClock };
}
