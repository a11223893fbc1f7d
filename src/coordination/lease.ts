/**
 * Lease keeper: renews a claim on a record of a store for as long as it is wanted, and knows when it is no longer sure.
 *
 * Promise: `onLost` is called before the store can give the claim to anybody else, whatever hangs. The end is counted from just before
 * the write was sent, on whichever clock of this process went further, less 1 % and 2 ms for clocks that differ, less a margin.
 * After: Gray and Cheriton, "Leases" (1989); the leader election of Kubernetes' client-go (renew deadline before lease duration).
 */
import { type Clock, callbackTimer, Timer } from '../core/clock.js';

/** Shortest time between the end here and the end at the store: to stop what relies on the lease. */
const leastMarginMs = 50;

/** The margin when none is given: a tenth of the lease, at least 50 ms. */
export function defaultMarginMs(leaseMs: number): number {
  return Math.max(leastMarginMs, leaseMs / 10);
}

/** How long a lease can be relied on here, counted from just before it was asked for. */
export function safeLeaseMs(leaseMs: number, marginMs: number): number {
  return leaseMs * 0.99 - 2 - marginMs;
}

/** When something was sent. Monotonic time stops while a machine sleeps, wall time may be set: each covers for the other. */
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

export interface LeaseTerms {
  readonly clock: Clock;
  readonly random: () => number;
  readonly leaseMs: number;
  readonly marginMs: number;
  /** From one renewal to the next. Default a third of the lease, so that two tries may fail. */
  readonly renewEveryMs?: number | undefined;
  /**
   * Renews once, for so long: true when that is done, false when the record is somebody else's now. A rejection says nothing, and it is
   * tried again. Its signal ends after a quarter of the lease; at no time are there two of them.
   */
  readonly renew: (leaseMs: number, signal: AbortSignal) => Promise<boolean>;
  /** Called once. `'taken'`: the store has said so; `'expired'`: nobody can say any more. */
  readonly onLost: (reason: 'taken' | 'expired') => void;
}

/** `'suspect'`: the last try to renew has failed, and there is still time for another. */
export type LeaseState = 'held' | 'suspect' | 'lost' | 'ended';

/** Also the timer of its end. */
export class LeaseKeeper extends Timer {
  private readonly terms: LeaseTerms;
  private readonly background: Clock;
  /** What the next renewal asks for. */
  private leaseMs: number;
  /** What the last renewal that was done has given, counted from `sent`. */
  private grantedMs: number;
  private sent: Instant;
  private current: LeaseState = 'held';
  private running: Promise<boolean | undefined> | undefined = undefined;
  private readonly renewal = callbackTimer(() => {
    // A process that was frozen may come here first: what is over is not renewed.
    if (this.isHeld()) void this.renew();
  });

  /** For a claim whose first write was sent at `sent` and has been done. */
  constructor(terms: LeaseTerms, sent: Instant) {
    super();
    this.terms = terms;
    this.background = terms.clock.background ?? terms.clock;
    this.leaseMs = terms.leaseMs;
    this.sent = sent;
    this.grantedMs = terms.leaseMs;
    // The nearer one first: a timer that is nearer than all others lets the clock arm the platform's anew.
    this.background.schedule(this.renewal, sent.monotonicMs + this.untilRenewalMs());
    this.background.schedule(this, sent.monotonicMs + this.safeMs());
  }

  override expire(): void {
    this.check();
  }

  get state(): LeaseState {
    this.check();
    return this.current;
  }

  /** Whether nobody else can have it: looked up anew, so that a process that was frozen finds out before it goes on. */
  isHeld(): boolean {
    this.check();
    return this.current === 'held' || this.current === 'suspect';
  }

  /** Milliseconds until it is lost unless it is renewed; 0 when it is. */
  remainingMs(): number {
    if (this.current === 'lost' || this.current === 'ended') return 0;
    const { clock } = this.terms;
    const passedMs = Math.max(clock.now() - this.sent.monotonicMs, clock.wallNow() - this.sent.wallMs);
    const leftMs = this.safeMs() - passedMs;
    // The timer of the end fires once: a sum of fractions must not let it find a rest of nothing.
    return leftMs < 0.001 ? 0 : leftMs;
  }

  /** Renews now, from here on for so long. Whether that was done; undefined when nobody knows. */
  async extend(leaseMs = this.leaseMs): Promise<boolean | undefined> {
    while (this.running !== undefined) await this.running;
    if (!this.isHeld()) return false;
    this.leaseMs = leaseMs;
    return this.renew();
  }

  /** Somebody else has said that it is taken away. */
  revoke(): void {
    if (this.isHeld()) this.lose('taken');
  }

  /** Renews no more and is not lost any more. Resolves when no renewal is on its way, so that what follows is not overtaken. */
  async stop(): Promise<void> {
    if (this.current !== 'lost') this.current = 'ended';
    this.cancel();
    await this.running;
  }

  /** How long it can be relied on, counted from when the last renewal was sent. */
  private safeMs(): number {
    return safeLeaseMs(this.grantedMs, this.terms.marginMs);
  }

  private count(sent: Instant, leaseMs: number): void {
    this.sent = sent;
    this.grantedMs = leaseMs;
    this.background.schedule(this, sent.monotonicMs + this.safeMs());
  }

  /** A lease that was made shorter needs its renewals sooner. */
  private untilRenewalMs(): number {
    return Math.min(this.terms.renewEveryMs ?? this.grantedMs / 3, this.safeMs() / 2);
  }

  private cancel(): void {
    this.background.cancel(this);
    this.background.cancel(this.renewal);
  }

  private check(): void {
    if (this.current === 'lost' || this.current === 'ended' || this.remainingMs() > 0) return;
    this.lose('expired');
  }

  private lose(reason: 'taken' | 'expired'): void {
    this.current = 'lost';
    this.cancel();
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
    this.background.cancel(this.renewal);
    const sent = instantOf(clock);
    const { leaseMs } = this;
    // A lease that gets shorter may have done so whatever the answer is.
    if (leaseMs < this.grantedMs && safeLeaseMs(leaseMs, this.terms.marginMs) < this.remainingMs()) {
      this.count(sent, leaseMs);
    }
    const answer = await this.ask(leaseMs);
    // It may have been lost or given back meanwhile; then the answer comes too late to matter.
    if (!this.isHeld()) return answer;
    if (answer === true) {
      this.current = 'held';
      this.count(sent, leaseMs);
      this.background.schedule(this.renewal, sent.monotonicMs + this.untilRenewalMs());
    } else if (answer === false) this.lose('taken');
    else {
      this.current = 'suspect';
      this.background.schedule(this.renewal, clock.now() + (this.grantedMs / 20) * (0.5 + random()));
    }
    return answer;
  }

  /** Undefined: no answer in time, or a failure. */
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
