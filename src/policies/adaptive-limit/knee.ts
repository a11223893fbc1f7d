/**
 * Knee: finds how many operations a service runs at once before they begin to wait for each other.
 *
 * It measures two numbers: the plain round trip, which an operation takes while few run, and the ratio of current round trips to it. While the ratio
 * is about 1, more may run; when it is clearly above 1, fewer. Both are means per operation and not per unit of time, so slow and fast services are
 * treated alike. They are means because the shortest round trip depends more on luck than on load.
 *
 * Promise: while fewer than `initial` operations run, nothing is refused for lack of a plain round trip. Calls that the limit does not hold back
 * never lower it. The plain round trip is learnt only while few operations run, so an overload does not distort it.
 * After: Little (1961) for the scaling of late samples; Jacobson (1988) for slow start; Cardwell et al., "BBR" (2016) for the deliberate dip; the
 * rest by measurement, see `docs/adaptive-limit.md`.
 */
import type { LimitAlgorithm, LimitRange, RoundTrip } from './algorithm.js';
import { FirstTrips } from './first-trips.js';

/** Number of operations whose mean is the first plain round trip: the first to start. The first to end would be the quick ones. */
const firstSamples = 30;
/** The same after most of the first operations were lost. */
const againSamples = 10;
/** The plain round trip is the mean of at most this many samples, and of some more where many operations run. */
const plainSamplesOfFew = 300;
/**
 * The ratio that the limit is steered to: 1.08. It is higher where few operations run, because a queue of a fraction of an operation is no queue.
 * Standard errors of the plain round trip are added, because a limit below the knee costs more than one above it.
 */
const tolerance = 1.08;
const toleranceOfFew = 0.35;
const toleranceOfDoubt = 1.5;
/** How far one operation moves the limit, per unit of deviation of its ratio. */
const gain = 0.25;
/** A single operation may lower the limit by no more than this times `gain`. */
const worstStep = 2;
/** A round trip counts as at most this many plain round trips, so that a single hanging call does not decide. */
const longest = 4;
/** The shortest round trip, in milliseconds. An operation too quick for the clock still gets a time, so that others can be compared with it. */
const shortest = 0.001;
/** A lost call counts as this many times the time it was waited for, because it would have taken longer. */
const lostFactor = 1.5;
/** How far one operation raises the limit while no knee has been seen; more where few may run, so that one round trip of each has an effect. */
const slowStart = 0.25;
/** Slow start stays below this times the number of operations that ran when the operation started: its round trip tells nothing beyond that. */
const slowStartReach = 1.4;
/** From this share of the limit on, the limit counts as holding calls back. */
const busyShare = 0.9;
/** "Few run" means at most this share of the number known to be safe. */
const fewShare = 0.7;
/** The limit does not fall below this share of the safe number before that number itself has followed. */
const floorShare = 0.6;
/** A dip goes down to this share of the safe number. */
const dipShare = 0.6;
/** A dip comes after this many limits' worth of consecutive operations that were held back; the next after twice as many, and so on. */
const firstDipAfter = 50;
const lastDipAfter = 200;
/** The first dip after the plain round trip has jumped. */
const dipAfterJump = 5;
/** The first dip if the limit held calls back while the first operations ran: the service may have been overloaded from the beginning. */
const dipAfterHeldStart = 10;
/** If round trips in a dip are at least this share of those before it, there was no knee. */
const sameShare = 0.9;
/** The plain round trip jumps when the recent mean deviates by this many standard errors and a tenth. */
const jumpErrors = 4;
/** A knee counts as that of another service if it was seen when the plain round trip was below this share of the current one. */
const sameKneeShare = 0.6;
/** From this share of lost calls on, round trip times say nothing. */
const lostMajority = 0.5;

export class Knee implements LimitAlgorithm {
  private readonly range: LimitRange;
  /** The limit, with its fraction. */
  private level: number;
  /** Mean round trip while few run; 0 until it is known. */
  private plainMs = 0;
  private plainSamples = 0;
  /** The same over a few recent samples; then the squared coefficient of variation of plain round trips. */
  private recentMs = 0;
  private variation = 0.5;
  /** How many operations were seen to run without waiting for each other. */
  private safe = 0;
  /** The mean ratio of all operations, and of those that ended while the limit held calls back. */
  private ratio = 1;
  private busyRatio = 1;
  private lostShare = 0;
  private hasSeenKnee = false;
  /** The plain round trip when the knee was seen. */
  private kneePlainMs = 0;
  private mostRunning = 0;
  private orders = 0;
  private first = new FirstTrips(0, firstSamples);
  private isMeasuredAgain = false;
  /** Whether the service may have been overloaded from the beginning: until enough operations have run among few. */
  private isStartDoubtful = true;
  /** The operations that are measured together, as a range of order numbers: the first ones, or those of a dip. */
  private cohortFrom = 0;
  private cohortTo = firstSamples;
  private cohortLeft = firstSamples;
  private cohortSize = firstSamples;
  private isDipping = false;
  /** Consecutive operations that ended while calls were held back, and the mean round trip of the latest of them. */
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
    return Math.max(this.range.min, Math.round(Math.min(this.level, this.safe) * dipShare));
  }

  get waitMs(): number {
    return this.plainMs === 0 ? 100 : 2 * this.plainMs;
  }

  get usefulMs(): number {
    return this.plainMs * 0.7;
  }

  started(running: number): number {
    this.mostRunning = Math.max(this.mostRunning, running);
    return this.orders++;
  }

  ignored(order: number): void {
    if (!this.isOfCohort(order)) return;
    if (this.plainMs === 0) this.leaveFirst();
    else this.leaveDip();
  }

  ended(trip: RoundTrip): void {
    if (this.plainMs === 0) return this.learnFirst(trip);
    const { order, running, runningAtStart, wasLost } = trip;
    const { level } = this;
    const isBusy = this.isBusy(running);
    const share = Math.min(0.5, 1 / (4 + level / 2));
    const mostWereLost = this.lostShare > lostMajority;
    this.lostShare += ((wasLost ? 1 : 0) - this.lostShare) * share;
    const mostAreLost = this.lostShare > lostMajority;
    if (mostWereLost && !mostAreLost) this.startAgain();
    const fullMs = wasLost ? trip.roundTripMs * lostFactor : trip.roundTripMs;
    const roundTripMs = Math.min(Math.max(shortest, fullMs), longest * Math.max(this.plainMs, this.recentMs));
    const isOfCohort = this.isDipping && this.isOfCohort(order);
    const few = Math.max(1, this.safe * fewShare);
    // While the limit holds calls back, an operation that started among few did not stay among few, unless the limit itself keeps it so.
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
    // It started among more operations than may run now. Little's law scales its round trip to the number of now.
    else ratio *= Math.min(1, level / runningAtStart);
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

  private learnFirst(trip: RoundTrip): void {
    if (!this.isOfCohort(trip.order)) return;
    // While the service works off what was lost before, more may be lost.
    if (this.isMeasuredAgain && trip.wasLost) return this.leaveFirst();
    this.first.add(trip, Math.max(shortest, trip.roundTripMs), this.isBusy(trip.running));
    if (this.first.mostWereLost) return this.beginFirstAgain();
    this.leaveFirst();
  }

  /** The service answers, but most of the first operations were lost, and it may still work on them: it is asked again by a single one. */
  private beginFirstAgain(): void {
    this.isMeasuredAgain = true;
    this.moveTo(this.range.min);
    this.mostRunning = 0;
    this.beginFirst(againSamples);
  }

  private beginFirst(size: number): void {
    this.beginCohort(size);
    this.first = new FirstTrips(this.cohortFrom, size);
  }

  /** One of the first operations has ended. If it taught nothing, another one is measured in its place. */
  private leaveFirst(): void {
    if (--this.cohortLeft > 0) return;
    if (this.first.missing > 0) return this.beginCohort(this.first.missing);
    // The service still works off what was lost before, of this process or of others.
    if (this.isMeasuredAgain && this.first.wereFalling) return this.beginFirstAgain();
    const { plainMs, samples, limit = this.mostRunning } = this.first.learnt();
    this.plainMs = this.recentMs = plainMs;
    this.plainSamples = samples;
    if (this.first.mostWereHeld) this.dipAfter = dipAfterHeldStart;
    this.moveTo(limit);
    this.safe = this.level * fewShare;
  }

  private learnPlain(roundTripMs: number): void {
    const { safe } = this;
    const recentSamples = 10 + safe / 2;
    if (this.plainSamples < plainSamplesOfFew + 5 * safe) this.plainSamples++;
    if (this.plainSamples >= plainSamplesOfFew) this.isStartDoubtful = false;
    const offMs = roundTripMs - this.plainMs;
    this.plainMs += offMs / this.plainSamples;
    this.variation += ((offMs / this.plainMs) ** 2 - this.variation) / Math.max(firstSamples, this.plainSamples);
    this.recentMs += (roundTripMs - this.recentMs) / recentSamples;
    const errorMs = this.plainMs * Math.sqrt(this.variation / (2 * recentSamples));
    if (Math.abs(this.recentMs - this.plainMs) <= jumpErrors * errorMs + this.plainMs / 10) return;
    if (this.plainSamples <= recentSamples) return;
    // Few operations run and round trips differ from before: the service has changed.
    this.plainMs = this.recentMs;
    this.plainSamples = recentSamples;
    this.variation = 0.5;
    this.busySamples = 0;
    this.dipAfter = dipAfterJump;
  }

  private learnBusy(roundTripMs: number): void {
    const { level } = this;
    const samples = Math.min(this.busySamples + 1, 10 * level);
    this.busyMs += (roundTripMs - this.busyMs) / samples;
    // No operation is quicker among many than among few. A few of them may well be quicker by chance, by their standard error.
    const mostMs = this.busyMs * (1 + Math.sqrt(this.variation / samples));
    if (this.busySamples > 5 * level) this.plainMs = Math.min(this.plainMs, mostMs);
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
    if (!mostAreLost) this.safe += Math.min(0, this.level - this.safe) / (10 * this.level);
    if (++this.busySamples > this.dipAfter * this.level && !mostAreLost) this.beginDip();
  }

  /** The service answers again. The limit during the outage means nothing, so it may grow as at the start. */
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

  /** An operation of the dip has ended. */
  private leaveDip(): void {
    if (--this.cohortLeft > 0) return;
    if (this.dipSamples > this.cohortSize / 2) {
      const perMsInDip = Math.floor(this.limit) / this.dipMs;
      const perMsBefore = Math.floor(this.level) / this.busyMs;
      // Fewer operations ran and were no quicker: this is the plain round trip, and the limit was too low for no reason.
      if (this.dipMs > sameShare * this.busyMs) this.plainMs = Math.max(this.plainMs, (this.dipMs + this.busyMs) / 2);
      // Fewer operations ran and clearly more of them ended (Little's law): the others were in the way, and more may be.
      else if (this.isStartDoubtful && sameShare * perMsInDip > perMsBefore) return this.dipDeeper();
    }
    this.isDipping = false;
    this.busySamples = 0;
    this.dipAfter = Math.min(lastDipAfter, 2 * this.dipAfter);
  }

  /** Whether the limit holds calls back. */
  private isBusy(running: number): boolean {
    return running >= busyShare * Math.floor(this.level);
  }

  private dipDeeper(): void {
    this.moveTo(this.limit);
    this.safe = this.level;
    this.plainMs = Math.min(this.plainMs, this.dipMs);
    this.busyMs = this.dipMs;
    this.beginDip();
  }

  /** Operations that start from now on are measured together. */
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
