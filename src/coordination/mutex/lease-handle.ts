/**
 * Lease handle: what the owner of a lock or permit holds, whichever line granted it.
 *
 * Promise: `signal` aborts, and `held()` turns false, before another owner can get the lock. Releasing twice releases once. Disposing
 * never throws, so it cannot hide an error of the code that ran under the lock.
 */
import type { Duration } from '../../core/duration.js';
import { LockLostError } from '../../core/errors.js';
import { checkArgument, duration, number, optional } from '../../core/options.js';
import type { Outcome } from '../../core/outcome.js';

/** How a release ended. `'unknown'`: the store did not confirm it; what is left of the lease expires by itself, at the latest after its `ttl`. */
export type LeaseRelease = 'released' | 'lost' | 'unknown';

/** A lock or permit that is held until it is released or lost. */
export interface Lease {
  /** The key of the lease; with several keys, all of them. */
  readonly key: string;
  /** Identifies this acquisition: a different text each time. */
  readonly owner: string;
  /**
   * Grows from one holder of a key to the next. Send it along with every write, and let the resource reject one lower than the greatest it
   * has seen: only that stops a late write of an owner that has lost the lock. With several keys: the greatest; each has its own in `leases`.
   */
  readonly fence: number;
  /** Aborts with a {@link LockLostError} when the lease is lost. Created when it is first read. */
  readonly signal: AbortSignal;
  /** `'suspect'`: the last renewal failed, and there is still time for another. */
  readonly state: 'held' | 'suspect' | 'lost' | 'released';
  /** With several keys: the lease of each, in sorted order. */
  readonly leases?: readonly Lease[] | undefined;
  /** Whether no other owner can have it: reads the clock on each call, so that a process that was frozen finds out here. */
  held(): boolean;
  /**
   * Throws unless the lease is held for at least this many milliseconds more.
   *
   * @throws {@link LockLostError} `ERR_LOCK_LOST`, whose `reason` is `'short'` if it is held, but not for that long.
   */
  assertHeld(minMs?: number): void;
  /** Milliseconds for which it can be relied on without another renewal; 0 when it is not held, `Infinity` for a lock without a store. */
  remaining(): number;
  /**
   * Renews the lease now, and uses this duration for later renewals. Resolves with the remaining milliseconds.
   *
   * @throws {@link LockLostError} `ERR_LOCK_LOST`, when it is no longer held.
   * @throws {@link StoreError} `ERR_STORE`, when the store failed or did not confirm it; the lease is then held as long as before.
   */
  extend(duration?: Duration): Promise<number>;
  /** Releases it, and never rejects. Safe to repeat. */
  release(): Promise<LeaseRelease>;
  /** Releases it: `await using lease = await locks.acquire(key)`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Why a lease was lost. */
export type LossReason = 'expired' | 'taken';

/** What all leases have in common. */
export abstract class LeaseBase implements Lease {
  abstract readonly key: string;
  abstract readonly owner: string;
  abstract readonly fence: number;
  abstract readonly state: Lease['state'];
  protected abstract readonly policy: string;
  private controller: AbortController | undefined = undefined;
  private lostBecause: LossReason | undefined = undefined;
  private lossListener: ((reason: LossReason) => void) | undefined = undefined;
  /** @internal When it was acquired; set only while there is a listener for events. */
  acquiredMs: number | undefined = undefined;

  get signal(): AbortSignal {
    this.controller ??= new AbortController();
    // A process that was frozen notices the loss here, not at a late timer.
    this.held();
    if (this.lostBecause !== undefined && !this.controller.signal.aborted) this.controller.abort(this.lossError());
    return this.controller.signal;
  }

  held(): boolean {
    const { state } = this;
    return state === 'held' || state === 'suspect';
  }

  assertHeld(minMs = 0): void {
    checkArgument(this.policy, 'minMs', minMs, number({}));
    if (!this.held()) throw this.lossError();
    if (this.remaining() < minMs) throw this.lossError('short');
  }

  abstract remaining(): number;
  abstract extend(duration?: Duration): Promise<number>;
  abstract release(): Promise<LeaseRelease>;

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }

  /** @internal */
  lossError(reason: LockLostError['reason'] = this.lostBecause ?? 'released', outcome?: Outcome): LockLostError {
    const { policy, key, fence } = this;
    const cause = outcome?.ok === false ? outcome.error : undefined;
    return new LockLostError({ policy, key, fence, reason, outcome, cause, stack: true });
  }

  /** @internal */
  onLoss(listener: (reason: LossReason) => void): void {
    this.lossListener = listener;
  }

  protected get isTaken(): boolean {
    return this.lostBecause === 'taken';
  }

  /** Aborts the signal and calls the listener. */
  protected noteLoss(reason: LossReason): void {
    this.lostBecause = reason;
    this.controller?.abort(this.lossError());
    this.lossListener?.(reason);
  }

  protected checkExtension(given: Duration | undefined, bounds: { min?: number; max?: number }): number | undefined {
    return checkArgument(this.policy, 'extend', given, optional(duration(bounds)));
  }
}
