import { describe, expect, it } from 'vitest';
import { defaultMarginMs, instantOf, LeaseKeeper } from '../../src/coordination/lease.js';
import { virtualClock } from '../../src/testing/index.js';

type Renew = (leaseMs: number, signal: AbortSignal) => Promise<boolean>;

function keeper(renew: Renew, random = () => 0.5, renewEveryMs?: number) {
  const clock = virtualClock();
  const lost: [reason: string, atMs: number][] = [];
  const terms = { clock, random, leaseMs: 3_000, marginMs: defaultMarginMs(3_000), renewEveryMs, renew };
  const lease = new LeaseKeeper({ ...terms, onLost: (reason) => lost.push([reason, clock.now()]) }, instantOf(clock));
  return { clock, lease, lost };
}

describe('LeaseKeeper', () => {
  it('renews after each third of the lease, until it is stopped', async () => {
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

  it('tries again soon after a failure, and counts from the last successful renewal', async () => {
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

  it('notices by itself that the process was frozen', async () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    const wallNow = clock.wallNow.bind(clock);
    clock.wallNow = () => wallNow() + 3_000;
    expect([lease.isHeld(), lost]).toEqual([false, [['expired', 0]]]);
  });

  it('sends nothing more, and is lost, when its time is over at its next renewal', async () => {
    let renewals = 0;
    const { clock, lost } = keeper(() => {
      renewals++;
      return new Promise(() => {});
    });
    clock.jumpWallClock(3_000);
    await clock.advance(1_000);
    expect([renewals, lost, clock.pendingTimers]).toEqual([0, [['expired', 1_000]], 0]);
  });

  it('renews a shortened lease in time, however rarely it is to be renewed', async () => {
    const { clock, lease, lost } = keeper(async () => true, undefined, 1_200);
    await lease.extend(500);
    await clock.advance(10_000);
    expect([lease.state, lost]).toEqual(['held', []]);
    await lease.stop();
  });

  it('stops only when no renewal is in flight', async () => {
    let answer = (_: boolean) => {};
    const { clock, lease } = keeper(() => new Promise((resolve) => (answer = resolve)));
    await clock.advance(1_000);
    let hasStopped = false;
    const stopped = Promise.resolve(lease.stop()).then(() => (hasStopped = true));
    await clock.advance(10);
    expect(hasStopped).toBe(false);
    answer(true);
    await stopped;
    expect([lease.state, clock.pendingTimers]).toEqual(['ended', 0]);
  });

  it('owns one timer between renewals', async () => {
    const { clock, lease } = keeper(async () => true);
    expect(clock.pendingTimers).toBe(1);
    await clock.advance(10_500);
    expect([lease.state, clock.pendingTimers]).toEqual(['held', 1]);
  });

  it('counts a longer lease only once the store has given it', async () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    void lease.extend(60_000);
    await clock.advance(2_668);
    expect(lost).toEqual([['expired', 2_668]]);
  });

  it('counts a shorter lease from when it was requested, whether or not there is a reply', async () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    void lease.extend(1_000);
    await clock.advance(1_000);
    // 1000 less 1 %, less 2, less the margin of 300.
    expect(lost).toEqual([['expired', 688]]);
  });

  it('does not count a shorter lease that would end later than what is left, without a reply', async () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    await clock.advance(1_760);
    void lease.extend(1_500);
    await clock.advance(5_000);
    expect(lost).toEqual([['expired', 2_668]]);
  });

  it('is lost when somebody says so while it is held, once', () => {
    const { lease, lost } = keeper(async () => true);
    for (let times = 0; times < 2; times++) lease.revoke();
    expect([lost, lease.state]).toEqual([[['taken', 0]], 'lost']);
  });

  it('renews at the configured interval', async () => {
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

  it('extends at once by the requested time, and keeps to it', async () => {
    const asked: [atMs: number, leaseMs: number][] = [];
    const { clock, lease } = keeper(async (leaseMs) => asked.push([clock.now(), leaseMs]) > 0);
    await clock.advance(500);
    expect(await lease.extend(9_000)).toBe(true);
    expect(lease.remainingMs()).toBe(9_000 * 0.99 - 2 - defaultMarginMs(3_000));
    expect(await lease.extend()).toBe(true);
    await clock.advance(3_000);
    expect(asked).toEqual([
      [500, 9_000],
      [500, 9_000],
      [3_500, 9_000],
    ]);
  });

  it('extends after the renewal in flight, not beside it', async () => {
    const answers: ((isDone: boolean) => void)[] = [];
    const { clock, lease } = keeper(() => new Promise((resolve) => answers.push(resolve)));
    await clock.advance(1_000);
    const extended = lease.extend(6_000);
    await clock.flush();
    expect(answers).toHaveLength(1);
    answers[0]!(true);
    await clock.flush();
    expect(answers).toHaveLength(2);
    answers[1]!(true);
    expect(await extended).toBe(true);
  });

  it('tells at an extension that it is taken, or that this is unknown, and sends nothing once it is over', async () => {
    let asked = 0;
    const taken = keeper(async () => ++asked > 1);
    expect([await taken.lease.extend(), taken.lost]).toEqual([false, [['taken', 0]]]);
    expect([await taken.lease.extend(), asked]).toEqual([false, 1]);
    const unsure = keeper(async () => {
      throw new Error('no answer');
    });
    expect([await unsure.lease.extend(), unsure.lease.state]).toEqual([undefined, 'suspect']);
    await unsure.lease.stop();
    expect(await unsure.lease.extend()).toBe(false);
  });

  it('has no time left once it is lost or stopped, and stays in that state', async () => {
    const taken = keeper(async () => false);
    await taken.clock.advance(1_000);
    await taken.lease.stop();
    expect([taken.lease.remainingMs(), taken.lease.state, taken.lost.length]).toEqual([0, 'lost', 1]);
    const given = keeper(async () => true);
    await given.lease.stop();
    expect([given.lease.remainingMs(), given.lease.state, given.lease.isHeld()]).toEqual([0, 'ended', false]);
  });

  it('shows in its state too that the process was frozen', () => {
    const { clock, lease, lost } = keeper(() => new Promise(() => {}));
    const now = clock.now.bind(clock);
    clock.now = () => now() + 3_000;
    expect([lease.state, lost.length]).toEqual(['lost', 1]);
  });

  it.each([
    [0, 75],
    [0.25, 112.5],
    [1, 225],
  ])('spreads the next try after a failure: a draw of %d waits %d ms', async (drawn, delayMs) => {
    const atMs: number[] = [];
    const { clock } = keeper(
      async () => {
        atMs.push(clock.now());
        throw new Error('no answer');
      },
      () => drawn,
    );
    await clock.advance(1_000 + delayMs);
    expect(atMs).toEqual([1_000, 1_000 + delayMs]);
  });
});
