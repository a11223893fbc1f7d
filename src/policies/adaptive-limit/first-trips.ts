/**
 * First trips: what the first operations tell of a service, of which nothing is known yet and which may be overloaded already.
 *
 * The operations that start first run among few, if the process has just begun to call the service. If those that start later take clearly longer, they
 * wait for each other, and only the earlier ones tell the plain round trip. If most of them are lost, none does.
 */
import type { RoundTrip } from './algorithm.js';

/** The later half takes clearly longer if its mean is at least this many times that of the earlier half, and more than chance explains. */
const rise = 1.5;
/** So many standard errors are no coincidence. */
const riseErrors = 2.5;
/** Round trips are falling if the mean of the earlier half is at least this many times that of the later. */
const fall = 1.2;
/** So many lost operations are no coincidence. */
const lostEnough = 5;

export class FirstTrips {
  private readonly earlier = new Mean();
  private readonly later = new Mean();
  private readonly size: number;
  /** Order numbers below this belong to the earlier half. */
  private readonly middle: number;
  private lost = 0;
  private held = 0;
  private beganMs = Number.POSITIVE_INFINITY;
  private endedMs = 0;

  constructor(firstOrder: number, size: number) {
    this.size = size;
    this.middle = firstOrder + size / 2;
  }

  /** How many are yet to be measured. */
  get missing(): number {
    return this.size - this.count;
  }

  /** A service of which nothing came back may simply be away; that tells nothing about its load. */
  get mostWereLost(): boolean {
    return this.lost >= lostEnough && this.lost > this.count / 2 && this.lost < this.count;
  }

  /** Whether the later ones take clearly less, because the service works off a backlog. */
  get wereFalling(): boolean {
    return this.later.count > 0 && this.earlier.ms >= fall * this.later.ms;
  }

  private get count(): number {
    return this.earlier.count + this.later.count;
  }

  /** Whether most of them were answered while the limit held calls back. */
  get mostWereHeld(): boolean {
    return this.held > this.count / 2;
  }

  /** `countedMs`: what the operation counts as; `wasHeld`: whether the limit held calls back when it ended. */
  add({ order, roundTripMs, wasLost, endedMs }: RoundTrip, countedMs: number, wasHeld: boolean): void {
    (order < this.middle ? this.earlier : this.later).add(countedMs);
    if (wasLost) this.lost++;
    else if (wasHeld) this.held++;
    this.beganMs = Math.min(this.beganMs, endedMs - roundTripMs);
    this.endedMs = endedMs;
  }

  /** The plain round trip, how many operations it is the mean of, and how many may run, if that is not simply as many as have run. */
  learnt(): { readonly plainMs: number; readonly samples: number; readonly limit?: number } {
    const { earlier, later, count } = this;
    const errorMs = Math.hypot(earlier.errorMs, later.errorMs);
    if (earlier.count === 0 || later.ms < Math.max(rise * earlier.ms, earlier.ms + riseErrors * errorMs)) {
      return { plainMs: (earlier.ms * earlier.count + later.ms * later.count) / count, samples: count };
    }
    // Little's law: so many were running, on average, when each took the plain round trip.
    const perMs = count / (this.endedMs - this.beganMs);
    return { plainMs: earlier.ms, samples: earlier.count, limit: Math.max(2, Math.ceil(perMs * earlier.ms)) };
  }
}

class Mean {
  ms = 0;
  count = 0;
  private squares = 0;

  /** The standard error. */
  get errorMs(): number {
    return Math.sqrt(this.squares / Math.max(1, this.count - 1) / Math.max(1, this.count));
  }

  add(ms: number): void {
    const offMs = ms - this.ms;
    this.ms += offMs / ++this.count;
    this.squares += offMs * (ms - this.ms);
  }
}
