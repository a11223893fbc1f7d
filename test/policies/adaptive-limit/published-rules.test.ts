import { describe, expect, it } from 'vitest';
import { Aimd } from '../../../src/policies/adaptive-limit/aimd.js';
import type { LimitAlgorithm, RoundTrip } from '../../../src/policies/adaptive-limit/algorithm.js';
import { Gradient2 } from '../../../src/policies/adaptive-limit/gradient2.js';
import { Vegas } from '../../../src/policies/adaptive-limit/vegas.js';

/** Makes a round trip while as many calls run as the limit allows. */
function trip(rule: LimitAlgorithm, roundTripMs: number | 'lost', running = Math.floor(rule.limit)): RoundTrip {
  const wasLost = roundTripMs === 'lost';
  return { roundTripMs: wasLost ? 10 : roundTripMs, order: 0, runningAtStart: running, running, wasLost, endedMs: 0 };
}

function limitsAfter(rule: LimitAlgorithm, trips: readonly (number | 'lost')[]): number[] {
  return trips.map((one) => {
    rule.ended(trip(rule, one));
    return rule.limit;
  });
}

const neverProbes = () => 1;

describe('every published rule', () => {
  const range = { initial: 20, min: 10, max: 30 };

  it.each<[string, LimitAlgorithm]>([
    ['aimd', new Aimd(range)],
    ['vegas', new Vegas(range, neverProbes)],
    ['gradient2', new Gradient2(range)],
  ])('allows a wait of a fifth of a second, and learns nothing from starts and ignored ends: %s', (_, rule) => {
    expect(rule).toMatchObject({ limit: 20, waitMs: 200, usefulMs: 0 });
    const order = rule.started(5);
    rule.ignored(order);
    expect([order, rule.limit]).toEqual([0, 20]);
  });
});

describe('aimd', () => {
  it('falls by a tenth for each lost call', () => {
    const rule = new Aimd({ initial: 100, min: 20, max: 200 });
    expect([rule.limit, ...limitsAfter(rule, ['lost', 'lost', 'lost', 'lost'])]).toEqual([100, 90, 81, 72, 64]);
    expect(limitsAfter(rule, ['lost'])).toEqual([57]);
  });

  it('rises by one for each success while at least half of the limit runs, within its range', () => {
    const rule = new Aimd({ initial: 20, min: 20, max: 21 });
    rule.ended(trip(rule, 10, 9));
    expect(rule.limit).toBe(20);
    rule.ended(trip(rule, 10, 10));
    expect(rule.limit).toBe(21);
    expect(limitsAfter(rule, [10, 'lost', 'lost'])).toEqual([21, 20, 20]);
  });

  it('counts a call of more than 5 s as lost', () => {
    expect(limitsAfter(new Aimd({ initial: 100, min: 1, max: 200 }), [5_000, 5_001])).toEqual([101, 90]);
  });
});

describe('vegas', () => {
  it('keeps the queue between three and six by how much longer than the shortest a round trip takes', () => {
    const rule = new Vegas({ initial: 20, min: 1, max: 1_000 }, neverProbes);
    const trips = [10, 10, 10, 10.5, 11, 12, 15, 20, 20, 'lost'] as const;
    expect(limitsAfter(rule, trips)).toEqual([20, 26, 32, 33, 33, 33, 32, 31, 30, 29]);
  });

  it('holds while less than half of the limit runs', () => {
    const rule = new Vegas({ initial: 20, min: 1, max: 1_000 }, neverProbes);
    limitsAfter(rule, [10]);
    rule.ended(trip(rule, 10, 9));
    expect(rule.limit).toBe(20);
  });

  it.each([
    [1_000, 3],
    [999, 2],
    [9, 1],
  ])('uses a step that grows with the digits of the limit: from %i by %i for a lost call', (initial, step) => {
    const rule = new Vegas({ initial, min: 1, max: 10_000 }, neverProbes);
    limitsAfter(rule, [10]);
    expect(limitsAfter(rule, ['lost'])).toEqual([initial - step]);
  });

  it.each([
    [3, 18],
    [4, 3],
    [8, 3],
    [9, 0],
    [18, 0],
    [19, -3],
  ])('where it steps by three, a queue of %i moves the limit by %i', (queued, moved) => {
    const rule = new Vegas({ initial: 1_000, min: 1, max: 10_000 }, neverProbes);
    limitsAfter(rule, [10]);
    expect(limitsAfter(rule, [10 / (1 - (queued - 0.5) / 1_000)])).toEqual([1_000 + moved]);
  });

  it('uses the shortest round trip that it has seen, and moves from half of the limit on', () => {
    const rule = new Vegas({ initial: 20, min: 1, max: 1_000 }, neverProbes);
    expect(limitsAfter(rule, [20, 10])).toEqual([20, 20]);
    rule.ended(trip(rule, 20, 10));
    expect(rule.limit).toBe(19);
  });

  it('measures the shortest round trip anew from time to time', () => {
    // A draw of 0 makes it probe after every 15 x limit samples.
    const rule = new Vegas({ initial: 20, min: 1, max: 20 }, () => 0);
    const early = limitsAfter(rule, [10, ...Array.from({ length: 100 }, () => 20)]);
    expect(early.at(-1)).toBeLessThan(15);
    // After some time, 20 ms are considered normal, and the limit rises again.
    const late = limitsAfter(
      rule,
      Array.from({ length: 100 }, () => 20),
    );
    expect(late.at(-1)).toBe(20);
  });

  it.each([
    [0, 15],
    [0.5, 22.5],
  ])('with a draw of %f it does so after %f times the limit', (draw, times) => {
    const rule = new Vegas({ initial: 20, min: 20, max: 21 }, () => draw);
    const limits = limitsAfter(rule, [10, ...Array.from({ length: 600 }, () => 20)]);
    // The sample after these is the new shortest, and the next one finds no queue any more.
    expect(limits.indexOf(21)).toBe(20 * times + 1);
  });
});

describe('gradient2', () => {
  it('rises by its queue and falls by the ratio of long to short', () => {
    const rule = new Gradient2({ initial: 20, min: 20, max: 200 });
    const limits: number[] = [];
    for (const ms of [...Array.from({ length: 10 }, () => 10), ...Array.from({ length: 6 }, () => 100)]) {
      rule.windowEnded(ms, 1_000);
      limits.push(rule.limit);
    }
    const expected = [20.8, 21.6, 22.4, 23.2, 24, 24.8, 25.6, 26.4, 27.2, 28, 26, 24.2, 22.58, 21.122, 20, 20];
    for (const [index, limit] of limits.entries()) expect(limit).toBeCloseTo(expected[index]!, 9);
  });

  it('judges by windows of a quarter of a second with at least ten round trips', () => {
    const rule = new Gradient2({ initial: 20, min: 1, max: 200 });
    for (let index = 0; index < 9; index++) rule.ended({ ...trip(rule, 10), endedMs: 10 + index * 40 });
    expect(rule.limit).toBe(20);
    rule.ended({ ...trip(rule, 10), endedMs: 400 });
    expect(rule.limit).toBeCloseTo(20.8, 9);
  });

  it('uses the mean of a window and the most that ran in it, and starts the next when it has ended', () => {
    const rule = new Gradient2({ initial: 20, min: 1, max: 200 });
    const moves: (readonly [number, number])[] = [];
    rule.windowEnded = (shortMs, mostRunning) => moves.push([shortMs, mostRunning]);
    const ended = (endedMs: number, roundTripMs: number, running: number) =>
      rule.ended({ ...trip(rule, roundTripMs, running), endedMs });
    // A window lasts a quarter of a second from its first sample, and the next one begins at its end.
    for (let index = 0; index < 20; index++) ended(1_000 + index, 10 + index, index === 3 ? 17 : 5);
    expect(moves).toEqual([]);
    ended(1_249, 40.5, 5);
    expect(moves).toEqual([]);
    ended(1_250, 40.5, 5);
    expect(moves).toEqual([[471 / 22, 17]]);
    for (let index = 0; index < 9; index++) ended(1_260, 10, 6);
    ended(1_499, 10, 6);
    expect(moves.length).toBe(1);
    ended(1_500, 10, 6);
    expect(moves).toEqual([
      [471 / 22, 17],
      [10, 6],
    ]);
    // With fewer than ten samples it waits for more.
    for (let index = 0; index < 9; index++) ended(9_000, 30, 7);
    expect(moves.length).toBe(2);
    ended(9_000, 30, 7);
    expect(moves[2]).toEqual([30, 7]);
  });

  it('forgets the long average faster after an overload, and otherwise remembers 600 windows', () => {
    const rule = new Gradient2({ initial: 100, min: 1, max: 1_000 });
    // At first it is the plain mean.
    for (let count = 0; count < 10; count++) rule.windowEnded(91 + 2 * count, 0);
    expect(rule.limit).toBe(100);
    // The long average is 100, and moves by 2 / 601 of the difference to the window.
    rule.windowEnded(200, 1_000);
    const longMs = 100 + 100 * (2 / 601);
    const first = 100 * 0.8 + (100 * ((1.5 * longMs) / 200) + 4) * 0.2;
    expect(rule.limit).toBeCloseTo(first, 9);
    // The long average is more than twice as long as the short one, so 0.95 of it is left.
    for (let count = 0; count < 3; count++) rule.windowEnded(20, 0);
    rule.windowEnded(160, 1_000);
    let expected = longMs;
    for (const ms of [20, 20, 20]) expected = (expected + (ms - expected) * (2 / 601)) * 0.95;
    expected += (160 - expected) * (2 / 601);
    expect(rule.limit).toBeCloseTo(first * 0.8 + (first * ((1.5 * expected) / 160) + 4) * 0.2, 9);
  });

  it('moves from half of the limit on, by a half down at most', () => {
    const rule = new Gradient2({ initial: 20, min: 1, max: 200 });
    for (let count = 0; count < 10; count++) rule.windowEnded(10, 0);
    rule.windowEnded(1_000, 10);
    expect(rule.limit).toBeCloseTo(20 * 0.8 + (20 * 0.5 + 4) * 0.2, 9);
  });

  it('holds while less than half of the limit runs', () => {
    const rule = new Gradient2({ initial: 20, min: 1, max: 200 });
    rule.windowEnded(10, 9);
    expect(rule.limit).toBe(20);
  });
});
