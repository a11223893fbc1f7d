/**
 * Line: the waiters of this process for one key, first come, first served.
 *
 * Promise: a waiter that is aborted, or has waited as long as it may, leaves at once and leaves no timer and no listener behind.
 */
import { addAbortListener, removeAbortListener } from '../../core/abort-listeners.js';
import { type Clock, Timer } from '../../core/clock.js';
import { LockUnavailableError } from '../../core/errors.js';
import { LinkedQueue, type QueueNode } from '../../structures/linked-queue.js';
import type { LeaseBase } from './lease-handle.js';
import type { LockSettings } from './settings.js';

/** `'shared'`: any number of readers, or as many holders as there are permits. */
export type LockMode = 'exclusive' | 'shared';

/** A holder of a key, as {@link Line.view} returns it. */
export interface LockHolder {
  readonly owner: string;
  readonly fence: number;
  /** Milliseconds until the lease expires unless it is renewed; `Infinity` without a store. */
  readonly remainingMs: number;
  readonly mode: LockMode;
}

/** What is known of a key: its holders and the length of its queue. */
export interface LockView {
  readonly holders: readonly LockHolder[];
  readonly queueLength: number;
}

export abstract class Line {
  readonly key: string;
  protected readonly settings: LockSettings;
  protected readonly waiters = new LinkedQueue<Waiter>();

  constructor(key: string, settings: LockSettings) {
    this.key = key;
    this.settings = settings;
  }

  /** Takes the lock now, if that needs neither a wait nor a store. */
  abstract takeNow(mode: LockMode): LeaseBase | undefined;
  /** Takes the lock if it is free. */
  abstract tryTake(mode: LockMode): Promise<LeaseBase | undefined>;
  abstract view(): Promise<LockView>;
  /** Resolves with whether there was a holder. */
  abstract forceRelease(): Promise<boolean>;
  /** A waiter has joined. */
  protected abstract onArrival(waiter: Waiter): void;
  /** A waiter has left without a lease. */
  protected abstract onDeparture(waiter: Waiter): void;
  /** The clock whose timers end waits. */
  protected abstract readonly waitClock: Clock;
  /** When a new try may succeed, if that is known. */
  protected retryAfterMs(): number | undefined {
    return undefined;
  }

  /** What stands in the way besides other holders, if anything does. */
  protected get failure(): unknown {
    return undefined;
  }

  wait(mode: LockMode, waitMs: number, signal: AbortSignal | undefined): Promise<LeaseBase> {
    const { clock, queue } = this.settings;
    if (this.waiters.size >= queue) {
      return Promise.reject(this.unavailable('full', `${queue} wait for it already`));
    }
    return new Promise((resolve, reject) => {
      const waiter = new Waiter(this, mode, signal, clock.now(), waitMs, resolve, reject);
      this.waiters.add(waiter);
      this.waitClock.schedule(waiter, waiter.endsAtMs);
      waiter.listen();
      this.onArrival(waiter);
    });
  }

  /** @internal Ends a wait without a lease. */
  giveUp(waiter: Waiter, error: unknown): void {
    this.takeOut(waiter);
    waiter.reject(error);
    this.onDeparture(waiter);
  }

  /** @internal */
  expire(waiter: Waiter): void {
    const waitedMs = this.settings.clock.now() - waiter.sinceMs;
    this.giveUp(waiter, this.unavailable('waited', `it was not free for ${Math.round(waitedMs)} ms`));
  }

  private unavailable(reason: LockUnavailableError['reason'], detail: string): LockUnavailableError {
    const { name: policy, stack } = this.settings;
    const { key, failure: cause } = this;
    return new LockUnavailableError({ policy, key, reason, detail, stack, cause, retryAfterMs: this.retryAfterMs() });
  }

  protected answer(waiter: Waiter, lease: LeaseBase): void {
    this.takeOut(waiter);
    this.settings.noteAcquired(lease, waiter.sinceMs);
    waiter.resolve(lease);
  }

  /** The caller must answer the waiter. */
  protected takeOut(waiter: Waiter): void {
    this.waiters.remove(waiter);
    waiter.isOver = true;
    this.waitClock.cancel(waiter);
    waiter.unlisten();
  }
}

/** A waiter; also the timer that ends its wait. */
export class Waiter extends Timer implements QueueNode<Waiter> {
  previousInQueue: Waiter | undefined = undefined;
  nextInQueue: Waiter | undefined = undefined;
  /** It has been answered. */
  isOver = false;
  readonly mode: LockMode;
  readonly sinceMs: number;
  readonly endsAtMs: number;
  readonly resolve: (lease: LeaseBase) => void;
  readonly reject: (error: unknown) => void;
  private readonly line: Line;
  private readonly signal: AbortSignal | undefined;
  private onAbort: (() => void) | undefined = undefined;

  constructor(
    line: Line,
    mode: LockMode,
    signal: AbortSignal | undefined,
    sinceMs: number,
    waitMs: number,
    resolve: (lease: LeaseBase) => void,
    reject: (error: unknown) => void,
  ) {
    super();
    this.line = line;
    this.mode = mode;
    this.signal = signal;
    this.sinceMs = sinceMs;
    this.endsAtMs = sinceMs + waitMs;
    this.resolve = resolve;
    this.reject = reject;
  }

  override expire(): void {
    this.line.expire(this);
  }

  listen(): void {
    const { signal } = this;
    if (signal === undefined) return;
    this.onAbort = () => this.line.giveUp(this, signal.reason);
    addAbortListener(signal, this.onAbort);
  }

  unlisten(): void {
    if (this.onAbort !== undefined) removeAbortListener(this.signal!, this.onAbort);
  }
}
