/**
 * Knee: finds how many operations a service does at once before they begin to wait for each other.
 *
 * It knows two numbers by measurement: the plain round trip, which an operation takes while few run, and the ratio of
 * the round trips of now to it. While the ratio is about 1, more may run; when it is clearly more, fewer. Both are means
 * per operation and not per time, so slow and fast services are treated alike, and means, because the shortest round
 * trip says more of luck than of load.
 *
 * Promise: nothing is refused for want of a plain round trip while less than `initial` run; calls that are not held back
 * by the limit never lower it; the plain round trip is learnt only when few run, so an overload does not teach it.
 * After: Little (1961) for the scaling of late samples; Jacobson (1988) for slow start; Cardwell et al., "BBR" (2016) for
 * the deliberate dip; the rest by measurement, see `docs/adaptive-limit.md`.
 */
import type { LimitAlgorithm, LimitRange, RoundTrip } from './algorithm.js';

/** Operations whose mean is the first plain round trip. They are the first to start, not the first to end, which would be the quick ones. */
const firstSamples = 30;
/** The plain round trip is the mean of at most so many, and of some more where many run. */
const plainSamplesOfFew = 300;
/**
 * The ratio that the limit is steered to: 1.08; more where few run, because a queue of part of an operation is none; and
 * so many standard errors of the plain round trip more, because a limit below the knee costs more than one above it.
 */
const tolerance = 1.08;
const toleranceOfFew = 0.35;
const toleranceOfDoubt = 1.5;
/** What one operation moves the limit by, per unit that its ratio is off. */
const gain = 0.25;
/** A single operation may lower the limit by no more than this times `gain`. */
const worstStep = 2;
/** Round trips count as at most this many plain ones, so that a single hanging call does not decide. */
const longest = 4;
/** What takes no time that a clock can show still takes some, or nothing could be compared with it. In milliseconds. */
const shortest = 0.001;
/** A lost call would have taken longer than was waited for it. */
const lostFactor = 1.5;
/** What one operation raises the limit by, as long as no knee was seen; more where few may run, so that one round trip of each is felt. */
const slowStart = 0.25;
/** It then stays below this times what ran when the operation started, which is as far as its round trip can tell. */
const slowStartReach = 1.4;
/** The share of the limit from which it counts as holding calls back. */
const busyShare = 0.9;
/** Few run: this share of what is known to be safe. */
const fewShare = 0.7;
/** The limit does not fall below this share of it before that number itself has followed. */
const floorShare = 0.6;
/** A dip goes down to this share of it. */
const dipShare = 0.6;
/** After this many limits' worth of operations in a row that were held back there is a dip; then after twice as many, and so on. */
const firstDipAfter = 50;
const lastDipAfter = 200;
/** The first dip after the plain round trip has changed at once. */
const dipAfterJump = 5;
/** When round trips in a dip are at least this share of those before it, there was no knee. */
const sameShare = 0.9;
/** The plain round trip changes at once when the recent mean is off by so many standard errors and a tenth. */
const jumpErrors = 4;
/** A knee that was seen when the plain round trip was less than this share of what it is now was that of another service. */
const sameKneeShare = 0.6;
/** From this share of lost calls on, time says nothing any more. */
const lostMajority = 0.5;

export class Knee implements LimitAlgorithm {
  private readonly range: LimitRange;
  /** The limit, with fractions. */
  private level: number;
  /** Mean round trip while few run; 0 until it is known. */
  private plainMs = 0;
  private plainSamples = 0;
  /** The same over few samples, and its squared coefficient of variation. */
  private recentMs = 0;
  private variation = 0.5;
  /** How many were seen to run without waiting for each other. */
  private safe = 0;
  /** Mean ratio of all operations, and of those that ended while the limit held calls back. */
  private ratio = 1;
  private busyRatio = 1;
  private lostShare = 0;
  private hasSeenKnee = false;
  /** The plain round trip when it was seen. */
  private kneePlainMs = 0;
  private mostRunning = 0;
  private orders = 0;
  /** The operations that are measured together: the first ones, or those of a dip. Here by their orders. */
  private cohortFrom = 0;
  private cohortTo = firstSamples;
  private cohortLeft = firstSamples;
  private cohortSize = firstSamples;
  private isDipping = false;
  /** Operations in a row that ended while calls were held back, and the mean round trip of the latest of them. */
  private busySamples = 0;
  private busyMs = 0;
  private dipMs = 0;
  private dipSamples = 0;
  private dipAfter = firstDipAfter;

  constructor(range: LimitRange) {
    this.range = range;
    this.level = range.initial;
  }

  get limit(): number {
    if (!this.isDipping) return this.level;
    return Math.max(this.range.min, Math.min(this.level, this.safe) * dipShare);
  }

  get waitMs(): number {
    return this.plainMs === 0 ? 100 : 2 * this.plainMs;
  }

  get usefulMs(): number {
    return this.plainMs * 0.7;
  }

  started(running: number): number {
    if (running > this.mostRunning) this.mostRunning = running;
    return this.orders++;
  }

  ignored(order: number): void {
    if (!this.isOfCohort(order)) return;
    if (this.plainMs === 0) this.leaveFirst();
    else if (this.isDipping) this.leaveDip();
  }

  ended(trip: RoundTrip): void {
    if (this.plainMs === 0) return this.learnFirst(trip);
    const { order, running, runningAtStart, wasLost } = trip;
    const { level } = this;
    const isBusy = running >= busyShare * Math.floor(level);
    const share = Math.min(0.5, 1 / (4 + level / 2));
    const mostWereLost = this.lostShare > lostMajority;
    this.lostShare += ((wasLost ? 1 : 0) - this.lostShare) * share;
    const mostAreLost = this.lostShare > lostMajority;
    if (mostWereLost && !mostAreLost) this.startAgain();
    const fullMs = wasLost ? trip.roundTripMs * lostFactor : trip.roundTripMs;
    const roundTripMs = Math.min(Math.max(shortest, fullMs), longest * Math.max(this.plainMs, this.recentMs));
    const isOfCohort = this.isDipping && this.isOfCohort(order);
    const few = Math.max(1, this.safe * fewShare);
    // While the limit holds calls back, who started among few did not stay among few, unless the limit itself sees to it.
    if (runningAtStart <= few && (!isBusy || level <= few || isOfCohort) && !(mostAreLost && wasLost)) {
      this.learnPlain(roundTripMs);
    }
    if (this.isDipping) {
      if (isOfCohort) {
        this.dipMs += (roundTripMs - this.dipMs) / ++this.dipSamples;
        this.leaveDip();
      }
      return;
    }
    let ratio = roundTripMs / this.plainMs;
    if (mostAreLost && wasLost) ratio = longest;
    // It started among more than may run now. Little's law tells what it would have taken among these.
    else if (runningAtStart > level) ratio *= level / runningAtStart;
    this.ratio += (ratio - this.ratio) * share;
    const target =
      tolerance + toleranceOfFew / Math.sqrt(level) + toleranceOfDoubt * Math.sqrt(this.variation / this.plainSamples);
    if (this.ratio <= target && runningAtStart > few) {
      this.safe = Math.min(level / fewShare, this.safe + (runningAtStart / fewShare - this.safe) / (2 * level));
    }
    if (isBusy) {
      this.busyRatio += (ratio - this.busyRatio) * share;
      this.learnBusy(roundTripMs);
      this.steer(ratio, target, runningAtStart, mostAreLost);
    }
  }

  private learnFirst({ order, roundTripMs }: RoundTrip): void {
    if (!this.isOfCohort(order)) return;
    this.plainSamples++;
    this.recentMs += (Math.max(shortest, roundTripMs) - this.recentMs) / this.plainSamples;
    this.leaveFirst();
  }

  /** One of the first has ended, or it taught nothing; then others are measured in place of those. */
  private leaveFirst(): void {
    if (--this.cohortLeft > 0) return;
    if (this.plainSamples < firstSamples) return this.beginCohort(firstSamples - this.plainSamples);
    this.plainMs = this.recentMs;
    this.moveTo(this.mostRunning);
    this.safe = this.level * fewShare;
  }

  private learnPlain(roundTripMs: number): void {
    const { safe } = this;
    const recentSamples = 10 + safe / 2;
    if (this.plainSamples < plainSamplesOfFew + 5 * safe) this.plainSamples++;
    const offMs = roundTripMs - this.plainMs;
    this.plainMs += offMs / this.plainSamples;
    this.variation += ((offMs / this.plainMs) ** 2 - this.variation) / Math.max(firstSamples, this.plainSamples);
    this.recentMs += (roundTripMs - this.recentMs) / recentSamples;
    const errorMs = this.plainMs * Math.sqrt(this.variation / (2 * recentSamples));
    if (Math.abs(this.recentMs - this.plainMs) <= jumpErrors * errorMs + this.plainMs / 10) return;
    if (this.plainSamples <= recentSamples) return;
    // Few run and it takes another time than before: the service has changed.
    this.plainMs = this.recentMs;
    this.plainSamples = recentSamples;
    this.variation = 0.5;
    this.busySamples = 0;
    this.dipAfter = dipAfterJump;
  }

  private learnBusy(roundTripMs: number): void {
    const { level } = this;
    this.busyMs += (roundTripMs - this.busyMs) / Math.min(this.busySamples + 1, 10 * level);
    // Nothing is quicker among many than among few.
    if (this.busySamples > 5 * level && this.busyMs < this.plainMs) this.plainMs = this.busyMs;
  }

  private steer(ratio: number, target: number, runningAtStart: number, mostAreLost: boolean): void {
    const { level } = this;
    if (this.ratio <= target && this.kneePlainMs < sameKneeShare * this.plainMs) this.hasSeenKnee = false;
    if (this.hasSeenKnee) {
      const lowest = mostAreLost ? 1 : Math.min(level, floorShare * this.safe);
      this.moveTo(Math.max(lowest, level + gain * Math.max(-worstStep, target - ratio)));
    } else if (Math.max(this.busyRatio, this.ratio) > target) {
      this.hasSeenKnee = true;
      this.kneePlainMs = this.plainMs;
    } else
      this.moveTo(
        Math.max(level, Math.min(level + Math.max(slowStart, 1 / level), slowStartReach * runningAtStart + 1)),
      );
    if (this.level < this.safe && !mostAreLost) this.safe += (this.level - this.safe) / (10 * this.level);
    if (++this.busySamples > this.dipAfter * this.level && !mostAreLost) this.beginDip();
  }

  /** The service answers again: what the limit fell to while it did not says nothing, so it may grow as at first. */
  private startAgain(): void {
    this.hasSeenKnee = false;
    this.ratio = 1;
    this.busyRatio = 1;
  }

  private beginDip(): void {
    this.isDipping = true;
    this.dipMs = 0;
    this.dipSamples = 0;
    this.beginCohort(Math.ceil(8 + 0.3 * this.level));
  }

  /** One of those of the dip has ended. */
  private leaveDip(): void {
    if (--this.cohortLeft > 0) return;
    // Fewer ran and it was no quicker: so it takes, and the limit was too low for nothing.
    if (this.dipSamples > this.cohortSize / 2 && this.dipMs > sameShare * this.busyMs) {
      this.plainMs = Math.max(this.plainMs, (this.dipMs + this.busyMs) / 2);
    }
    this.isDipping = false;
    this.busySamples = 0;
    this.dipAfter = Math.min(lastDipAfter, 2 * this.dipAfter);
  }

  /** Those that start from now on are measured together. */
  private beginCohort(size: number): void {
    this.cohortFrom = this.orders;
    this.cohortTo = this.orders + size;
    this.cohortSize = size;
    this.cohortLeft = size;
  }

  private isOfCohort(order: number): boolean {
    return order >= this.cohortFrom && order < this.cohortTo;
  }

  private moveTo(level: number): void {
    this.level = Math.min(this.range.max, Math.max(this.range.min, level));
  }
}
