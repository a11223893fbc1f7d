import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Knee } from '../../../src/policies/adaptive-limit/knee.js';
import { type SeededRandom, seededRandom } from '../../../src/testing/index.js';

interface Ended {
  readonly running?: number;
  readonly runningAtStart?: number;
  readonly wasLost?: boolean;
}

function end(
  rule: Knee,
  order: number,
  roundTripMs: number,
  { running = 1, runningAtStart = running, wasLost = false }: Ended = {},
) {
  rule.ended({ roundTripMs, order, runningAtStart, running, wasLost, endedMs: 0 });
}

/** A service with this many workers, which is always as full as the limit allows. */
function saturate(rule: Knee, workers: number, operations: number, meanMs: number, random: SeededRandom): void {
  for (let count = 0; count < operations; count++) {
    const running = Math.max(1, Math.floor(rule.limit));
    const order = rule.started(running);
    end(rule, order, random.gamma(meanMs, 4) * Math.max(1, running / workers), { running });
  }
}

/** Few calls run, as on most days. */
function calm(rule: Knee, running: number, operations: number, meanMs: number, random: SeededRandom): void {
  for (let count = 0; count < operations; count++)
    end(rule, rule.started(running), random.gamma(meanMs, 4), { running });
}

const anywhere = { initial: 100, min: 1, max: 1_000 };

/** A service in bad and good times: how many operations it runs at once, how long one takes, and how many of a hundred are lost. */
const times = [
  { workers: 8, asked: 6, meanMs: 40, lost: 1 },
  { workers: 8, asked: 500, meanMs: 40, lost: 1 },
  { workers: 8, asked: 500, meanMs: 160, lost: 0 },
  { workers: 60, asked: 500, meanMs: 20, lost: 2 },
  { workers: 60, asked: 30, meanMs: 20, lost: 2 },
  { workers: 60, asked: 500, meanMs: 20, lost: 80 },
  { workers: 25, asked: 500, meanMs: 20, lost: 1 },
  { workers: 25, asked: 9, meanMs: 90, lost: 1 },
  { workers: 25, asked: 500, meanMs: 90, lost: 1 },
] as const;

/** What the rule says after every two hundred operations of those times. It uses no function whose last digit may differ between platforms. */
function trace(rule: Knee): number[][] {
  let seed = 12_345;
  const draw = () => {
    seed = (seed * 48_271) % 2_147_483_647;
    return seed / 2_147_483_647;
  };
  const running: { readonly order: number; readonly runningAtStart: number }[] = [];
  const said: number[][] = [];
  for (const { workers, asked, meanMs, lost } of times) {
    for (let count = 1; count <= 800; count++) {
      while (running.length < Math.min(asked, Math.max(1, Math.floor(rule.limit)))) {
        const runningAtStart = running.length + 1;
        running.push({ order: rule.started(runningAtStart), runningAtStart });
      }
      const [{ order, runningAtStart }] = running.splice(Math.floor(draw() * running.length), 1) as [
        (typeof running)[0],
      ];
      const roundTripMs = meanMs * (0.5 + draw()) * Math.max(1, runningAtStart / workers);
      if (draw() < 0.03) rule.ignored(order);
      else end(rule, order, roundTripMs, { running: running.length + 1, runningAtStart, wasLost: draw() * 100 < lost });
      if (count % 200 === 0) said.push([rule.limit, rule.waitMs, rule.usefulMs]);
    }
  }
  return said;
}

describe('knee', () => {
  it('admits the initial number until thirty operations have ended', () => {
    const rule = new Knee(anywhere);
    calm(rule, 12, 29, 100, seededRandom(1));
    expect(rule.limit).toBe(100);
    calm(rule, 12, 1, 100, seededRandom(2));
    expect(rule.limit).toBe(12);
  });

  it('measures the operations that started first, not those that ended first', () => {
    const rule = new Knee(anywhere);
    for (let order = 0; order < 60; order++) rule.started(order + 1);
    // The later half happens to be quick.
    for (let order = 30; order < 60; order++) end(rule, order, 1);
    expect(rule.waitMs).toBe(100);
    for (let order = 0; order < 30; order++) end(rule, order, 100);
    expect(rule.waitMs).toBeCloseTo(200, 9);
  });

  it('measures another operation in place of one that taught nothing, even if later ones have already ended', () => {
    const rule = new Knee(anywhere);
    for (let order = 0; order < 40; order++) rule.started(1);
    for (let order = 1; order < 40; order++) end(rule, order, 10);
    rule.ignored(0);
    expect(rule.limit).toBe(100);
    end(rule, rule.started(1), 10);
    expect(rule.limit).toBe(1);
  });

  describe('if most of the first operations were lost', () => {
    function asked(times: readonly number[]) {
      const rule = new Knee(anywhere);
      for (let order = 0; order < 40; order++) rule.started(order + 1);
      for (let order = 0; order < 4; order++) end(rule, order, 300);
      for (let order = 4; order < 9; order++) end(rule, order, 1_000, { wasLost: true });
      expect(rule.limit).toBe(1);
      for (const ms of times) end(rule, rule.started(1), Math.abs(ms), { running: 1, wasLost: ms < 0 });
      return rule;
    }
    const healthy: readonly number[] = Array(10).fill(100);

    it('asks by a single one at a time, until ten were answered', () => {
      expect(asked(healthy.slice(1)).waitMs).toBe(100);
      expect(asked(healthy).waitMs).toBe(200);
    });

    it('does not take for normal what a service takes that still works off its backlog', () => {
      const backlog = [-1_000, -1_000, 900, 850, 800, 750, 700, -1_000, 650, 600, 550, 500, 450];
      const rule = asked(backlog);
      expect(rule.limit).toBe(1);
      for (const ms of healthy) end(rule, rule.started(1), ms, { running: 1 });
      expect(rule.waitMs).toBe(200);
    });
  });

  it('waits for the first answer of a service that is away at first', () => {
    const rule = new Knee(anywhere);
    for (let count = 0; count < 29; count++) end(rule, rule.started(12), 1_000, { running: 12, wasLost: true });
    expect(rule.limit).toBe(100);
  });

  it.each([
    ['soon if the limit held calls back while the first operations ran', 100, 1_000, 1_200],
    ['later if it did not', 79, 4_500, 6_000],
  ])('dips for the first time %s', (_, runningFirst, fewest, most) => {
    const random = seededRandom(10);
    const rule = new Knee({ initial: 100, min: 1, max: 100 });
    calm(rule, runningFirst, 30, 100, random);
    let operations = 0;
    for (; operations < 10_000 && rule.limit > 0.9 * runningFirst; operations++) saturate(rule, 1_000, 1, 100, random);
    expect(operations).toBeGreaterThan(fewest);
    expect(operations).toBeLessThan(most);
  });

  it('takes operations among many for quicker than those among few only beyond what chance explains', () => {
    const rule = new Knee({ initial: 10, min: 1, max: 10 });
    calm(rule, 5, 300, 100, seededRandom(6));
    const plainMs = rule.waitMs / 2;
    const manyTake = (share: number) => {
      for (let count = 0; count < 60; count++) end(rule, rule.started(10), share * plainMs, { running: 10 });
      return rule.waitMs / 2 / plainMs;
    };
    expect(manyTake(0.96)).toBe(1);
    const quicker = manyTake(0.5);
    expect(quicker).toBeGreaterThan(0.7);
    expect(quicker).toBeLessThan(0.9);
  });

  it.each([
    [2, 1],
    [3, 2],
    [5, 3],
    [9, 5],
  ])('dips from %i to %i, the whole number that is nearest to 0.6 of it', (limit, dip) => {
    const rule = new Knee({ initial: limit, min: 1, max: limit });
    let lowest = limit;
    for (let count = 0; count < 200 * limit; count++) {
      end(rule, rule.started(limit), 100, { running: limit });
      lowest = Math.min(lowest, Math.floor(rule.limit));
    }
    expect(lowest).toBe(dip);
  });

  describe('while each operation beyond the fourth slows down all others', () => {
    const saturateSlowed = (rule: Knee, operations: number, random: SeededRandom) => {
      for (let count = 0; count < operations; count++) {
        const running = Math.max(1, Math.floor(rule.limit));
        const order = rule.started(running);
        end(rule, order, random.gamma(50, 4) * Math.max(1, (running / 4) * (1 + 0.05 * (running - 4))), { running });
      }
    };

    it('keeps the lower limit of a dip, and dips deeper, while clearly more operations end there', () => {
      const random = seededRandom(9);
      const rule = new Knee(anywhere);
      saturateSlowed(rule, 1_000, random);
      expect(rule.limit).toBeGreaterThan(50);
      saturateSlowed(rule, 3_000, random);
      expect(rule.limit).toBeLessThan(20);
    });

    it.each([
      [200, 0, 15],
      [1_000, 25, 60],
    ])('after a start of %i operations it is left with a limit from %i to %i', (operations, lowest, highest) => {
      const random = seededRandom(9);
      const rule = new Knee(anywhere);
      for (let count = 0; count < operations; count++) calm(rule, count % 2 === 0 ? 2 : 60, 1, 50, random);
      saturateSlowed(rule, 4_000, random);
      expect(rule.limit).toBeGreaterThan(lowest);
      expect(rule.limit).toBeLessThan(highest);
    });
  });

  it('ends a dip even if some or all of its operations teach nothing', () => {
    const random = seededRandom(6);
    for (const share of [0.3, 1]) {
      const rule = new Knee({ ...anywhere, max: 20 });
      calm(rule, 10, 500, 100, random);
      saturate(rule, 30, 400, 100, random);
      expect(rule.limit).toBeGreaterThan(18);
      let dips = 0;
      for (let count = 0; count < 5_000; count++) {
        const running = Math.floor(rule.limit);
        const isDip = running < 14;
        if (isDip) dips++;
        const order = rule.started(running);
        if (isDip && random() < share) rule.ignored(order);
        else end(rule, order, random.gamma(100, 4), { running });
      }
      expect(dips).toBeGreaterThan(0);
      expect(dips).toBeLessThan(200);
    }
  });

  it('concludes nothing from a dip of which nearly all operations teach nothing, however slow the rest', () => {
    const random = seededRandom(8);
    const rule = new Knee({ ...anywhere, max: 20 });
    calm(rule, 10, 500, 100, random);
    saturate(rule, 30, 400, 100, random);
    const before = rule.waitMs;
    let dips = 0;
    for (let count = 0; count < 5_000 && (dips === 0 || rule.limit < 14); count++) {
      const running = Math.floor(rule.limit);
      const order = rule.started(running);
      if (running >= 14) end(rule, order, random.gamma(100, 4), { running });
      else if (dips++ === 0) end(rule, order, 350, { running });
      else rule.ignored(order);
    }
    expect(dips).toBeGreaterThan(5);
    expect(rule.waitMs / before).toBeCloseTo(1, 1);
  });

  it.each([4, 20, 100])('settles a little above the knee of a service with %i workers', (workers) => {
    const random = seededRandom(workers);
    const rule = new Knee(anywhere);
    calm(rule, workers / 2, 500, 100, random);
    saturate(rule, workers, 40 * workers, 100, random);
    const limits: number[] = [];
    for (let count = 0; count < 100; count++) {
      saturate(rule, workers, 5, 100, random);
      limits.push(rule.limit);
    }
    const mean = limits.reduce((sum, limit) => sum + limit) / limits.length;
    expect(mean / workers).toBeGreaterThan(0.95);
    expect(mean / workers).toBeLessThan(1.5);
  });

  it('is not lowered by operations that it does not hold back', () => {
    const random = seededRandom(3);
    const rule = new Knee(anywhere);
    calm(rule, 40, 200, 100, random);
    const { limit } = rule;
    calm(rule, 10, 1_000, 900, random);
    expect(rule.limit).toBe(limit);
  });

  it('recovers when the service has become slower for good', () => {
    const random = seededRandom(4);
    const rule = new Knee(anywhere);
    calm(rule, 10, 500, 100, random);
    saturate(rule, 20, 1_000, 100, random);
    saturate(rule, 20, 3_000, 500, random);
    expect(rule.limit).toBeGreaterThan(15);
    expect(rule.limit).toBeLessThan(40);
  });

  it('falls to the minimum when nearly all calls are lost, and rises again when they are not', () => {
    const random = seededRandom(5);
    const rule = new Knee(anywhere);
    calm(rule, 10, 500, 100, random);
    for (let count = 0; count < 500; count++) {
      const running = Math.floor(rule.limit);
      end(rule, rule.started(running), 1_000, { running, wasLost: true });
    }
    expect(rule.limit).toBe(1);
    saturate(rule, 20, 1_500, 100, random);
    expect(rule.limit).toBeGreaterThan(15);
  });

  it('adapts when calls that took no time begin to take some', () => {
    const random = seededRandom(7);
    const rule = new Knee(anywhere);
    for (let count = 0; count < 1_000; count++) end(rule, rule.started(10), 0, { running: 10 });
    saturate(rule, 20, 8_000, 100, random);
    expect(rule.limit).toBeGreaterThan(15);
    expect(rule.limit).toBeLessThan(40);
  });

  it('behaves as when its numbers were measured, through good and bad times: measure anew after changing one', () => {
    const measured = [
      [7, 78.1177, 27.3412],
      [7, 78.1177, 27.3412],
      [7, 78.1177, 27.3412],
      [7, 78.1177, 27.3412],
      [11.0264, 78.1177, 27.3412],
      [12.0531, 78.1177, 27.3412],
      [12.2007, 82.2123, 28.7743],
      [10.8907, 82.2123, 28.7743],
      [4.7292, 237.3825, 83.0839],
      [6.1282, 237.3825, 83.0839],
      [10.9877, 338.3421, 118.4197],
      [11.3353, 338.3421, 118.4197],
      [66.3931, 258.675, 90.5362],
      [115.3784, 204.8068, 71.6824],
      [154.1596, 179.5226, 62.8329],
      [184.9664, 166.2405, 58.1842],
      [187.5032, 262.5391, 91.8887],
      [187.5032, 81.6893, 28.5913],
      [187.5032, 59.9521, 20.9832],
      [187.5032, 41.7837, 14.6243],
      [122.8314, 41.7837, 14.6243],
      [40.6073, 43.8607, 15.3513],
      [1, 43.1576, 15.1052],
      [1.1298, 51.005, 17.8517],
      [42.713, 44.8174, 15.6861],
      [35.9963, 44.8174, 15.6861],
      [33.9836, 44.8174, 15.6861],
      [34.1438, 44.8174, 15.6861],
      [31.2424, 156.4335, 54.7517],
      [31.2424, 168.1073, 58.8376],
      [31.2424, 172.0477, 60.2167],
      [31.2424, 175.0607, 61.2712],
      [18, 174.5064, 61.0773],
      [32.9901, 201.4484, 70.5069],
      [19, 201.1811, 70.4134],
      [33.1912, 200.4272, 70.1495],
    ];
    const said = trace(new Knee(anywhere));
    expect(said.length).toBe(measured.length);
    for (const [at, numbers] of said.entries()) {
      for (const [index, number] of numbers.entries()) expect(number).toBeCloseTo(measured[at]![index]!, 3);
    }
  });

  it('stays within its range whatever it is fed', () => {
    const anything = fc.record({
      roundTripMs: fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1e9, noNaN: true })),
      runningAtStart: fc.integer({ min: 1, max: 2_000 }),
      running: fc.integer({ min: 1, max: 2_000 }),
      wasLost: fc.boolean(),
      ends: fc.integer({ min: 0, max: 9 }),
    });
    fc.assert(
      fc.property(fc.array(anything, { minLength: 100, maxLength: 400 }), (trips) => {
        const rule = new Knee({ initial: 10, min: 2, max: 50 });
        for (const { ends, ...one } of trips) {
          const order = rule.started(one.runningAtStart);
          if (ends === 0) rule.ignored(order);
          else rule.ended({ ...one, order, endedMs: 0 });
          expect(rule.limit).toBeGreaterThanOrEqual(2);
          expect(rule.limit).toBeLessThanOrEqual(50);
          expect(rule.waitMs).toBeGreaterThanOrEqual(0);
        }
      }),
      { seed: 17 },
    );
  });
});
