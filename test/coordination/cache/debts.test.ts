import { describe, expect, it } from 'vitest';
import { Debts } from '../../../src/coordination/cache/debts.js';
import { virtualClock } from '../../../src/testing/index.js';

function setUp() {
  const clock = virtualClock();
  const debts = new Debts(clock);
  const paid: string[] = [];
  const state = { isDown: false, delayMs: 0 };
  const payment = (name: string) => async () => {
    if (state.delayMs > 0) await clock.sleep(state.delayMs);
    paid.push(name);
    if (state.isDown) throw new Error('down');
  };
  return { clock, debts, paid, state, payment };
}

describe('debts of a cache', () => {
  it('are all paid a second later, and retried each second until the store accepts them', async () => {
    const { clock, debts, paid, state, payment } = setUp();
    for (const name of ['a', 'b']) expect(debts.owe(name, payment(name))).toBe(true);
    expect([debts.isEmpty, clock.pendingTimers]).toEqual([false, 1]);
    state.isDown = true;
    await clock.advance(999);
    expect(paid).toEqual([]);
    await clock.advance(1);
    // If the first debt cannot be paid, the next is not tried.
    expect(paid).toEqual(['a']);
    state.isDown = false;
    await clock.advance(1_000);
    expect([paid, debts.isEmpty, clock.pendingTimers]).toEqual([['a', 'a', 'b'], true, 0]);
  });

  it('are not delayed by newer ones', async () => {
    const { clock, debts, paid, payment } = setUp();
    debts.owe('a', payment('a'));
    await clock.advance(600);
    debts.owe('b', payment('b'));
    await clock.advance(400);
    expect(paid).toEqual(['a', 'b']);
  });

  it('are paid before their keys are used, and no others are', async () => {
    const { debts, paid, state, payment } = setUp();
    for (const name of ['a', 'b', 'c']) debts.owe(name, payment(name));
    await debts.settle(['b', 'x']);
    expect(paid).toEqual(['b']);
    state.isDown = true;
    await expect(debts.settle(['c', 'a'])).rejects.toThrow('down');
    expect(paid).toEqual(['b', 'c']);
    state.isDown = false;
    await debts.settle(['c', 'a']);
    expect([paid, debts.isEmpty]).toEqual([['b', 'c', 'c', 'a'], true]);
  });

  it('are paid once for concurrent users', async () => {
    const { clock, debts, paid, state, payment } = setUp();
    state.delayMs = 10;
    debts.owe('a', payment('a'));
    const settled = Promise.all([debts.settle(['a']), debts.settle(['a'])]);
    await clock.advance(10);
    await settled;
    expect(paid).toEqual(['a']);
  });

  it('are not settled by the older one if a newer one was added while that was being paid', async () => {
    const { clock, debts, paid, state, payment } = setUp();
    state.delayMs = 10;
    debts.owe('a', payment('older'));
    const before = debts.settle(['a']);
    debts.owe('a', payment('newer'));
    const after = debts.settle(['a']).then(() => [...paid]);
    await clock.advance(10);
    expect([paid, debts.isEmpty]).toEqual([['older'], false]);
    await clock.advance(10);
    await before;
    expect([await after, debts.isEmpty]).toEqual([['older', 'newer'], true]);
  });

  it('are dropped when a later write makes them unnecessary', async () => {
    const { clock, debts, paid, payment } = setUp();
    const none = debts.of('a');
    debts.owe('a', payment('a'));
    const owed = debts.of('a');
    debts.cancel('a', none);
    expect(debts.isEmpty).toBe(false);
    debts.cancel('a', owed);
    await clock.advance(5_000);
    expect([paid, debts.isEmpty, clock.pendingTimers]).toEqual([[], true, 0]);
  });

  it('are limited to 10,000, one for each key', () => {
    const { debts, payment } = setUp();
    for (let count = 0; count < 10_000; count++) expect(debts.owe(`${count}`, payment('any'))).toBe(true);
    expect(debts.owe('one more', payment('any'))).toBe(false);
    expect(debts.owe('7', payment('newer'))).toBe(true);
    debts.cancel('8', debts.of('8'));
    expect(debts.owe('one more', payment('any'))).toBe(true);
  });

  it('are tried once more on close, and then dropped', async () => {
    const { clock, debts, paid, state, payment } = setUp();
    debts.owe('a', payment('a'));
    state.isDown = true;
    await debts.close();
    expect([paid, clock.pendingTimers, debts.owe('b', payment('b'))]).toEqual([['a'], 0, false]);
    await clock.advance(5_000);
    expect(paid).toEqual(['a']);
  });

  it('do not keep the process alive', () => {
    const clock = virtualClock();
    let scheduled = 0;
    const background = {
      now: () => clock.now(),
      wallNow: () => clock.wallNow(),
      schedule: () => void scheduled++,
      cancel: () => {},
    };
    new Debts({ ...background, schedule: () => expect.unreachable(), background }).owe('a', async () => {});
    expect(scheduled).toBe(1);
  });
});
