import { describe, expect, it } from 'vitest';
import { type Early, Held } from '../../../src/coordination/cache/held.ts';

interface Case {
  readonly early?: Early;
  readonly loadMs?: number;
  readonly boundMs?: number;
  readonly draw?: number;
}

/** A value that was filled and placed at 1,000, and is fresh until 11,000. */
function held({ early = 'off', loadMs = 100, boundMs = Number.POSITIVE_INFINITY, draw = 0 }: Case = {}) {
  const filled = { freshMs: 10_000, staleMs: 20_000, errorMs: 30_000, loadMs, tags: new Map() };
  const placing = { value: 1, version: 1, filled, filledAtMs: 1_000 };
  return new Held('42', placing, 1_000, boundMs, early, () => draw);
}

describe('held value', () => {
  it('is refreshed 1.5 to 2.25 load times before its expiry, within the last 0.3 of its time to live', () => {
    expect(held({ early: 'adaptive', loadMs: 100, draw: 0 }).earlyMs).toBe(11_000 - 150);
    expect(held({ early: 'adaptive', loadMs: 100, draw: 1 }).earlyMs).toBe(11_000 - 225);
    expect(held({ early: 'adaptive', loadMs: 5_000 }).earlyMs).toBe(11_000 - 3_000);
    expect(held({ early: 'off', loadMs: 5_000 }).earlyMs).toBe(11_000);
  });

  it('is refreshed at random with xfetch, in the last 16 load times and the last 0.3 of its time to live', () => {
    expect(held({ early: 'xfetch', loadMs: 100 }).earlyMs).toBe(11_000 - 1_600);
    expect(held({ early: 'xfetch', loadMs: 500 }).earlyMs).toBe(11_000 - 3_000);
  });

  it('is likelier to be refreshed the nearer its expiry is and the longer a load takes', () => {
    // The odds of a refresh with this much time left are e to the power of -left / load.
    const one = held({ early: 'xfetch', loadMs: 100 });
    const odds = Math.exp(-3);
    expect(one.drawsRefresh(11_000 - 300, () => 1 - odds * 0.99)).toBe(true);
    expect(one.drawsRefresh(11_000 - 300, () => 1 - odds * 1.01)).toBe(false);
    expect(one.drawsRefresh(11_000, () => 0)).toBe(true);
    expect(held({ loadMs: 200 }).drawsRefresh(11_000 - 600, () => 1 - odds * 0.99)).toBe(true);
  });

  it('is trusted without the store until its bound, and not once something has changed', () => {
    const one = held({ boundMs: 6_000 });
    expect([one.isTrusted(5_999), one.isTrusted(6_000)]).toEqual([true, false]);
    one.suspect();
    expect(one.isTrusted(1_000)).toBe(false);
  });

  it('has passed its check in no turn, neither at first nor once something has changed', () => {
    const one = held();
    expect(one.fineInTurn).toBeLessThan(0);
    one.fineInTurn = 1;
    one.suspect();
    expect(one.fineInTurn).toBeLessThan(0);
  });

  it('is compared with the store when four fifths of the time to its bound have passed', () => {
    const one = held({ boundMs: 6_000 });
    expect([one.verifyMs, one.checkMs]).toEqual([5_000, 5_000]);
    one.boundMs = 3_000;
    one.plan();
    expect(one.checkMs).toBe(2_600);
  });

  it('leaves hits without further work while others refresh it, as long as it is fresh and trusted', () => {
    const one = held({ early: 'adaptive', loadMs: 1_000, boundMs: 10_800 });
    expect(one.checkMs).toBe(1_000 + 0.8 * 9_800);
    one.quiet(9_500);
    expect([one.quietUntilMs, one.checkMs]).toEqual([9_500, 9_500]);
    one.quiet(20_000);
    expect(one.checkMs).toBe(10_800);
    one.quiet(9_600);
    expect(one.checkMs).toBe(10_800);
    const unbound = held({ early: 'adaptive' });
    unbound.quiet(20_000);
    expect(unbound.checkMs).toBe(11_000);
  });

  it('makes the next hit ask the store once something has changed, however long refreshes are held off', () => {
    const one = held();
    one.suspect();
    one.quiet(9_000);
    expect(one.checkMs).toBe(Number.NEGATIVE_INFINITY);
  });

  it('distinguishes its own fill from a later load, although ages are whole milliseconds', () => {
    const one = held();
    expect([one.isSameFill(11_000), one.isSameFill(11_002), one.isSameFill(10_998)]).toEqual([true, true, true]);
    expect([one.isSameFill(11_000 + 10_000 / 3), one.isSameFill(15_000)]).toEqual([false, false]);
  });
});
