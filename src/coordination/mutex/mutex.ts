/**
 * Mutex: one at a time, in this process or, with a store, in all that share it; and any number of readers, or one writer.
 *
 * Promise: its owner is told that the lock is lost before anybody else can get it; each holder of a key has a greater fence than all before;
 * a wait has an end, and who gives up waiting leaves nothing behind.
 * After: Gray and Cheriton, "Leases" (1989); Burrows, "The Chubby lock service" (2006), for the fence.
 */

import { checkOptions, flag, withDefault } from '../../core/options.js';
import type { Lease } from './lease-handle.js';
import { type AcquireOptions, type LockContext, type LockInspection, type LockKeys, Locks } from './locks.js';
import { type LockOptions, leaseTerms, lockFields } from './options.js';

/** Options of {@link mutex}. */
export interface MutexOptions extends LockOptions {
  /**
   * Serves all callers of all processes in the order in which they came: each has a place of his own in the line of the store, and asks it himself. By default the
   * callers of a process share one place, and pass the lock on among themselves for 20 ms: faster, and still nobody starves. Needs a store with `native.queue`; readers
   * stand in no line. A lock without a store is always fair. Default false.
   */
  readonly fair?: boolean;
}

/** What {@link mutex} makes: any number of locks, each with a key. */
export interface Mutex {
  readonly name: string;
  /**
   * Waits for the lock and answers its lease. Of several keys: for all of them; all are got, or none stays held.
   *
   * @throws {@link LockUnavailableError} `ERR_LOCK_UNAVAILABLE`, when it waited too long (`'waited'`), too many wait (`'full'`), the caller runs under
   * this lock already and `holdfast/context` is in use (`'reentrant'`), or one of several keys was lost meanwhile (`'lost'`).
   * @throws {@link StoreError} `ERR_STORE`, when the store fails. If it may have granted the lock all the same, that is taken back.
   */
  acquire(keys: LockKeys, options?: AcquireOptions): Promise<Lease>;
  /** Takes the lock if it is free, else answers null. @throws {@link StoreError} `ERR_STORE`, when the store fails. */
  tryAcquire(keys: LockKeys): Promise<Lease | null>;
  /**
   * Runs a function under the lock and gives the lock back when it has ended.
   *
   * @throws {@link LockLostError} `ERR_LOCK_LOST`, when the lock was lost meanwhile: once the function has ended, with its result or error
   * as `outcome`. Else whatever `acquire` and the function throw.
   */
  run<T>(
    keys: LockKeys,
    fn: (context: LockContext) => T | PromiseLike<T>,
    options?: AcquireOptions,
  ): Promise<Awaited<T>>;
  /** Waits until nobody writes, and answers a lease that readers share. A writer that waits lets no further readers in. */
  read(key: string, options?: AcquireOptions): Promise<Lease>;
  /** As `acquire`: waits until nobody reads or writes. */
  write(key: string, options?: AcquireOptions): Promise<Lease>;
  /** Who holds a key, and how many wait. What it tells may be over when it is told. */
  inspect(key: string): Promise<LockInspection>;
  /**
   * Takes a key away from whoever holds it; its next holder has a greater fence. Whether anybody held it. The owner is told at
   * once in this process, in others at its next renewal: until then it goes on, so only the fence keeps its writes out.
   */
  forceRelease(key: string): Promise<boolean>;
}

/**
 * Makes locks that let in one at a time: in this process, or with `store` in all processes that share the store.
 *
 * With a store a lock is a lease, renewed in the background for as long as it is held. When it cannot be renewed its owner is told, by
 * `signal` and `held()`, before the store gives it to anybody else. No lock can stop a write that is on its way already: send `fence` along, and
 * let the resource refuse what is older than what it has seen. One object serves any number of keys; those of one process wait in memory,
 * so that the store is asked by one of them only.
 *
 * @param options - `store`, `ttl`, `margin`, `renewEvery`, `wait`, `queue`, `fair`, `afterRestart`, `stack`, `name`, `on`, `clock`, `random`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
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
