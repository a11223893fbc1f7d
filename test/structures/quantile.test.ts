import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { QuantileEstimator } from '../../src/structures/quantile.js';
import { seededRandom } from '../../src/testing/index.js';

/** Latencies as services have them: most are near the median, and the tail is many times as long. */
function logNormal(random: () => number, medianMs: number, sigma: number): number {
  const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  return medianMs * Math.exp(sigma * normal);
}

describe('QuantileEstimator', () => {
  it('knows nothing until enough values were seen, and begins with their own quantile', () => {
    const estimator = new QuantileEstimator(0.9, 10);
    for (const value of [10, 9, 8, 7, 6, 5, 4, 3, 2]) {
      estimator.add(value);
      expect(estimator.value).toBeUndefined();
    }
    estimator.add(1);
    expect(estimator.value).toBe(9);
  });

  it.each([0.5, 0.9, 0.95, 0.99])('lets the share of values below it that was asked for: %s', (quantile) => {
    for (let seed = 1; seed <= 10; seed++) {
      const random = seededRandom(seed);
      const estimator = new QuantileEstimator(quantile, 100);
      let below = 0;
      const count = 20_000;
      for (let index = 0; index < 1_000 + count; index++) {
        const value = logNormal(random, 20, 0.8);
        if (index >= 1_000 && value <= estimator.value!) below++;
        estimator.add(value);
      }
      expect(Math.abs(below / count - quantile), `seed ${seed}: ${below / count}`).toBeLessThan(0.005);
    }
  });

  it('gives the same in other units', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 1, max: 1_000, noNaN: true }), { minLength: 20, maxLength: 200 }),
        fc.constantFrom(0.25, 4, 1_024),
        (values, scale) => {
          const one = new QuantileEstimator(0.9, 10);
          const other = new QuantileEstimator(0.9, 10);
          for (const value of values) {
            one.add(value);
            other.add(value * scale);
          }
          expect(other.value).toBeCloseTo(one.value! * scale, 6);
        },
      ),
    );
  });

  it('follows a service that becomes ten times as slow within sixty values', () => {
    const estimator = new QuantileEstimator(0.95, 10);
    for (let index = 0; index < 10; index++) estimator.add(10);
    let values = 0;
    while (estimator.value! < 100) {
      estimator.add(100);
      values++;
    }
    expect(values).toBeLessThan(60);
  });

  it('takes a bound at the estimate or above for a value above it, and ignores one below', () => {
    const exact = new QuantileEstimator(0.95, 10);
    const bounded = new QuantileEstimator(0.95, 10);
    for (let index = 0; index < 10; index++) {
      exact.add(10);
      bounded.addAtLeast(5_000);
      bounded.add(10);
    }
    expect(bounded.value).toBe(10);
    exact.add(5_000);
    bounded.addAtLeast(10);
    expect(bounded.value).toBe(exact.value);
    bounded.addAtLeast(exact.value! - 0.001);
    expect(bounded.value).toBe(exact.value);
  });

  it('finds its way up from a time in which nothing took any', () => {
    const estimator = new QuantileEstimator(0.9, 10);
    for (let index = 0; index < 5_000; index++) estimator.add(0);
    expect(estimator.value).toBeGreaterThan(0);
    for (let index = 0; index < 500; index++) estimator.add(20);
    expect(estimator.value).toBeGreaterThan(15);
  });
});
