import { describe, expect, it } from 'vitest';
import { Call } from '../../src/core/call.js';
import {
  constant,
  DeadlineExceededError,
  deadline,
  type HoldfastEvent,
  pipeline,
  type Refusal,
  retry,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const hangs = () => new Promise<never>(() => {});

describe('deadline', () => {
  it('bounds the attempts and waits together', async () => {
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

  it('tells the operation when it ends, and an attempt its own nearer end', async () => {
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
  ])('applies the nearer of two: %s', async (_, outerMs, innerMs, policy) => {
    const clock = virtualClock();
    const running = pipeline(
      deadline({ after: outerMs, name: 'outer', clock }),
      retry({ attempts: 1 }),
      deadline({ after: innerMs, name: 'inner' }),
    ).attempt(hangs);
    await clock.runAll();
    expect(await running).toMatchObject({ error: { policy } });
  });

  it('keeps a nearer deadline of the call', async () => {
    const clock = virtualClock();
    const running = pipeline(deadline({ after: 100, clock })).attempt(hangs, { deadline: 30 });
    await clock.runAll();
    expect([await running, clock.now()]).toMatchObject([{ error: { policy: 'pipeline' } }, 30]);
  });

  it('does not start a call that has no time left', async () => {
    const clock = virtualClock({ now: 100 });
    const call = new Call(clock, hangs, undefined, undefined, 1, 100);
    for (const stack of [undefined, false, true]) {
      const guard = deadline({ after: 50, clock, ...(stack === undefined ? {} : { stack }) });
      const { error } = guard.admit(call) as Refusal;
      expect(error).toMatchObject({ name: 'DeadlineTooShortError', policy: 'deadline', remainingMs: 0 });
      expect((error as Error).stack?.includes('\n    at ')).toBe(stack ?? false);
    }
  });

  it('describes what it does', () => {
    expect(deadline('5s').traits).toMatchObject({
      kind: 'deadline',
      summary: 'ends the whole call after 5000 ms',
      afterMs: 5_000,
    });
  });

  it.each([
    ['after', 0],
    ['after', null],
    ['after', { after: '5 sec' }],
    ['stack', { after: 5, stack: 1 }],
    ['onLateResult', { after: 5, onLateResult: () => {} }],
  ])('refuses a wrong "%s" at once: %j', (option, options) => {
    expect(() => deadline(options as never)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });

  it('uses monotonic time: a jump of the wall clock changes nothing', async () => {
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
