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

  it('is never below `initial`, whatever the previous delay was', () => {
    const backoff = decorrelated({ initial: 100, max: 2_000 });
    expect(backoff({ attempt: 2, previousDelayMs: 1, error: undefined, random: half })).toBe(100);
  });
});

describe('constant', () => {
  it('is the same each time', () => {
    expect(delays(constant('1s'), 3, half)).toEqual([1_000, 1_000, 1_000]);
  });

  it('can be zero', () => {
    expect(delays(constant(0), 2, half)).toEqual([0, 0]);
  });
});

describe('every backoff', () => {
  it.each<[() => Backoff, readonly number[], string]>([
    [() => exponential(), [100, 200, 400], 'waiting 0 to 5000 ms with full jitter'],
    [() => exponential({ jitter: 'equal' }), [100, 200, 400], 'waiting 50 to 5000 ms with equal jitter'],
    [() => exponential({ max: '300ms', jitter: 'none' }), [100, 200, 300], 'waiting 100 to 300 ms with no jitter'],
    [() => decorrelated({ max: '2s' }), [300, 900, 2_000], 'waiting 100 to 2000 ms with decorrelated jitter'],
    [() => constant('2s'), [2_000, 2_000, 2_000], 'waiting 2000 ms'],
  ])(
    'tells its longest delay after each attempt, which it comes near to, and what it does: %#',
    (make, longest, summary) => {
      const backoff = make();
      expect([1, 2, 3].map((attempt) => backoff.ceilingMs?.(attempt))).toEqual(longest);
      expect(backoff.summary).toBe(summary);
      let previousDelayMs: number | undefined;
      for (const [index, ceilingMs] of longest.entries()) {
        const random = () => 1 - Number.EPSILON;
        previousDelayMs = backoff({ attempt: index + 1, previousDelayMs, error: undefined, random });
        expect(previousDelayMs).toBeCloseTo(ceilingMs, 6);
      }
    },
  );

  it.each<[string, Backoff, number]>([
    ['an exponential one', exponential({ initial: 0, factor: 100 }), 0],
    ['an exponential one that has grown beyond all numbers', exponential({ factor: 100, jitter: 'none' }), 5_000],
  ])('returns a numeric delay, even after the last of a thousand attempts: %s', (_, backoff, delayMs) => {
    const state = { attempt: 1_000, previousDelayMs: undefined, error: undefined, random: () => 0.5 };
    expect(backoff(state)).toBe(delayMs);
    expect(backoff.ceilingMs?.(1_000)).toBe(delayMs);
  });

  it.each<[string, () => Backoff]>([
    ['initial', () => exponential({ initial: 5_001 })],
    ['initial', () => exponential({ initial: -1 })],
    ['max', () => exponential({ max: '5 sec' as never })],
    ['factor', () => exponential({ factor: 0.9 })],
    ['factor', () => exponential({ factor: 101 })],
    ['jitter', () => exponential({ jitter: 'half' as never })],
    ['initial', () => decorrelated({ initial: 200, max: 199 })],
    ['factor', () => decorrelated({ factor: 2 } as never)],
    ['delay', () => constant(-1)],
  ])('refuses a wrong %s at once: %#', (option, make) => {
    expect(make).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });

  it.each<[string, () => Backoff, number]>([
    ['no delay at all', () => exponential({ initial: 0, max: 0 }), 0],
    ['an initial that is the longest', () => exponential({ initial: 5_000, jitter: 'none' }), 5_000],
    ['a factor of 1', () => exponential({ factor: 1, jitter: 'none' }), 100],
    ['a factor of 100', () => exponential({ factor: 100, jitter: 'none' }), 5_000],
    ['a decorrelated one without a delay', () => decorrelated({ initial: 0, max: 0 }), 0],
  ])('accepts %s', (_, make, secondMs) => {
    expect(delays(make(), 2, half)[1]).toBe(secondMs);
  });

  it('stays without a delay, however many attempts have failed', () => {
    const state = { previousDelayMs: 0, error: undefined, random: half };
    expect(exponential({ initial: 0, factor: 100 })({ attempt: 1_000, ...state })).toBe(0);
    expect(exponential({ initial: 0 })({ attempt: 2_000, ...state })).toBe(0);
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
