import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Backoff, constant, decorrelated, exponential } from '../../../src/index.js';
import { seededRandom } from '../../../src/testing/index.js';

/** The delays that a backoff chooses one after the other. */
function delays(backoff: Backoff, count: number, random: () => number): number[] {
  const chosen: number[] = [];
  for (let attempt = 1; attempt <= count; attempt++) {
    chosen.push(backoff({ attempt, previousDelayMs: chosen.at(-1), error: undefined, random }));
  }
  return chosen;
}

const half = () => 0.5;

describe('exponential', () => {
  it.each<[string, Backoff, () => number, number[]]>([
    ['equal jitter', exponential({ initial: 100, max: 1_000, jitter: 'equal' }), half, [75, 150, 300, 600, 750, 750]],
    ['full jitter', exponential({ initial: 100, max: 1_000 }), half, [50, 100, 200, 400, 500, 500]],
    ['no jitter', exponential({ initial: 100, max: '1s', jitter: 'none' }), half, [100, 200, 400, 800, 1_000, 1_000]],
    [
      'another factor',
      exponential({ initial: '10ms', max: 1_000, factor: 3, jitter: 'none' }),
      half,
      [10, 30, 90, 270, 810, 1_000],
    ],
    ['the defaults', exponential(), () => 1, [100, 200, 400, 800, 1_600, 3_200]],
  ])('has golden delays: %s', (_, backoff, random, golden) => {
    expect(delays(backoff, golden.length, random)).toEqual(golden);
  });

  it('stays at its cap for any number of attempts', () => {
    expect(
      exponential({ jitter: 'none' })({ attempt: 1_000, previousDelayMs: undefined, error: undefined, random: half }),
    ).toBe(5_000);
  });
});

describe('decorrelated', () => {
  it('has golden delays, with jitter alive at the cap', () => {
    expect(delays(decorrelated({ initial: 100, max: 2_000 }), 6, half)).toEqual([200, 350, 575, 912.5, 1_050, 1_050]);
  });
});

describe('constant', () => {
  it('is the same each time', () => {
    expect(delays(constant('1s'), 3, half)).toEqual([1_000, 1_000, 1_000]);
  });
});

describe('every backoff with jitter', () => {
  it.each([
    ['full', exponential({ initial: 50, max: 400 })],
    ['equal', exponential({ initial: 50, max: 400, jitter: 'equal' })],
    ['decorrelated', decorrelated({ initial: 50, max: 400 })],
  ])('still spreads at the cap (%s): at least 95 of 100 delays differ', (_, backoff) => {
    const random = seededRandom(3);
    const atCap = Array.from({ length: 200 }, () => delays(backoff, 8, random).at(-1));
    expect(new Set(atCap).size).toBeGreaterThanOrEqual(190);
  });

  it('keeps within its cap and never goes below zero', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 10_000 }), fc.integer({ min: 0, max: 10_000 }), fc.nat(), (a, b, seed) => {
        const [initial, max] = [Math.min(a, b), Math.max(a, b)];
        for (const backoff of [
          exponential({ initial, max }),
          exponential({ initial, max, jitter: 'equal' }),
          decorrelated({ initial, max }),
        ]) {
          for (const delay of delays(backoff, 12, seededRandom(seed))) {
            expect(delay).toBeGreaterThanOrEqual(0);
            expect(delay).toBeLessThanOrEqual(max);
          }
        }
      }),
      { seed: 4 },
    );
  });
});
