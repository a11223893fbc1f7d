import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { retryBudget } from '../../../src/index.js';
import { fairBudget } from '../../../src/policies/retry/retry-budget.js';
import { virtualClock } from '../../../src/testing/index.js';

describe('retryBudget', () => {
  it('grants its initial balance, then a tenth of a retry for each success', () => {
    const budget = retryBudget({ minPerSecond: 0 });
    expect(Array.from({ length: 11 }, () => budget.tryWithdraw())).toEqual([...new Array(10).fill(true), false]);
    for (let success = 1; success <= 9; success++) budget.deposit();
    expect(budget.tryWithdraw()).toBe(false);
    budget.deposit();
    expect(budget.balance).toBe(1);
    expect(budget.tryWithdraw()).toBe(true);
    expect(budget.balance).toBe(0);
  });

  it('saves no more than its capacity, and starts with no more', () => {
    const budget = retryBudget({ capacity: 2, minPerSecond: 0 });
    expect(budget.balance).toBe(2);
    for (let success = 0; success < 1_000; success++) budget.deposit();
    expect(budget.balance).toBe(2);
  });

  it('grants one retry per second to an empty idle budget, which cannot be saved up', async () => {
    const clock = virtualClock();
    const budget = retryBudget({ initial: 0, clock });
    expect([budget.tryWithdraw(), budget.tryWithdraw()]).toEqual([true, false]);
    await clock.advance(999);
    expect(budget.tryWithdraw()).toBe(false);
    await clock.advance(1);
    expect([budget.tryWithdraw(), budget.tryWithdraw()]).toEqual([true, false]);
    await clock.advance('1m');
    expect([budget.tryWithdraw(), budget.tryWithdraw()]).toEqual([true, false]);
  });

  it('grants nothing if it is empty and has no floor', () => {
    expect(retryBudget({ initial: 0, minPerSecond: 0 }).tryWithdraw()).toBe(false);
  });

  it('goes into no debt for a retry from the floor', () => {
    const budget = retryBudget({ initial: 0, clock: virtualClock() });
    expect([budget.tryWithdraw(), budget.balance]).toEqual([true, 0]);
    for (let success = 0; success < 10; success++) budget.deposit();
    expect([budget.tryWithdraw(), budget.balance]).toEqual([true, 0]);
  });

  it('grants nothing from the floor within a second of a retry from the balance', async () => {
    const clock = virtualClock();
    const budget = retryBudget({ initial: 1, clock });
    expect([budget.tryWithdraw(), budget.tryWithdraw()]).toEqual([true, false]);
    await clock.advance('1s');
    expect(budget.tryWithdraw()).toBe(true);
  });

  it.each([
    ['ratio', { ratio: -0.1 }],
    ['ratio', { ratio: 10.1 }],
    ['capacity', { capacity: 0.9 }],
    ['capacity', { capacity: 1_000_001 }],
    ['initial', { initial: -1 }],
    ['initial', { initial: 1_000_001, capacity: 1_000_000 }],
    ['initial', { initial: 6, capacity: 5 }],
    ['minPerSecond', { minPerSecond: -1 }],
    ['minPerSecond', { minPerSecond: 1_001 }],
    ['clock', { clock: {} as never }],
  ])('refuses a wrong %s at once: %j', (option, options) => {
    expect(() => retryBudget(options)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });

  it.each([
    [{ ratio: 0, capacity: 1, initial: 0, minPerSecond: 0 }, 0],
    [{ ratio: 10, capacity: 1_000_000, initial: 1_000_000, minPerSecond: 1_000 }, 1_000_000],
    [{ capacity: 5, initial: 5 }, 5],
  ])('accepts %j', (options, balance) => {
    expect(retryBudget(options).balance).toBe(balance);
  });

  it('grants the given number per second, evenly', async () => {
    const clock = virtualClock();
    const budget = retryBudget({ initial: 0, minPerSecond: 4, clock });
    const granted: number[] = [];
    for (let atMs = 0; atMs < 1_000; atMs += 50) {
      if (budget.tryWithdraw()) granted.push(atMs);
      await clock.advance(50);
    }
    expect(granted).toEqual([0, 250, 500, 750]);
  });

  it('never grants more than initial, a share of the successes and the floor', async () => {
    const script = fc.array(fc.oneof(fc.constant('success'), fc.constant('retry'), fc.integer({ min: 1, max: 700 })), {
      maxLength: 300,
    });
    await fc.assert(
      fc.asyncProperty(
        script,
        fc.constantFrom(0, 0.05, 0.1, 0.3, 1),
        fc.constantFrom(0, 1, 5),
        async (steps, ratio, minPerSecond) => {
          const clock = virtualClock();
          const budget = retryBudget({ ratio, initial: 3, capacity: 5, minPerSecond, clock });
          let successes = 0;
          let granted = 0;
          for (const step of steps) {
            if (step === 'success') {
              budget.deposit();
              successes++;
            } else if (step === 'retry') granted += budget.tryWithdraw() ? 1 : 0;
            else await clock.advance(step as number);
            const floor = minPerSecond === 0 ? 0 : 1 + (clock.now() / 1_000) * minPerSecond;
            expect(granted).toBeLessThanOrEqual(3 + ratio * successes + floor + 1e-9);
          }
        },
      ),
      { seed: 6, numRuns: 60 },
    );
  });
});

describe('fairBudget', () => {
  /** How many of so many retries of a key it grants. */
  const granted = (budget: ReturnType<typeof fairBudget>, key: string | undefined, count: number) =>
    Array.from({ length: count }, () => budget.tryWithdraw(key)).filter(Boolean).length;
  const succeed = (budget: ReturnType<typeof fairBudget>, key: string, count: number) => {
    for (let success = 0; success < count; success++) budget.deposit(key);
  };

  it('grants a key what a full budget holds, then what its own successes pay in and one retry per second', async () => {
    const clock = virtualClock();
    const budget = fairBudget(10, clock);
    succeed(budget, 'other', 10_000);
    expect(budget.balance).toBe(100);
    expect(granted(budget, 'down', 200)).toBe(100);
    succeed(budget, 'other', 10_000);
    expect(granted(budget, 'down', 200)).toBe(0);
    await clock.advance('1s');
    expect(granted(budget, 'down', 200)).toBe(1);
    succeed(budget, 'down', 20);
    expect(granted(budget, 'down', 200)).toBe(2);
    expect(granted(budget, 'other', 50)).toBe(50);
  });

  it('grants all keys together no more than one budget does, and calls without a key the same', async () => {
    const clock = virtualClock();
    const budget = fairBudget(10, clock);
    expect(granted(budget, 'a', 7) + granted(budget, 'b', 7) + granted(budget, undefined, 7)).toBe(10);
    await clock.advance('1s');
    expect(granted(budget, 'a', 1) + granted(budget, 'b', 1) + granted(budget, undefined, 1)).toBe(1);
  });

  it('takes nothing from a key for what is refused because all keys together have used everything up', () => {
    const budget = fairBudget(10, virtualClock());
    expect(granted(budget, 'a', 500)).toBe(10);
    succeed(budget, 'b', 10_000);
    expect(granted(budget, 'a', 500)).toBe(90);
  });

  it('remembers that a key owes until its successes have paid, and of so many keys only', () => {
    const budget = fairBudget(2, virtualClock());
    const pay = () => succeed(budget, 'other', 1_000);
    pay();
    expect(granted(budget, 'a', 100)).toBe(100);
    pay();
    expect([granted(budget, 'a', 1), granted(budget, 'b', 1), granted(budget, 'a', 1)]).toEqual([0, 1, 0]);
    succeed(budget, 'b', 10);
    expect([granted(budget, 'c', 1), granted(budget, 'a', 1)]).toEqual([1, 0]);
    expect([granted(budget, 'd', 1), granted(budget, 'a', 1)]).toEqual([1, 1]);
  });
});
