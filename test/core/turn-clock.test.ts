import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { epochOfTurn, turnClockOf } from '../../src/core/turn-clock.ts';
import { systemClock } from '../../src/index.js';

afterEach(() => vi.restoreAllMocks());

describe('turn clock', () => {
  const clock = turnClockOf(systemClock);

  /** Reads until two answers are the same; undefined if they never are. */
  const untilItStands = () => {
    for (let reads = 0; reads < 10_000; reads++) {
      const nowMs = clock.now();
      if (clock.now() === nowMs && clock.now() === nowMs) return nowMs;
    }
    return undefined;
  };
  const block = (ms: number) => {
    const endsMs = systemClock.now() + ms;
    while (systemClock.now() < endsMs);
  };

  it('holds the time for the rest of a turn in which it is read often, and continues in the next', async () => {
    for (let turns = 0; turns < 2; turns++) {
      const stoodMs = untilItStands()!;
      block(3);
      expect(clock.now()).toBe(stoodMs);
      await Promise.resolve();
      expect(clock.now()).toBe(stoodMs);
      await turn();
      expect(clock.now()).toBeGreaterThanOrEqual(stoodMs + 3);
    }
  });

  it('numbers each turn in which the time is held uniquely, and no other turn', async () => {
    const numbers = new Set<number | undefined>();
    for (let turns = 0; turns < 60; turns++) {
      await turn();
      expect(clock.turn).toBe(0);
      untilItStands();
      expect(clock.turn).toBeGreaterThan(0);
      numbers.add(clock.turn);
    }
    expect(numbers.size).toBe(60);
  });

  it('is exact if it is read rarely, and with a given clock', async () => {
    // What other readers began ends with the turn.
    await turn();
    for (let reads = 0; reads < 3; reads++) {
      const beforeMs = systemClock.now();
      expect(clock.now()).toBeGreaterThanOrEqual(beforeMs);
    }
    let nowMs = 0;
    const given = turnClockOf({ now: () => nowMs, wallNow: () => 0, schedule() {}, cancel() {} });
    for (; nowMs < 0.5; nowMs += 0.01) expect(given.now()).toBe(nowMs);
  });

  it('is that of the system only for the system clock', () => {
    const other = { ...systemClock };
    expect([turnClockOf(systemClock) === systemClock, turnClockOf(other) === other]).toEqual([false, true]);
  });

  it('treats reads as frequent only from the sixteenth within a millisecond on', async () => {
    await turn();
    let nowMs = Math.ceil(systemClock.now()) + 1_000;
    vi.spyOn(systemClock, 'now').mockImplementation(() => nowMs);
    clock.now();
    for (let reads = 1; reads < 16; reads++) {
      nowMs += 1 / 64;
      expect(clock.now()).toBe(nowMs);
    }
    nowMs = Math.ceil(nowMs);
    for (let reads = 0; reads < 16; reads++) expect(clock.now()).toBe(nowMs);
    nowMs += 0.5;
    expect(clock.now()).toBe(nowMs);
    const stoodMs = nowMs;
    nowMs += 0.4;
    expect(clock.now()).toBe(stoodMs);
    await turn();
    expect(clock.now()).toBe(nowMs);
  });

  it.each([
    ['on a platform that tells nobody when a turn ends', Object.create(process, { nextTick: { value: undefined } })],
    ['on a platform without a process', undefined],
    [
      'where a test had faked the end of a turn before the import',
      Object.create(process, { nextTick: { value: Object.assign(() => {}, { clock: {} }) } }),
    ],
  ])('is exact %s', async (_where, platform) => {
    vi.stubGlobal('process', platform);
    vi.resetModules();
    try {
      const [fresh, { systemClock: system }] = await Promise.all([
        import('../../src/core/turn-clock.js'),
        import('../../src/core/clock.js'),
      ]);
      let nowMs = 1;
      vi.spyOn(system, 'now').mockImplementation(() => nowMs);
      const exact = fresh.turnClockOf(system);
      for (let reads = 0; reads < 50; reads++) {
        nowMs += 1 / 1024;
        expect(exact.now()).toBe(nowMs);
      }
    } finally {
      vi.unstubAllGlobals();
      vi.resetModules();
    }
  });

  it('is exact while a test holds back the tasks at the end of a turn', async () => {
    await turn();
    const held = vi.spyOn(process, 'nextTick').mockImplementation(() => {});
    try {
      const firstMs = untilItStands() ?? systemClock.now();
      block(1);
      expect(clock.now()).toBeGreaterThan(firstMs);
    } finally {
      // `restoreAllMocks` skips a spy that nobody has called.
      held.mockRestore();
    }
  });

  it('returns the index of the current span for each width, recomputed in the next turn', async () => {
    await turn();
    let nowMs = Math.ceil(systemClock.now()) + 1_000;
    vi.spyOn(systemClock, 'now').mockImplementation(() => nowMs);
    for (let turns = 0; turns < 3; turns++) {
      for (let reads = 0; reads < 20; reads++) clock.now();
      const epochs = [1, 7, 7, 1, 250, 1].map((widthMs) => epochOfTurn(systemClock, widthMs));
      expect(epochs).toEqual([1, 7, 7, 1, 250, 1].map((widthMs) => Math.floor(nowMs / widthMs)));
      nowMs += 5;
      expect(epochOfTurn(systemClock, 1)).toBe(nowMs - 5);
      await turn();
      expect(epochOfTurn(systemClock, 1)).toBe(nowMs);
    }
  });

  it('returns the exact span if it is asked rarely, and with a given clock', async () => {
    await turn();
    let nowMs = Math.ceil(systemClock.now()) + 1_000;
    vi.spyOn(systemClock, 'now').mockImplementation(() => nowMs);
    let givenMs = 5;
    const given = { ...systemClock, now: () => givenMs };
    for (let reads = 0; reads < 3; reads++) {
      expect(epochOfTurn(systemClock, 1)).toBe(nowMs);
      nowMs += 1;
    }
    for (let reads = 0; reads < 50; reads++) {
      expect(epochOfTurn(given, 4)).toBe(Math.floor(givenMs / 4));
      givenMs += 1;
    }
  });
});
