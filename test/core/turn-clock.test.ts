import { describe, expect, it } from 'vitest';
import { turnClockOf } from '../../src/core/turn-clock.ts';
import { systemClock } from '../../src/index.js';

describe('turn clock', () => {
  it('stands still for the rest of a turn in which it is read often, and goes on in the next', async () => {
    const clock = turnClockOf(systemClock);
    const untilItStands = () => {
      for (let reads = 0; reads < 100_000; reads++) {
        const nowMs = clock.now();
        if (clock.now() === nowMs && clock.now() === nowMs) return nowMs;
      }
      throw new Error('it never stood');
    };
    for (let turns = 0; turns < 2; turns++) {
      const stoodMs = untilItStands();
      const endsMs = systemClock.now() + 3;
      while (systemClock.now() < endsMs);
      expect(clock.now()).toBe(stoodMs);
      await new Promise((resolve) => setTimeout(resolve, 2));
      expect(clock.now()).toBeGreaterThan(stoodMs + 3);
    }
  });

  it('is exact when it is read seldom, and with a clock that is given', async () => {
    // What the reads of others began ends with the turn.
    await new Promise((resolve) => setTimeout(resolve, 3));
    const seldom = turnClockOf(systemClock);
    for (let reads = 0; reads < 3; reads++) {
      const beforeMs = systemClock.now();
      expect(seldom.now()).toBeGreaterThanOrEqual(beforeMs);
    }
    let nowMs = 0;
    const given = turnClockOf({ now: () => nowMs, wallNow: () => 0, schedule() {}, cancel() {} });
    for (; nowMs < 0.5; nowMs += 0.01) expect(given.now()).toBe(nowMs);
  });
});
