import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ChurnMap } from '../../src/structures/churn-map.js';
import { bytesLeftBy } from '../support/young-garbage.js';

describe('ChurnMap', () => {
  it('has what a Map has, through additions and removals in any order', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat({ max: 8 }), fc.boolean())), (steps) => {
        const map = new ChurnMap<number, object>();
        const model = new Map<number, object>();
        for (const [key, isAdded] of steps) {
          if (!isAdded) {
            map.delete(key);
            model.delete(key);
          } else if (!model.has(key)) {
            const value = { key };
            map.add(key, value);
            model.set(key, value);
          }
          expect(map.get(key)).toBe(model.get(key));
          expect(map.size).toBe(model.size);
          expect(map.values()).toEqual([...model.values()]);
        }
      }),
    );
  });

  it('leaves nothing of what was taken out to full collections', async () => {
    const map = new ChurnMap<number, number[]>();
    const churn = (from: number, to: number) => {
      for (let key = from; key < to; key++) {
        map.add(key, new Array(1_000).fill(key));
        map.delete(key - 32);
      }
    };
    // This moves its table into the old generation.
    await bytesLeftBy(() => churn(0, 64));
    // The keys take eight megabytes in all, of which 32 keys are held at a time. A Map kept all of it.
    expect(await bytesLeftBy(() => churn(64, 1_064))).toBeLessThan(2e6);
  });
});
