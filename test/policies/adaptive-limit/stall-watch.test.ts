import { describe, expect, it } from 'vitest';
import type { Clock } from '../../../src/index.js';
import { StallWatch } from '../../../src/policies/adaptive-limit/stall-watch.js';
import { virtualClock } from '../../../src/testing/index.js';

/** A clock whose process can be blocked: what falls due meanwhile comes late. */
function blockable() {
  const virtual = virtualClock();
  let lostMs = 0;
  const clock: Clock = {
    now: () => virtual.now() + lostMs,
    wallNow: () => virtual.wallNow(),
    schedule: (timer, atMs) => virtual.schedule(timer, Math.max(virtual.now(), atMs - lostMs)),
    cancel: (timer) => virtual.cancel(timer),
  };
  const block = (ms: number) => {
    lostMs += ms;
  };
  return { virtual, clock, block };
}

describe('StallWatch', () => {
  it('uses the background clock, so that it keeps no process alive', async () => {
    const background = virtualClock();
    const refuse = () => {
      throw new Error('this timer would keep the process alive');
    };
    const watch = new StallWatch();
    watch.startedMs({ ...background, now: () => background.now(), schedule: refuse, cancel: refuse, background }, 0);
    await background.advance(100);
    expect(background.pendingTimers).toBe(1);
    watch.stop();
    expect(background.pendingTimers).toBe(0);
  });

  it('has lost nothing while its timer is on time', async () => {
    const { virtual, clock } = blockable();
    const watch = new StallWatch();
    expect(watch.startedMs(clock, clock.now())).toBe(0);
    for (let step = 0; step < 100; step++) {
      await virtual.advance(7);
      expect(watch.lostMs(clock.now())).toBe(0);
    }
  });

  it.each([
    [10, 0],
    [10.5, 10.5],
    [300, 300],
  ])('counts a timer that is %d ms late as a stall of %d ms', async (lateMs, lostMs) => {
    const { virtual, clock, block } = blockable();
    const watch = new StallWatch();
    watch.startedMs(clock, clock.now());
    await virtual.advance(19);
    block(lateMs);
    await virtual.advance(1);
    expect(watch.lostMs(clock.now())).toBe(lostMs);
  });

  it('knows of a stall before its late timer is handled, and counts it once', async () => {
    const { virtual, clock, block } = blockable();
    const watch = new StallWatch();
    watch.startedMs(clock, clock.now());
    block(120);
    // The timer was due after 20 of these.
    expect(watch.lostMs(clock.now())).toBe(100);
    expect(watch.startedMs(clock, clock.now())).toBe(100);
    await virtual.advance(20);
    const lostMs = watch.lostMs(clock.now());
    expect(lostMs).toBe(120);
    await virtual.advance(100);
    expect(watch.lostMs(clock.now())).toBe(lostMs);
    block(60);
    await virtual.advance(20);
    expect(watch.lostMs(clock.now())).toBe(lostMs + 60);
  });

  it('has one timer while it watches and none afterwards, and time in between is not a stall', async () => {
    const { virtual, clock } = blockable();
    const watch = new StallWatch();
    watch.stop();
    watch.startedMs(clock, clock.now());
    watch.startedMs(clock, clock.now());
    expect(virtual.pendingTimers).toBe(1);
    watch.stop();
    expect(virtual.pendingTimers).toBe(0);
    await virtual.advance('1m');
    expect(watch.lostMs(clock.now())).toBe(0);
    expect(watch.startedMs(clock, clock.now())).toBe(0);
    await virtual.advance(5);
    expect([watch.lostMs(clock.now()), virtual.pendingTimers]).toEqual([0, 1]);
    watch.stop();
    watch.expire();
    expect(virtual.pendingTimers).toBe(0);
  });
});
