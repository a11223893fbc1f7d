/**
 * Quantile: follows a quantile of a stream, such as the 95th percentile of latencies, in a few numbers.
 *
 * Promise: undefined until enough values were seen, then always within the possible range. Constant time and memory per value. The same stream in other units
 * gives the same estimate in those units. It matters only on which side of the estimate a value lies, so a value known only to be larger is as good as any
 * other.
 * After: Robbins and Monro, "A stochastic approximation method" (1951), on the logarithm, so that a step is a ratio.
 */

/** How far one value moves the estimate. After a tenfold shift of the stream, the estimate follows in about 50 values. */
const gain = 0.05;
/** Smaller values count as this, because a ratio of 0 is 0. */
const smallest = 0.001;

export class QuantileEstimator {
  private readonly rise: number;
  private readonly fall: number;
  private readonly quantile: number;
  private readonly minimumSamples: number;
  /** The first values, until there are enough to start with their own quantile. */
  private first: number[] | undefined = [];
  private estimate = 0;

  constructor(quantile: number, minimumSamples: number) {
    this.quantile = quantile;
    this.minimumSamples = minimumSamples;
    // In balance when a share of 1 - quantile lies above the estimate: that share times the rise equals the rest times the fall.
    this.rise = Math.exp(gain * quantile);
    this.fall = Math.exp(-gain * (1 - quantile));
  }

  /** The current estimate; undefined until enough values were seen. */
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

  /** Records a value of which only a lower bound is known, because nobody waited for its end. */
  addAtLeast(bound: number): void {
    // A bound below the estimate does not tell on which side the value lies.
    if (this.first === undefined && bound >= this.estimate) this.estimate *= this.rise;
  }
}
