/**
 * Mutex: one holder at a time, in this process or, with a store, in all processes that share it; also any number of readers, or one writer.
 *
 * Promise: the owner learns that the lock is lost before another owner can get it. Each holder of a key has a greater fence than all before.
 * Every wait has an end, and a caller that gives up waiting leaves nothing behind.
 * After: Gray and Cheriton, "Leases" (1989); Burrows, "The Chubby lock service" (2006), for the fence.
 */

import { checkOptions, flag, withDefault } from '../../core/options.js';
import type { Lease } from './lease-handle.js';
import { type AcquireOptions, type LockContext, type LockInspection, type LockKeys, Locks } from './locks.js';
import { type LockOptions, leaseTerms, lockFields } from './options.js';

/** Options of {@link mutex}. */
export interface MutexOptions extends LockOptions {
  /**
   * Serves callers of all processes in order of arrival: each has its own place in the store's queue and sends its own requests. By default the
   * callers of a process share one place, and pass the lock on among themselves for 20 ms: faster, and still nobody starves. Needs a store with `native.queue`; readers
   * are not queued. A turn that arrives for a caller that has left goes to the next waiter of its process, which may have come later than others elsewhere. A lock
   * without a store is always fair. Default false.
   */
  readonly fair?: boolean | undefined;
}

/** What {@link mutex} returns: any number of locks, each with a key. */
export interface Mutex {
  readonly name: string;
  /**
   * Waits for the lock and resolves with its lease. With several keys: waits for all of them; if one cannot be had, none stays held.
   *
   * @throws {@link LockUnavailableError} `ERR_LOCK_UNAVAILABLE`, when the call waited too long (`'waited'`), too many wait (`'full'`), the caller already
   * holds this lock and `holdfast/context` is in use (`'reentrant'`), or one of several keys was lost during the wait (`'lost'`).
   * @throws {@link StoreError} `ERR_STORE`, when the store fails. If it may have granted the lock nevertheless, the lock is given back.
   */
  acquire(keys: LockKeys, options?: AcquireOptions): Promise<Lease>;
  /** Takes the lock if it is free, else resolves with null. @throws {@link StoreError} `ERR_STORE`, when the store fails. */
  tryAcquire(keys: LockKeys): Promise<Lease | null>;
  /**
   * Runs a function under the lock and releases the lock when the function has ended.
   *
   * @throws {@link LockLostError} `ERR_LOCK_LOST`, when the lock was lost while the function ran: thrown once the function has ended, with its result or error
   * as `outcome`. Otherwise whatever `acquire` and the function throw.
   */
  run<T>(
    keys: LockKeys,
    fn: (context: LockContext) => T | PromiseLike<T>,
    options?: AcquireOptions,
  ): Promise<Awaited<T>>;
  /** Waits until there is no writer, and resolves with a lease shared with other readers. A waiting writer blocks new readers. */
  read(key: string, options?: AcquireOptions): Promise<Lease>;
  /** As `acquire`: waits until there is no reader or writer. */
  write(key: string, options?: AcquireOptions): Promise<Lease>;
  /** The holder of a key, and how many callers wait. The answer may be out of date when it arrives. */
  inspect(key: string): Promise<LockInspection>;
  /**
   * Takes a key from its holder; the next holder has a greater fence. Resolves with whether there was a holder. An owner in this process learns of it
   * at once, one in another process at its next renewal: it runs on until then, so only the fence stops its writes.
   */
  forceRelease(key: string): Promise<boolean>;
}

/**
 * Creates locks with one holder at a time: in this process, or with `store` across all processes that share the store.
 *
 * With a store a lock is a lease, renewed in the background for as long as it is held. When it cannot be renewed, `signal` and `held()` tell
 * its owner before the store grants it to another. No lock can stop a write that is already in flight: send `fence` along, and
 * let the resource reject a fence lower than the greatest it has seen. One object serves any number of keys; the callers of one process queue in memory,
 * and only one of them asks the store.
 *
 * @param options - `store`, `ttl`, `margin`, `renewEvery`, `wait`, `queue`, `fair`, `afterRestart`, `stack`, `name`, `on`, `clock`, `random`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { memoryStore, mutex } from 'holdfast';
 *
 * const locks = mutex({ store: memoryStore(), ttl: '10s' });
 * const sum = await locks.run('cron:digest', async ({ signal, fence }) => (signal.aborted ? 0 : Math.sign(fence)));
 * console.log(sum); // 1
 *
 * const lease = await locks.acquire('report');
 * console.log(lease.held(), await locks.tryAcquire('report')); // true null
 * console.log(await lease.release()); // released
 * ```
 */
export function mutex(options: MutexOptions = {}): Mutex {
  const checked = checkOptions('mutex', options, { ...lockFields('mutex'), fair: withDefault(flag(), false) });
  const locks = new Locks({ ...checked, ...leaseTerms('mutex', checked), permits: Number.POSITIVE_INFINITY });
  return {
    name: checked.name,
    acquire: (keys, given) => locks.acquire(keys, 'exclusive', given),
    tryAcquire: (keys) => locks.tryAcquire(keys, 'exclusive'),
    run: (keys, fn, given) => locks.run(keys, 'exclusive', fn, given),
    read: (key, given) => locks.acquire(key, 'shared', given),
    write: (key, given) => locks.acquire(key, 'exclusive', given),
    inspect: (key) => locks.inspect(key),
    forceRelease: (key) => locks.forceRelease(key),
  };
}
