/**
 * Semaphore: at most a fixed number of holders, in this process or, with a store, in all processes that share it.
 *
 * Promise: never more than `permits` hold a key at once, by the store's clock. A holder that stops renewing loses its permit when its
 * lease expires, however often other holders come and go.
 */
import { checkOptions, integer } from '../../core/options.js';
import type { Lease } from './lease-handle.js';
import { type AcquireOptions, type LockContext, type LockInspection, type LockKeys, Locks } from './locks.js';
import { type LockOptions, leaseTerms, lockFields } from './options.js';

/** Options of {@link semaphore}. */
export interface SemaphoreOptions extends LockOptions {
  /** How many may hold a key at once, from 1 to 1000. All processes that share a store must use the same number. */
  readonly permits: number;
}

/** What {@link semaphore} returns: any number of semaphores, each with a key. */
export interface Semaphore {
  readonly name: string;
  /** Waits for a permit and resolves with its lease, like `acquire` of a mutex. */
  acquire(keys: LockKeys, options?: AcquireOptions): Promise<Lease>;
  /** Takes a permit if one is free, else resolves with null. */
  tryAcquire(keys: LockKeys): Promise<Lease | null>;
  /** Runs a function under a permit, like `run` of a mutex. */
  run<T>(
    keys: LockKeys,
    fn: (context: LockContext) => T | PromiseLike<T>,
    options?: AcquireOptions,
  ): Promise<Awaited<T>>;
  /** The holders of a key, and how many callers wait. */
  inspect(key: string): Promise<LockInspection>;
  /** Takes all permits of a key from their holders. Resolves with whether there were any. */
  forceRelease(key: string): Promise<boolean>;
}

/**
 * Creates semaphores with a fixed number of holders: in this process, or with `store` across all processes that share the store.
 *
 * For concurrency limits of a whole fleet: jobs on one database, calls to a partner. Inside one process, `bulkhead` does it for a
 * pipeline. Fences grow from grant to grant, but as several owners hold a key at once, a fence tells only which came later.
 *
 * @param options - `permits`, and those of `mutex` but `fair`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
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
