import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Gcra } from '../../src/structures/gcra.js';

describe('Gcra', () => {
  it('follows the golden vector: ten per second, five at once', () => {
    const gcra = new Gcra(100, 5);
    const ask = (nowMs: number) => {
      const waitMs = gcra.waitMs(1, nowMs);
      if (waitMs > 0) return `deny ${waitMs}`;
      gcra.take(1, nowMs);
      return `ok ${gcra.remaining(nowMs)}`;
    };
    expect([0, 0, 0, 0, 0, 0, 50, 100, 150, 1_000].map(ask)).toEqual([
      ...['ok 4', 'ok 3', 'ok 2', 'ok 1', 'ok 0', 'deny 100'],
      ...['deny 50', 'ok 0', 'deny 50', 'ok 4'],
    ]);
    expect(gcra.resetMs(1_000)).toBe(100);
  });

  it('tells exactly when there is room, for any rate, also where a period does not divide evenly', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000 }),
        fc.integer({ min: 1, max: 60_000 }),
        fc.integer({ min: 1, max: 50 }),
        fc.array(
          fc.record({ pauseMs: fc.integer({ min: 0, max: 500 }), share: fc.double({ min: 0, max: 1, noNaN: true }) }),
        ),
        (limit, periodMs, burst, steps) => {
          const gcra = new Gcra(periodMs / limit, burst);
          const granted: { atMs: number; cost: number }[] = [];
          let nowMs = 0;
          for (const { pauseMs, share } of steps) {
            nowMs += pauseMs;
            const cost = share * burst;
            const waitMs = gcra.waitMs(cost, nowMs);
            if (waitMs > 0) expect(gcra.waitMs(cost, nowMs + waitMs - Math.min(waitMs, 0.001) / 2)).toBeGreaterThan(0);
            nowMs += waitMs;
            expect(gcra.waitMs(cost, nowMs)).toBe(0);
            gcra.take(cost, nowMs);
            granted.push({ atMs: nowMs, cost });
            expect(gcra.remaining(nowMs)).toBeGreaterThanOrEqual(0);
          }
          // No stretch of time sees more than the burst and what the rate grants for its length.
          for (let first = 0; first < granted.length; first++) {
            let sum = 0;
            for (let last = first; last < granted.length; last++) {
              sum += granted[last]!.cost;
              const stretchMs = granted[last]!.atMs - granted[first]!.atMs;
              expect(sum).toBeLessThanOrEqual(burst + (stretchMs * limit) / periodMs + 1e-3);
            }
          }
        },
      ),
      { seed: 26, numRuns: 300 },
    );
  });
});
