/**
 * Quantile: follows a quantile of a stream, such as the 95th percentile of latencies, in a few numbers.
 *
 * Promise: undefined until enough values were seen, then always within the range of what can be; constant time and memory
 * per value; the same stream in other units gives the same estimate in these units. Only on which side of the estimate a
 * value lies counts, so a value of which no more is known than that it is larger is as good as any other.
 * After: Robbins and Monro, "A stochastic approximation method" (1951), on the logarithm, so that a step is a share.
 */

/** How far one value moves the estimate. A shift of the stream to ten times as much is followed in some 50 values. */
const gain = 0.05;
/** What is no larger counts as this, because a share of nothing is nothing. */
const smallest = 0.001;

export class QuantileEstimator {
  private readonly rise: number;
  private readonly fall: number;
  private readonly quantile: number;
  private readonly minimumSamples: number;
  /** The first values, until they are enough to begin with their own quantile. */
  private first: number[] | undefined = [];
  private estimate = 0;

  constructor(quantile: number, minimumSamples: number) {
    this.quantile = quantile;
    this.minimumSamples = minimumSamples;
    // In balance when a share of 1 - quantile lies above: that many times the rise equals the rest times the fall.
    this.rise = Math.exp(gain * quantile);
    this.fall = Math.exp(-gain * (1 - quantile));
  }

  /** The quantile as it seems now; undefined until enough values were seen. */
  get value(): number | undefined {
    return this.first === undefined ? this.estimate : undefined;
  }

  add(value: number): void {
    if (this.first === undefined) {
      if (value > this.estimate) this.estimate *= this.rise;
      else this.estimate = Math.max(smallest, this.estimate * this.fall);
      return;
    }
    this.first.push(value);
    if (this.first.length < this.minimumSamples) return;
    this.first.sort((one, other) => one - other);
    const index = Math.ceil(this.quantile * this.first.length) - 1;
    this.estimate = Math.max(smallest, this.first[index]!);
    this.first = undefined;
  }

  /** A value of which only a lower bound is known, because nobody waited for its end. */
  addAtLeast(bound: number): void {
    // Below the estimate the bound does not tell the side.
    if (this.first === undefined && bound >= this.estimate) this.estimate *= this.rise;
  }
}
