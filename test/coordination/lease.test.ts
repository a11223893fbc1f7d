import { describe, expect, it } from 'vitest';
import { defaultMarginMs, instantOf, LeaseKeeper } from '../../src/coordination/lease.js';
import { virtualClock } from '../../src/testing/index.js';

function keeper(renew: (leaseMs: number, signal: AbortSignal) => Promise<boolean>) {
  const clock = virtualClock();
  const lost: [reason: string, atMs: number][] = [];
  const terms = { clock, random: () => 0.5, leaseMs: 3_000, marginMs: defaultMarginMs(3_000), renew };
  const lease = new LeaseKeeper({ ...terms, onLost: (reason) => lost.push([reason, clock.now()]) }, instantOf(clock));
  return { clock, lease, lost };
}

describe('LeaseKeeper', () => {
  it('renews at each third of the lease, for as long as it is wanted', async () => {
    const atMs: number[] = [];
    const { clock, lease, lost } = keeper(async () => atMs.push(clock.now()) > 0);
    await clock.advance(4_500);
    expect(atMs).toEqual([1_000, 2_000, 3_000, 4_000]);
    await lease.stop();
    await clock.advance(10_000);
    expect([atMs.length, lost, clock.pendingTimers]).toEqual([4, [], 0]);
  });

  it('is lost before the store can give it away, when no renewal is answered', async () => {
    const signals: AbortSignal[] = [];
    const { clock, lease, lost } = keeper((_, signal) => {
      signals.push(signal);
      return new Promise(() => {});
    });
    await clock.advance(2_667);
    expect([lease.isHeld(), lease.state, lost]).toEqual([true, 'suspect', []]);
    await clock.advance(1);
    // 3000 less 1 %, less 2, less the margin.
    expect(lost).toEqual([['expired', 2_668]]);
    expect([lease.isHeld(), lease.remainingMs()]).toEqual([false, 0]);
    await clock.advance(10_000);
    expect(signals.map((signal) => signal.aborted)).toEqual([true, true]);
    expect([lost.length, clock.pendingTimers]).toEqual([1, 0]);
  });

  it('is lost at once when the store says that it is taken', async () => {
    const { clock, lease, lost } = keeper(async () => false);
    await clock.advance(1_000);
    expect([lost, lease.state]).toEqual([[['taken', 1_000]], 'lost']);
  });

  it('tries again soon after a failure, and counts from when the last renewal was sent', async () => {
    let tries = 0;
    const { clock, lease } = keeper(async () => {
      if (++tries === 1) throw new Error('no answer');
      return true;
    });
    await clock.advance(1_149);
    expect([tries, lease.state]).toEqual([1, 'suspect']);
    await clock.advance(1);
    expect([tries, lease.state, lease.remainingMs()]).toEqual([2, 'held', 2_668]);
  });

  it('finds out by itself that the process was frozen', async () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    const wallNow = clock.wallNow.bind(clock);
    clock.wallNow = () => wallNow() + 3_000;
    expect([lease.isHeld(), lost]).toEqual([false, [['expired', 0]]]);
  });

  it('stops only when no renewal is on its way', async () => {
    let answer = (_: boolean) => {};
    const { clock, lease } = keeper(() => new Promise((resolve) => (answer = resolve)));
    await clock.advance(1_000);
    let hasStopped = false;
    const stopped = lease.stop().then(() => (hasStopped = true));
    await clock.advance(10);
    expect(hasStopped).toBe(false);
    answer(true);
    await stopped;
    expect([lease.state, clock.pendingTimers]).toEqual(['ended', 0]);
  });

  it('counts a longer lease only once the store has given it', async () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    void lease.extend(60_000);
    await clock.advance(2_668);
    expect(lost).toEqual([['expired', 2_668]]);
  });

  it('counts a shorter lease from when it was asked for, whether or not there is an answer', async () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    void lease.extend(1_000);
    await clock.advance(1_000);
    // 1000 less 1 %, less 2, less the margin of 300.
    expect(lost).toEqual([['expired', 688]]);
  });

  it('renews as often as it is told', async () => {
    const clock = virtualClock();
    const atMs: number[] = [];
    const renew = async () => atMs.push(clock.now()) > 0;
    const terms = { clock, random: () => 0.5, leaseMs: 3_000, marginMs: 300, renewEveryMs: 400, renew, onLost() {} };
    const lease = new LeaseKeeper(terms, instantOf(clock));
    await clock.advance(1_300);
    await lease.stop();
    expect(atMs).toEqual([400, 800, 1_200]);
  });

  it('ends on time when instants have fractions', async () => {
    for (let index = 1; index <= 200; index++) {
      const clock = virtualClock({ now: index / 7 });
      let isLost = false;
      const terms = {
        clock,
        random: () => 0.5,
        leaseMs: 1_000 + index / 3,
        marginMs: 100,
        renew: () => new Promise<never>(() => {}),
      };
      new LeaseKeeper({ ...terms, onLost: () => (isLost = true) }, instantOf(clock));
      await clock.advance(1_100);
      expect(isLost).toBe(true);
    }
  });
});
