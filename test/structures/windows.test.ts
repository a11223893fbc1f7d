import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CallWindow } from '../../src/structures/call-window.js';
import { TimeWindow } from '../../src/structures/time-window.js';

const record = fc.record({ failed: fc.boolean(), slow: fc.boolean(), steps: fc.integer({ min: 0, max: 13 }) });
/** This is long enough to fill a window several times. */
const manyRecords = fc.array(record, { minLength: 20, maxLength: 80 });

const countsOf = (records: readonly { readonly failed: boolean; readonly slow: boolean }[]) => ({
  calls: records.length,
  failures: records.filter(({ failed }) => failed).length,
  slow: records.filter(({ slow }) => slow).length,
});

describe('CallWindow', () => {
  it('counts the last so many calls', () => {
    fc.assert(
      fc.property(manyRecords, fc.integer({ min: 1, max: 40 }), (records, capacity) => {
        const window = new CallWindow(capacity);
        for (const { failed, slow } of records) window.record(failed, slow);
        expect(window).toMatchObject(countsOf(records.slice(-capacity)));
        expect(window.isFilling).toBe(records.length < capacity);
      }),
      { seed: 31 },
    );
  });
});

describe('TimeWindow', () => {
  it('counts the calls of the last ten epochs, also of a clock that is below zero', () => {
    fc.assert(
      fc.property(manyRecords, fc.integer({ min: -1_000, max: 1_000 }), (records, firstEpoch) => {
        const window = new TimeWindow(firstEpoch);
        let epoch = firstEpoch;
        const dated: { failed: boolean; slow: boolean; epoch: number }[] = [];
        for (const each of records) {
          epoch += each.steps > 12 ? each.steps : Math.floor(each.steps / 4);
          window.record(each.failed, each.slow, epoch);
          dated.push({ ...each, epoch });
          expect(window).toMatchObject(countsOf(dated.filter((other) => epoch - other.epoch < 10)));
          expect(window.isFilling).toBe(epoch - firstEpoch < 10);
        }
      }),
      { seed: 31 },
    );
  });

  it('is empty after a long pause, and counts in the bucket at hand when time goes back', () => {
    const window = new TimeWindow(5);
    window.record(true, true, 5);
    window.moveTo(15);
    expect(window).toMatchObject({ calls: 0, failures: 0, slow: 0 });
    window.record(true, false, 3);
    expect(window).toMatchObject({ calls: 1, failures: 1 });
    // That call was counted in the bucket of 15, which still belongs to the last ten.
    window.moveTo(24);
    expect(window).toMatchObject({ calls: 1, failures: 1 });
    window.moveTo(25);
    expect(window.calls).toBe(0);
  });

  it('has memory for ten buckets only while it counts calls of more than one', () => {
    const window = new TimeWindow(5);
    const buckets = () => (window as unknown as { readonly buckets: unknown[] | undefined }).buckets?.length;
    window.moveTo(6);
    window.record(true, true, 6);
    window.moveTo(6);
    expect(buckets()).toBeUndefined();
    window.record(false, false, 7);
    expect(buckets()).toBe(30);
    window.moveTo(17);
    expect([window.calls, buckets()]).toEqual([0, undefined]);
  });

  it('takes no longer after a pause of an age', () => {
    const window = new TimeWindow(5);
    window.record(true, false, 5);
    window.moveTo(6 + 1e12);
    expect(window.calls).toBe(0);
    window.record(true, false, 6 + 1e12);
    expect(window.calls).toBe(1);
  });
});
