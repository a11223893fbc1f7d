/**
 * Semaphore: so many at a time, in this process or, with a store, in all that share it.
 *
 * Promise: never more than `permits` hold a key at once, counted by the store's clock; who holds one and is heard of no more loses it with
 * its lease, however often the others come and go.
 */
import { checkOptions, integer } from '../../core/options.js';
import type { Lease } from './lease-handle.js';
import { type AcquireOptions, type LockContext, type LockInspection, type LockKeys, Locks } from './locks.js';
import { type LockOptions, leaseTerms, lockFields } from './options.js';

/** Options of {@link semaphore}. */
export interface SemaphoreOptions extends LockOptions {
  /** How many may hold a key at once, from 1 to 1000. All who share a store must say the same. */
  readonly permits: number;
}

/** What {@link semaphore} makes: any number of semaphores, each with a key. */
export interface Semaphore {
  readonly name: string;
  /** Waits for a permit and answers its lease; as `acquire` of a mutex does. */
  acquire(keys: LockKeys, options?: AcquireOptions): Promise<Lease>;
  /** Takes a permit if one is free, else answers null. */
  tryAcquire(keys: LockKeys): Promise<Lease | null>;
  /** Runs a function under a permit; as `run` of a mutex does. */
  run<T>(
    keys: LockKeys,
    fn: (context: LockContext) => T | PromiseLike<T>,
    options?: AcquireOptions,
  ): Promise<Awaited<T>>;
  /** Who holds a key, and how many wait. */
  inspect(key: string): Promise<LockInspection>;
  /** Takes all permits of a key away from whoever holds them. Whether anybody did. */
  forceRelease(key: string): Promise<boolean>;
}

/**
 * Makes semaphores that let in a number at a time: in this process, or with `store` in all processes that share the store.
 *
 * For what a fleet may do only so often at once: jobs on one database, calls to a partner. Inside one process, `bulkhead` does it for a
 * pipeline. Fences grow from grant to grant, but as several hold a key at once, they tell who came later and no more.
 *
 * @param options - `permits`, and those of `mutex` but `fair`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
 * @example
 * ```ts
 * import { memoryStore, semaphore } from 'holdfast';
 *
 * const exports = semaphore({ store: memoryStore(), permits: 2 });
 * const first = await exports.acquire('partner');
 * const second = await exports.acquire('partner');
 * console.log(await exports.tryAcquire('partner')); // null
 * await first.release();
 * console.log((await exports.tryAcquire('partner')) !== null, second.held()); // true true
 * ```
 */
export function semaphore(options: SemaphoreOptions): Semaphore {
  const checked = checkOptions('semaphore', options, {
    ...lockFields('semaphore'),
    permits: integer({ min: 1, max: 1000 }),
  });
  const locks = new Locks({ ...checked, ...leaseTerms('semaphore', checked) });
  return {
    name: checked.name,
    acquire: (keys, given) => locks.acquire(keys, 'shared', given),
    tryAcquire: (keys) => locks.tryAcquire(keys, 'shared'),
    run: (keys, fn, given) => locks.run(keys, 'shared', fn, given),
    inspect: (key) => locks.inspect(key),
    forceRelease: (key) => locks.forceRelease(key),
  };
}
