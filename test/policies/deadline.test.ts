import { describe, expect, it } from 'vitest';
import {
  constant,
  DeadlineExceededError,
  deadline,
  type HoldfastEvent,
  pipeline,
  retry,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const hangs = () => new Promise<never>(() => {});

describe('deadline', () => {
  it('bounds the attempts and their waits together', async () => {
    const clock = virtualClock();
    const events: HoldfastEvent[] = [];
    let calls = 0;
    const running = pipeline(
      deadline({ after: '1s', clock, on: (event) => events.push(event) }),
      retry({ attempts: 10, backoff: constant(100) }),
      timeout('300ms'),
    ).attempt(() => {
      calls++;
      return hangs();
    });
    await clock.runAll();
    expect(await running).toMatchObject({ error: expect.any(DeadlineExceededError) });
    expect(await running).toMatchObject({ error: { policy: 'deadline', afterMs: 1_000 } });
    expect([clock.now(), calls]).toEqual([1_000, 3]);
    expect(events).toEqual([{ type: 'deadline-exceeded', name: 'deadline', afterMs: 1_000 }]);
  });

  it('tells the operation when it ends, and an attempt the nearer end of its own', async () => {
    const clock = virtualClock({ now: 50 });
    expect(await pipeline(deadline({ after: 1_000, clock })).execute((call) => call.deadline)).toBe(1_050);
    expect(
      await pipeline(deadline({ after: 1_000, clock }), retry(), timeout(200)).execute((call) => call.deadline),
    ).toBe(250);
  });

  it.each([
    ['the outer one', 10, 20, 'outer'],
    ['the inner one', 20, 10, 'inner'],
    ['the outer one of two equal ones', 10, 10, 'outer'],
  ])('holds the nearest of two: %s', async (_, outerMs, innerMs, policy) => {
    const clock = virtualClock();
    const running = pipeline(
      deadline({ after: outerMs, name: 'outer', clock }),
      retry({ attempts: 1 }),
      deadline({ after: innerMs, name: 'inner' }),
    ).attempt(hangs);
    await clock.runAll();
    expect(await running).toMatchObject({ error: { policy } });
  });

  it('keeps the nearer deadline that a call comes with', async () => {
    const clock = virtualClock();
    const running = pipeline(deadline({ after: 100, clock })).attempt(hangs, { deadline: 30 });
    await clock.runAll();
    expect([await running, clock.now()]).toMatchObject([{ error: { policy: 'pipeline' } }, 30]);
  });

  it('goes by monotonic time: a jump of the wall clock changes nothing', async () => {
    const clock = virtualClock();
    const running = pipeline(deadline({ after: 100, clock })).attempt(hangs);
    clock.jumpWallClock(3_600_000);
    await clock.advance(99);
    expect(clock.pendingTimers).toBe(1);
    clock.jumpWallClock(-7_200_000);
    await clock.advance(1);
    expect(await running).toMatchObject({ error: expect.any(DeadlineExceededError) });
  });
});
