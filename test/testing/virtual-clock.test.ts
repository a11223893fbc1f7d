import { virtualClock } from 'holdfast/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { callbackTimer } from '../../src/core/clock.ts';

describe('virtualClock', () => {
  afterEach(() => {
    vi.useRealTimers();
  });

  it('fires timers in order of their instants, and first scheduled first among equals', async () => {
    const clock = virtualClock();
    const fired: string[] = [];
    for (const [name, atMs] of [
      ['c', 20],
      ['a', 10],
      ['d', 20],
      ['b', 10],
      ['e', 20.5],
    ] as const) {
      clock.schedule(
        callbackTimer(() => fired.push(name)),
        atMs,
      );
    }
    await clock.advance(30);
    expect(fired.join('')).toBe('abcde');
  });

  it('shows each timer the instant it was scheduled for', async () => {
    const clock = virtualClock({ now: 1000 });
    const seen: number[] = [];
    for (const atMs of [1300, 1100.25, 900])
      clock.schedule(
        callbackTimer(() => seen.push(clock.now())),
        atMs,
      );
    await clock.advance('1s');
    expect(seen).toEqual([1000, 1100.25, 1300]);
    expect(clock.now()).toBe(2000);
  });

  it('drains every microtask between two timers', async () => {
    const clock = virtualClock();
    const order: string[] = [];
    const follow = async (name: string) => {
      for (let link = 0; link < 20; link++) await undefined;
      order.push(`after ${name}`);
    };
    for (const name of ['first', 'second', 'third']) {
      clock.schedule(
        callbackTimer(() => {
          order.push(name);
          void follow(name);
        }),
        10,
      );
    }
    await clock.advance(10);
    expect(order).toEqual(['first', 'after first', 'second', 'after second', 'third', 'after third']);
  });

  it('fires what is scheduled on the way, if it falls due within the stretch', async () => {
    const clock = virtualClock();
    const wokenAt: number[] = [];
    const loop = async () => {
      for (let round = 0; round < 5; round++) {
        await clock.sleep(10);
        wokenAt.push(clock.now());
      }
    };
    void loop();
    await clock.advance(35);
    expect(wokenAt).toEqual([10, 20, 30]);
    expect(clock.pendingTimers).toBe(1);
    expect(clock.nextTimerAt).toBe(40);
  });

  it('moves a timer that is scheduled again instead of firing it twice', async () => {
    const clock = virtualClock();
    const firedAt: number[] = [];
    const timer = callbackTimer(() => firedAt.push(clock.now()));
    clock.schedule(timer, 10);
    clock.schedule(timer, 25);
    expect(clock.pendingTimers).toBe(1);
    await clock.advance(100);
    expect(firedAt).toEqual([25]);
  });

  it('keeps the order of the others when timers are cancelled at random', async () => {
    const clock = virtualClock();
    const firedAt: number[] = [];
    const timers = Array.from({ length: 300 }, (_, index) => {
      const atMs = (index * 7919) % 1000;
      const timer = callbackTimer(() => firedAt.push(atMs));
      clock.schedule(timer, atMs);
      return { timer, atMs };
    });
    const kept = timers.filter(({ timer }, index) => {
      if (index % 3 !== 0) return true;
      clock.cancel(timer);
      clock.cancel(timer);
      return false;
    });
    expect(clock.pendingTimers).toBe(kept.length);
    await clock.advance(1000);
    expect(firedAt).toEqual(kept.map(({ atMs }) => atMs).sort((left, right) => left - right));
  });

  it('leaves the timers of another clock alone when asked to cancel one of them', async () => {
    const clock = virtualClock();
    const other = virtualClock();
    let fired = 0;
    const mine = callbackTimer(() => fired++);
    const foreign = callbackTimer(() => fired++);
    clock.schedule(mine, 1);
    other.schedule(foreign, 1);
    clock.cancel(foreign);
    await clock.advance(1);
    await other.advance(1);
    expect(fired).toBe(2);
  });

  it('runs everything that is left with runAll, and says how many timers fired', async () => {
    const clock = virtualClock();
    void clock.sleep('1h');
    void clock.sleep('2d').then(() => clock.sleep('1d'));
    expect(await clock.runAll()).toBe(3);
    expect(clock.now()).toBe(3 * 86_400_000);
  });

  it('refuses to run a timer that renews itself for ever', async () => {
    const clock = virtualClock();
    const renew = (): void => clock.schedule(callbackTimer(renew), clock.now() + 1);
    renew();
    await expect(clock.runAll({ maxTimers: 50 })).rejects.toThrow('50 timers have fired and 1 are still pending');
  });

  it('jumps on the wall without moving monotonic time', async () => {
    const clock = virtualClock({ wallNow: 5000 });
    clock.jumpWallClock(-3000);
    await clock.advance(10);
    expect(clock.wallNow()).toBe(2010);
    expect(clock.now()).toBe(10);
  });

  it('takes the timer of an aborted sleep back', async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    const nap = clock.sleep('1s', { signal: controller.signal });
    controller.abort(new Error('enough'));
    await expect(nap).rejects.toThrow('enough');
    expect(clock.pendingTimers).toBe(0);
  });

  it('passes on what a timer throws, and can be moved again afterwards', async () => {
    const clock = virtualClock();
    clock.schedule(
      callbackTimer(() => {
        throw new Error('bad timer');
      }),
      5,
    );
    await expect(clock.advance(10)).rejects.toThrow('bad timer');
    await clock.advance(5);
    expect(clock.now()).toBe(10);
  });

  it('refuses to be moved twice at once', async () => {
    const clock = virtualClock();
    const first = clock.advance(10);
    await expect(clock.advance(10)).rejects.toThrow('already being moved');
    await first;
  });

  it('works while vitest fakes the timers of the platform', async () => {
    vi.useFakeTimers();
    const clock = virtualClock();
    let isAwake = false;
    void clock.sleep('1m').then(() => {
      isAwake = true;
    });
    await clock.advance('1m');
    expect(isAwake).toBe(true);
  });

  it('refuses instants that are no numbers', async () => {
    const clock = virtualClock();
    expect(() =>
      clock.schedule(
        callbackTimer(() => {}),
        Number.NaN,
      ),
    ).toThrow(RangeError);
    expect(() => virtualClock({ now: Number.POSITIVE_INFINITY })).toThrow('option "now" must be a finite number');
    await expect(clock.advance('5 sec' as never)).rejects.toThrow(/duration/);
    await expect(clock.advanceTo(-1)).rejects.toThrow('already shows 0 ms');
  });
});
