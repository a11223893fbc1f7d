import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Rank, RankedCache } from '../../src/structures/ranked-cache.js';

interface Thing {
  readonly key: string;
  rank: Rank;
}

describe('RankedCache', () => {
  it('forgets the lowest rank first, and of equals the one used longest ago, as a sorted list would', () => {
    const step = fc.record({ key: fc.integer({ min: 0, max: 9 }).map(String), rank: fc.constantFrom<Rank[]>(0, 1, 2) });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), fc.integer({ min: 1, max: 5 }), (steps, limit) => {
        const dropped: string[] = [];
        const cache = new RankedCache<Thing>(
          limit,
          ({ rank }) => rank,
          ({ key }) => void dropped.push(key),
        );
        let model: Thing[] = [];
        const expected: string[] = [];
        for (const { key, rank } of steps) {
          const kept = cache.use(key, 0);
          expect(kept === undefined).toBe(!model.some((thing) => thing.key === key));
          if (kept !== undefined) {
            model = [...model.filter((thing) => thing !== kept), kept];
            continue;
          }
          const thing = { key, rank };
          if (model.length === limit) {
            const lowest = Math.min(...model.map((each) => each.rank));
            const victim = model.find((each) => each.rank === lowest);
            model = model.filter((each) => each !== victim);
            expected.push(victim?.key ?? '');
          }
          model.push(thing);
          cache.add(key, thing, 0);
        }
        expect(dropped).toEqual(expected);
        expect(cache.size).toBe(model.length);
      }),
    );
  });

  it('sweeps what nobody has used since, and keeps what would cost much, however often it sweeps', () => {
    const dropped: string[] = [];
    const cache = new RankedCache<Thing>(
      10,
      ({ rank }) => rank,
      ({ key }) => void dropped.push(key),
    );
    for (const [index, rank] of ([0, 1, 2, 0, 1, 2] as const).entries()) {
      cache.add(`${index}`, { key: `${index}`, rank }, index);
    }
    cache.use('1', 10);
    for (let sweep = 0; sweep < 3; sweep++) expect(cache.sweep(4)).toBe(false);
    expect(dropped).toEqual(['0', '3']);
    expect(['1', '2', '4', '5'].map((key) => cache.use(key, 11)?.key)).toEqual(['1', '2', '4', '5']);
    expect(cache.size).toBe(4);
    expect(cache.sweep(12)).toBe(false);
    expect([dropped, cache.size]).toEqual([['0', '3', '1', '4'], 2]);
  });

  it('takes a use for one at its time, and what has no time is found by no sweep', () => {
    const dropped: string[] = [];
    const cache = new RankedCache<string>(
      2,
      () => 0,
      (key) => void dropped.push(key),
    );
    cache.add('a', 'a', 0);
    cache.use('a', 10);
    expect([cache.sweep(10), dropped]).toEqual([false, []]);
    cache.use('a', undefined);
    expect([cache.sweep(11), dropped]).toEqual([false, ['a']]);
    // The time of an entry that was dropped does not apply to one that is added later.
    cache.add('a', 'a', undefined);
    cache.sweep(100);
    expect(cache.use('a', undefined)).toBe('a');
    cache.use('a', 100);
    cache.sweep(100);
    cache.sweep(101);
    expect([dropped, cache.size]).toEqual([['a', 'a'], 0]);
  });

  it('remembers no times where nobody sweeps', () => {
    const cache = new RankedCache<string>(
      2,
      () => 0,
      () => {},
    );
    cache.add('a', 'a', undefined);
    cache.use('a', undefined);
    expect((cache as unknown as { readonly usedMs: ReadonlyMap<string, number> }).usedMs.size).toBe(0);
  });

  it('tells what was used last, unless that is gone', () => {
    const cache = new RankedCache<string>(
      10,
      (key) => (key === 'dear' ? 2 : 0),
      () => {},
    );
    expect(cache.newest).toBeUndefined();
    cache.add('a', 'a', 0);
    cache.add('dear', 'dear', 1);
    expect(cache.newest).toBe('dear');
    cache.use('a', 2);
    expect(cache.newest).toBe('a');
    cache.sweep(3);
    expect(cache.newest).toBeUndefined();
  });

  it('goes over what would cost much once a sweep, and says that there is no more', () => {
    let looks = 0;
    const cache = new RankedCache<number>(
      5_000,
      () => {
        looks++;
        return 2;
      },
      () => {},
    );
    for (let key = 0; key < 1_500; key++) cache.add(`${key}`, key, 0);
    expect([cache.sweep(1), looks]).toEqual([true, 1_000]);
    expect([cache.sweep(1), looks]).toEqual([false, 2_500]);
    expect([cache.sweep(1), looks, cache.size]).toEqual([false, 3_500, 1_500]);
  });

  it('sweeps at most 1,000 entries at once and says that there may be more', () => {
    let drops = 0;
    const cache = new RankedCache<number>(
      5_000,
      (value) => (value % 2 === 0 ? 0 : 2),
      () => drops++,
    );
    for (let key = 0; key < 3_000; key++) cache.add(`${key}`, key, key);
    let sweeps = 1;
    while (cache.sweep(2_900)) sweeps++;
    expect(sweeps).toBe(3);
    expect([drops, cache.size]).toEqual([1_450, 1_550]);
  });
});
