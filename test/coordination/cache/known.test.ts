import { describe, expect, it } from 'vitest';
import { agedTo, freshnessOf, leftMs, usefulMs } from '../../../src/coordination/cache/known.js';

/** A value that was filled at 1,000, and written once when it was 50 old. */
const filled = {
  ...{ bytes: Uint8Array.of(1), isUndefined: false, freshMs: 100, staleMs: 300, errorMs: 200, ageMs: 50, loadMs: 10 },
  tags: new Map<string, number>(),
};
const known = { value: 'v', version: 3, filled, filledAtMs: 1_000 };

describe('a value of the store', () => {
  it('is useful for as long as the longest of its windows, counted from its fill', () => {
    for (const windows of [
      { freshMs: 3, staleMs: 1, errorMs: 2 },
      { freshMs: 1, staleMs: 3, errorMs: 2 },
      { freshMs: 1, staleMs: 2, errorMs: 3 },
    ]) {
      expect(usefulMs(windows)).toBe(3);
    }
    expect([leftMs(known, 1_000), leftMs(known, 1_299), leftMs(known, 1_400)]).toEqual([300, 1, -100]);
    expect(freshnessOf(known)).toEqual({ freshMs: 1_100, ttlMs: 100 });
  });

  it('goes into the next version of its record with its true age, and is left out once it is no longer useful', () => {
    expect(agedTo(undefined, 1_000)).toBeUndefined();
    expect(agedTo(known, 1_299)).toEqual({ ...filled, ageMs: 299 });
    expect(agedTo(known, 1_300)).toBeUndefined();
  });
});
