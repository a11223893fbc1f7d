/**
 * Lease keeper: renews a claim on a record of a store until it is stopped, and notices when the claim may be lost.
 *
 * Promise: `onLost` is called before the store can give the claim to another owner, whatever hangs. The lease counts from just before the
 * write was sent, on whichever clock of this process (monotonic or wall) advanced further, less 1 % and 2 ms for clocks that differ, less a margin.
 * After: Gray and Cheriton, "Leases" (1989); the leader election of Kubernetes' client-go (renew deadline before lease duration).
 */
import { type Clock, callbackTimer, Timer } from '../core/clock.js';

/** The shortest time between the end here and the end in the store: time to stop the work that relies on the lease. */
const leastMarginMs = 50;

/** The margin when none is given: a tenth of the lease, at least 50 ms. */
export function defaultMarginMs(leaseMs: number): number {
  return Math.max(leastMarginMs, leaseMs / 10);
}

/** How long this process may rely on a lease, counted from just before the request was sent. */
export function safeLeaseMs(leaseMs: number, marginMs: number): number {
  return leaseMs * 0.99 - 2 - marginMs;
}

/** The time at which something was sent. Monotonic time stops while a machine sleeps, wall time can be set: each covers for the other. */
export class Instant {
  readonly monotonicMs: number;
  readonly wallMs: number;

  constructor(monotonicMs: number, wallMs: number) {
    this.monotonicMs = monotonicMs;
    this.wallMs = wallMs;
  }
}

export function instantOf(clock: Clock): Instant {
  return new Instant(clock.now(), clock.wallNow());
}

/** Milliseconds since then, by the clock that has advanced further. */
export function passedMs(clock: Clock, since: Instant): number {
  return Math.max(clock.now() - since.monotonicMs, clock.wallNow() - since.wallMs);
}

export interface LeaseTerms {
  readonly clock: Clock;
  readonly random: () => number;
  readonly leaseMs: number;
  readonly marginMs: number;
  /** The interval between renewals. Default a third of the lease, so that two tries may fail. */
  readonly renewEveryMs?: number | undefined;
  /**
   * Renews once, for this long: true when the store has done so, false when the record belongs to another owner now. A rejection tells nothing, and
   * the renewal is retried. The signal aborts after a quarter of the lease. There are never two renewals at a time.
   */
  readonly renew: (leaseMs: number, signal: AbortSignal) => Promise<boolean>;
  /** Called once. `'taken'`: the store has reported it; `'expired'`: there is no certainty any more. */
  readonly onLost: (reason: 'taken' | 'expired') => void;
}

/** `'suspect'`: the last renewal failed, and there is still time for another. */
export type LeaseState = 'held' | 'suspect' | 'lost' | 'ended';

/** The keeper is also the timer of whatever comes next: a renewal or its own end. */
export class LeaseKeeper extends Timer {
  private readonly terms: LeaseTerms;
  private readonly background: Clock;
  /** The lease that the next renewal asks for. */
  private leaseMs: number;
  /** The lease that the last successful renewal has granted, counted from `sent`. */
  private grantedMs: number;
  private sent: Instant;
  private current: LeaseState = 'held';
  private running: Promise<boolean | undefined> | undefined = undefined;

  /** For a claim whose first write was sent at `sent` and has succeeded. */
  constructor(terms: LeaseTerms, sent: Instant) {
    super();
    this.terms = terms;
    this.background = terms.clock.background ?? terms.clock;
    this.leaseMs = terms.leaseMs;
    this.sent = sent;
    this.grantedMs = terms.leaseMs;
    this.wakeAt(sent.monotonicMs + this.untilRenewalMs());
  }

  override expire(): void {
    // Only a lease that has not ended is renewed: a process that was frozen may get here late.
    if (this.isHeld()) void this.renew();
  }

  get state(): LeaseState {
    this.check();
    return this.current;
  }

  /** Whether no other owner can have the claim. Checks the clocks on each call, so that a process that was frozen notices before it goes on. */
  isHeld(): boolean {
    this.check();
    return this.current === 'held' || this.current === 'suspect';
  }

  /** Milliseconds until the claim is lost unless it is renewed; 0 when it is lost or ended. */
  remainingMs(): number {
    if (this.current === 'lost' || this.current === 'ended') return 0;
    const leftMs = this.safeMs() - passedMs(this.terms.clock, this.sent);
    // A rounding error must not make the timer of the end find a remainder of almost nothing.
    return leftMs < 0.001 ? 0 : leftMs;
  }

  /** Renews now and, from here on, for this long. Whether the store has done so; undefined if that is unknown. */
  async extend(leaseMs = this.leaseMs): Promise<boolean | undefined> {
    while (this.running !== undefined) await this.running;
    if (!this.isHeld()) return false;
    this.leaseMs = leaseMs;
    return this.renew();
  }

  /** Another process has taken the claim away. */
  revoke(): void {
    if (this.isHeld()) this.lose('taken');
  }

  /** Stops renewing; the claim can then no longer be lost. Returns the renewal in flight, so that the caller can wait: it must not overtake what he does next. */
  stop(): Promise<unknown> | undefined {
    if (this.current !== 'lost') this.current = 'ended';
    this.background.cancel(this);
    return this.running;
  }

  /** How long the claim can be relied on, counted from when the last renewal was sent. */
  private safeMs(): number {
    return safeLeaseMs(this.grantedMs, this.terms.marginMs);
  }

  private count(sent: Instant, leaseMs: number): void {
    this.sent = sent;
    this.grantedMs = leaseMs;
  }

  /** Wakes up then, or at the end of the lease if that is sooner. */
  private wakeAt(atMs: number): void {
    this.background.schedule(this, Math.min(atMs, this.sent.monotonicMs + this.safeMs()));
  }

  /** A lease that was shortened needs its renewals sooner. */
  private untilRenewalMs(): number {
    return Math.min(this.terms.renewEveryMs ?? this.grantedMs / 3, this.safeMs() / 2);
  }

  private check(): void {
    if (this.current === 'lost' || this.current === 'ended' || this.remainingMs() > 0) return;
    this.lose('expired');
  }

  private lose(reason: 'taken' | 'expired'): void {
    this.current = 'lost';
    this.background.cancel(this);
    this.terms.onLost(reason);
  }

  private renew(): Promise<boolean | undefined> {
    this.running ??= this.tryOnce().finally(() => {
      this.running = undefined;
    });
    return this.running;
  }

  private async tryOnce(): Promise<boolean | undefined> {
    const { clock, random } = this.terms;
    const sent = instantOf(clock);
    const { leaseMs } = this;
    // The store may have applied the shorter lease whatever the answer is, so it counts from now on.
    if (safeLeaseMs(leaseMs, this.terms.marginMs) < this.remainingMs()) this.count(sent, leaseMs);
    // No other renewal while this one is in flight.
    this.wakeAt(Number.POSITIVE_INFINITY);
    const answer = await this.ask(leaseMs);
    // The lease may have been lost or released in the meantime; then the answer no longer matters.
    if (!this.isHeld()) return answer;
    if (answer === true) {
      this.current = 'held';
      this.count(sent, leaseMs);
      this.wakeAt(sent.monotonicMs + this.untilRenewalMs());
    } else if (answer === false) this.lose('taken');
    else {
      this.current = 'suspect';
      this.wakeAt(clock.now() + (this.grantedMs / 20) * (0.5 + random()));
    }
    return answer;
  }

  /** Undefined: no answer in time, or an error. */
  private async ask(leaseMs: number): Promise<boolean | undefined> {
    const { clock, renew } = this.terms;
    const controller = new AbortController();
    let timer = callbackTimer(() => {});
    const patience = new Promise<undefined>((resolve) => {
      timer = callbackTimer(() => {
        controller.abort();
        resolve(undefined);
      });
    });
    this.background.schedule(timer, clock.now() + this.grantedMs / 4);
    try {
      return await Promise.race([renew(leaseMs, controller.signal), patience]);
    } catch {
      return undefined;
    } finally {
      this.background.cancel(timer);
    }
  }
}
