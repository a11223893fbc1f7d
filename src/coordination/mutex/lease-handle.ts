/**
 * Lease handle: what the owner of a lock or permit holds in his hands, wherever it came from.
 *
 * Promise: `signal` aborts, and `held()` says no, before anybody else can be let in; giving it back twice gives it back once; disposing of
 * it never throws, so it hides no error of the code that ran under it.
 */
import type { Duration } from '../../core/duration.js';
import { LockLostError } from '../../core/errors.js';
import { checkArgument, duration, number, optional } from '../../core/options.js';
import type { Outcome } from '../../core/outcome.js';

/** How giving a lease back ended. `'unknown'`: the store has not said; what is left of it ends by itself, at the latest with its `ttl`. */
export type LeaseRelease = 'released' | 'lost' | 'unknown';

/** A lock or permit that is held, until it is given back or lost. */
export interface Lease {
  /** What it is a lease of; of several keys, all of them. */
  readonly key: string;
  /** This very holding of it: a different text each time. */
  readonly owner: string;
  /**
   * Grows from one holder of a key to the next. Send it along with every write, and let the resource refuse one that is less than the greatest it
   * has seen: only that keeps out a late write of an owner who has lost the lock. Of several keys: the greatest; each has its own in `leases`.
   */
  readonly fence: number;
  /** Aborts with a {@link LockLostError} when the lease is lost. Made when it is first read. */
  readonly signal: AbortSignal;
  /** `'suspect'`: the last renewal has failed, and there is still time for another. */
  readonly state: 'held' | 'suspect' | 'lost' | 'released';
  /** The leases of the single keys, in sorted order, where there are several. */
  readonly leases?: readonly Lease[] | undefined;
  /** Whether nobody else can have it: looked up anew, so that a process that was frozen finds out here. */
  held(): boolean;
  /**
   * Throws unless it is held, for at least so many milliseconds more.
   *
   * @throws {@link LockLostError} `ERR_LOCK_LOST`, whose `reason` is `'short'` where it is held, yet not for that long.
   */
  assertHeld(minMs?: number): void;
  /** Milliseconds for which it can be relied on without another renewal; 0 when it is not held, `Infinity` in a lock without a store. */
  remaining(): number;
  /**
   * Renews it now, and from here on for this long each time. Resolves with what remains.
   *
   * @throws {@link LockLostError} `ERR_LOCK_LOST`, when it is not held any more.
   * @throws {@link StoreError} `ERR_STORE`, when the store did not do it or does not say; the lease is then held as long as before.
   */
  extend(duration?: Duration): Promise<number>;
  /** Gives it back, and never rejects. Safe to repeat. */
  release(): Promise<LeaseRelease>;
  /** Gives it back: `await using lease = await locks.acquire(key)`. */
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
  /** @internal Since when, if somebody hears the events. */
  acquiredMs: number | undefined = undefined;

  get signal(): AbortSignal {
    this.controller ??= new AbortController();
    // A process that was frozen finds out here rather than at a timer that is late.
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

  /** Tells whoever listens to the signal. */
  protected noteLoss(reason: LossReason): void {
    this.lostBecause = reason;
    this.controller?.abort(this.lossError());
    this.lossListener?.(reason);
  }

  protected checkExtension(given: Duration | undefined, bounds: { min?: number; max?: number }): number | undefined {
    return checkArgument(this.policy, 'extend', given, optional(duration(bounds)));
  }
}
