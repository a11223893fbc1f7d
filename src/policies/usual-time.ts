/** Usual time: how long most operations take that succeed, for guards in whose queue a call could wait until it is too late for its operation. */
import { QuantileEstimator } from '../structures/quantile.js';

/** The share of the operations that takes no longer. With the median, many calls would be started in vain. */
const share = 0.9;
/** Operations that must have succeeded before anything is known. */
const leastSamples = 10;

export class UsualTime {
  private readonly durations = new QuantileEstimator(share, leastSamples);

  /** In milliseconds; 0 while it is not known. */
  get ms(): number {
    return this.durations.value ?? 0;
  }

  /** An operation has succeeded. One that failed may have failed at once, and says nothing about the others. */
  noteSuccess(tookMs: number): void {
    this.durations.add(tookMs);
  }

  /** An operation was given up after that time, so it would have taken longer. */
  noteGivenUp(afterMs: number): void {
    this.durations.addAtLeast(afterMs);
  }
}
