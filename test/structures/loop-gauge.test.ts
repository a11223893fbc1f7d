import { afterEach, describe, expect, it, vi } from 'vitest';
import { callbackTimer } from '../../src/index.js';
import { loopGauge, threadLoop } from '../../src/structures/loop-gauge.js';
import { virtualClock } from '../../src/testing/index.js';

/** A platform whose event loop a test can block: what falls due meanwhile comes late. */
function blockable() {
  const clock = virtualClock();
  let blockedUntilMs = 0;
  const times = { idle: 0, active: 0 };
  const gauge = loopGauge(
    {
      later: (then, ms) => clock.schedule(callbackTimer(then), Math.max(clock.now() + ms, blockedUntilMs)),
      times: () => ({ ...times }),
    },
    () => clock.now(),
  );
  return {
    clock,
    times,
    delayMs: () => gauge.delayMs(clock.now()),
    utilization: () => gauge.utilization(clock.now()),
    blockNextLookFor: (ms: number) => {
      blockedUntilMs = clock.now() + ms;
    },
  };
}

describe('loopGauge', () => {
  it('sees no delay in a loop that is in time, and looks once per 10 ms however often it is asked', async () => {
    const { clock, delayMs } = blockable();
    for (let ms = 0; ms < 95; ms++) {
      expect(delayMs()).toBe(0);
      expect(delayMs()).toBe(0);
      expect(clock.pendingTimers).toBe(1);
      await clock.advance(1);
    }
    expect(await clock.runAll()).toBe(1);
    expect(clock.pendingTimers).toBe(0);
  });

  it('tells of a blocked loop while its look is overdue, and afterwards until the next look', async () => {
    const { clock, delayMs, blockNextLookFor } = blockable();
    blockNextLookFor(300);
    delayMs();
    await clock.advance(150);
    expect(delayMs()).toBe(140);
    await clock.advance(150);
    expect(delayMs()).toBe(290);
    await clock.advance(10);
    expect(delayMs()).toBe(0);
  });

  it('looks again after a late look until one is in time, though nobody asks', async () => {
    const { clock, delayMs, blockNextLookFor } = blockable();
    blockNextLookFor(300);
    delayMs();
    // This is for the second look.
    blockNextLookFor(400);
    await clock.advance(399);
    expect(delayMs()).toBe(290);
    await clock.advance(1);
    expect(delayMs()).toBe(90);
    await clock.advance(10);
    expect(clock.pendingTimers).toBe(0);
    expect(delayMs()).toBe(0);
  });

  it('is in time for each of several calls that block the loop one after the other', async () => {
    const { clock, delayMs, blockNextLookFor } = blockable();
    for (let call = 0; call < 5; call++) {
      blockNextLookFor(150);
      expect(delayMs()).toBe(0);
      await clock.advance(500);
    }
  });

  it('tells how busy the loop was since the last look, and at first nothing', async () => {
    const { clock, times, utilization } = blockable();
    times.active = 900;
    times.idle = 100;
    expect(utilization()).toBe(0);
    await clock.advance(249);
    times.active += 150;
    times.idle += 50;
    expect(utilization()).toBe(0);
    await clock.advance(1);
    expect(utilization()).toBe(0.75);
    await clock.advance(5_000);
    times.idle += 5_000;
    expect(utilization()).toBe(0);
  });

  it('tells of no load where no time has passed', async () => {
    const { clock, times, utilization } = blockable();
    times.active = 900;
    utilization();
    await clock.advance(250);
    expect(utilization()).toBe(0);
  });

  it('answers 0 where the platform does not tell', async () => {
    const clock = virtualClock();
    const gauge = loopGauge({ later() {}, times: () => undefined }, () => clock.now());
    for (let look = 0; look < 3; look++) {
      expect(gauge.utilization(clock.now())).toBe(0);
      await clock.advance(300);
    }
  });
});

describe('threadLoop', () => {
  afterEach(() => {
    vi.unstubAllGlobals();
  });

  it('calls back, and keeps no process alive for it', async () => {
    const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
    const before = timers();
    const called = new Promise<void>((then) => threadLoop.later(then, 1));
    expect(timers()).toBe(before);
    await called;
  });

  it('needs neither of what only some platforms have', () => {
    for (const performance of [undefined, {}]) {
      vi.stubGlobal('performance', performance);
      expect(threadLoop.times()).toBeUndefined();
    }
    // On some platforms a timer is a number.
    vi.stubGlobal('setTimeout', () => 1);
    threadLoop.later(() => {}, 1);
  });

  it('tells how long the loop was busy, which grows while something runs', async () => {
    const before = threadLoop.times()!;
    const endsMs = performance.now() + 3;
    while (performance.now() < endsMs);
    expect(threadLoop.times()!.active).toBeGreaterThan(before.active);
  });
});
