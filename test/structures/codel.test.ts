import { describe, expect, it } from 'vitest';
import { CoDel } from '../../src/structures/codel.js';

describe('CoDel', () => {
  it('turns nobody away in the first interval, however long they waited', () => {
    const codel = new CoDel();
    expect(codel.isOverloaded).toBe(false);
    expect([0, 30, 60, 100].map((nowMs) => codel.isTooLate(500, nowMs))).toEqual([false, false, false, false]);
  });

  it('turns away who waited longer than twice the target, when nobody left in time for an interval', () => {
    const codel = new CoDel();
    for (const nowMs of [0, 50, 100]) codel.isTooLate(6, nowMs);
    expect(codel.isOverloaded).toBe(false);
    // The first waiter of an interval is always served.
    expect(codel.isTooLate(400, 101)).toBe(false);
    expect(codel.isOverloaded).toBe(true);
    expect([10, 10.1, 400].map((waitedMs) => codel.isTooLate(waitedMs, 110))).toEqual([false, true, true]);
  });

  it('takes one short wait in an interval as proof that the queue only smooths a burst', () => {
    const codel = new CoDel();
    codel.isTooLate(300, 0);
    codel.isTooLate(5, 50);
    codel.isTooLate(300, 80);
    codel.isTooLate(300, 101);
    expect(codel.isOverloaded).toBe(false);
    expect(codel.isTooLate(300, 110)).toBe(false);
  });

  it('ends the overload when an interval has passed in which somebody left in time, or at once when nobody had to wait', () => {
    const codel = new CoDel();
    codel.isTooLate(50, 0);
    codel.isTooLate(50, 101);
    codel.isTooLate(4, 150);
    expect(codel.isOverloaded).toBe(true);
    codel.isTooLate(50, 202);
    expect(codel.isOverloaded).toBe(false);
    codel.isTooLate(50, 303);
    expect(codel.isOverloaded).toBe(true);
    codel.noteNoWait();
    expect(codel.isOverloaded).toBe(false);
  });

  it('scales the target with the service: 5 % of its median, at least 5 ms', () => {
    const codel = new CoDel();
    for (let operation = 0; operation < 200; operation++) codel.noteService(1_000);
    codel.isTooLate(60, 0);
    codel.isTooLate(60, 101);
    expect([90, 110].map((waitedMs) => codel.isTooLate(waitedMs, 110))).toEqual([false, true]);
  });

  it('estimates the median of the service time closely, also when a few operations take for ever', () => {
    const codel = new CoDel();
    for (let operation = 0; operation < 600; operation++) {
      codel.noteService(operation % 10 === 9 ? 60_000 : 80 + ((operation * 7) % 41));
    }
    expect(codel.medianServiceMs).toBeGreaterThan(90);
    expect(codel.medianServiceMs).toBeLessThan(115);
  });
});
