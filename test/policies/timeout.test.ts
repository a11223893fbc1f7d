import { describe, expect, it } from 'vitest';
import { Call } from '../../src/core/call.js';
import {
  DeadlineTooShortError,
  type HoldfastEvent,
  isRefusal,
  type Permit,
  pipeline,
  type Refusal,
  systemClock,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const hangs = () => new Promise<never>(() => {});

describe('timeout', () => {
  it('rejects on time even if the operation ignores its signal, which is aborted for the same reason', async () => {
    const clock = virtualClock();
    const events: HoldfastEvent[] = [];
    let signal: AbortSignal | undefined;
    const running = pipeline(timeout({ after: '2s', name: 'quick', clock, on: (event) => events.push(event) })).attempt(
      (call) => {
        signal = call.signal;
        return hangs();
      },
    );
    await clock.advance(1_999);
    expect(signal?.aborted).toBe(false);
    await clock.advance(1);
    const outcome = await running;
    expect(outcome).toEqual({ ok: false, error: expect.any(TimeoutError) });
    expect(outcome).toMatchObject({ error: { policy: 'quick', afterMs: 2_000 } });
    expect(signal?.reason).toBe(!outcome.ok && outcome.error);
    expect(events).toEqual([{ type: 'timeout', name: 'quick', afterMs: 2_000 }]);
  });

  it('leaves nothing behind after either kind of end', async () => {
    const clock = virtualClock();
    const quick = pipeline(timeout({ after: 5, clock }));
    await quick.execute(() => 1);
    await quick.attempt(() => Promise.reject(new Error('x')));
    expect(clock.pendingTimers).toBe(0);
  });

  it('reports no timeout when the caller aborts first', async () => {
    const clock = virtualClock();
    const events: HoldfastEvent[] = [];
    const controller = new AbortController();
    const running = pipeline(timeout({ after: '5s', clock, on: (event) => events.push(event) })).attempt(hangs, {
      signal: controller.signal,
    });
    await clock.advance(30);
    controller.abort('gone');
    expect(await running).toEqual({ ok: false, error: 'gone' });
    await clock.runAll();
    expect(events).toEqual([]);
  });

  it('ends only the call that is late', async () => {
    const clock = virtualClock();
    const quick = pipeline(timeout({ after: 100, clock }));
    const first = quick.attempt(hangs);
    await clock.advance(60);
    let signal: AbortSignal | undefined;
    const second = quick.attempt((call) => {
      signal = call.signal;
      return clock.sleep(80).then(() => 'in time');
    });
    await clock.advance(40);
    expect(await first).toMatchObject({ ok: false });
    expect(signal?.aborted).toBe(false);
    await clock.advance(60);
    expect(await second).toEqual({ ok: true, value: 'in time' });
  });

  it('consumes a late error', async () => {
    const clock = virtualClock();
    const running = pipeline(timeout({ after: 5, clock })).attempt(() =>
      clock.sleep(10).then(() => Promise.reject(new Error('late'))),
    );
    await clock.runAll();
    expect(await running).toMatchObject({ ok: false });
    // An unhandled rejection fails the whole run.
    await new Promise(setImmediate);
  });

  it('hands a late value to onLateResult, and no other', async () => {
    const clock = virtualClock();
    const late: unknown[] = [];
    const quick = pipeline(timeout({ after: 5, clock, onLateResult: (value) => late.push(value) }));
    const controller = new AbortController();
    const all = [
      quick.attempt(() => 'in time'),
      quick.attempt(() => clock.sleep(10).then(() => 'late')),
      quick.attempt(() => clock.sleep(10).then(() => Promise.reject(new Error('late')))),
      quick.attempt(() => clock.sleep(20).then(() => 'after the caller has gone'), { signal: controller.signal }),
    ];
    controller.abort();
    await clock.runAll();
    await Promise.all(all);
    expect(late).toEqual(['late', 'after the caller has gone']);
  });

  it('works in two steps, without a pipeline', () => {
    const clock = virtualClock({ now: 100 });
    const permit = timeout({ after: 50, clock }).admit();
    expect(isRefusal(permit)).toBe(false);
    expect(permit).toMatchObject({ endsAt: 150 });
    expect((permit as Permit).endReason?.()).toMatchObject({ policy: 'timeout', afterMs: 50 });
  });

  it('uses the system clock if there is neither a call nor a clock', () => {
    const beforeMs = systemClock.now();
    const { endsAt } = timeout('1m').admit() as Permit;
    expect(endsAt! - beforeMs).toBeGreaterThanOrEqual(60_000);
    expect(endsAt! - systemClock.now()).toBeLessThanOrEqual(60_000);
  });

  it('uses the clock of the call if there is one', () => {
    const call = new Call(virtualClock({ now: 100 }), hangs, undefined);
    expect(timeout(50).admit(call)).toMatchObject({ endsAt: 150 });
  });

  it('gives a layer one permit for all its calls, and wants the end reported only if a late value is wanted', () => {
    const call = new Call(virtualClock(), hangs, undefined);
    const { fused } = timeout(50);
    expect(fused!.admit(call)).toBe(fused!.admit(call));
    expect((fused!.admit(call) as Permit).ended).toBeUndefined();
    const wanted = timeout({ after: 50, onLateResult: () => {} }).fused!.admit(call) as Permit;
    expect(wanted.ended).toBeTypeOf('function');
  });

  it('does not start a call without time left, says how late it is, and has a stack only if asked', () => {
    for (const stack of [undefined, false, true]) {
      const clock = virtualClock({ now: 100 });
      const events: HoldfastEvent[] = [];
      const guard = timeout({
        after: 50,
        clock,
        on: (event) => events.push(event),
        ...(stack === undefined ? {} : { stack }),
      });
      const callUntil = (deadlineMs: number) => new Call(clock, hangs, undefined, undefined, 1, deadlineMs);
      expect(isRefusal(guard.admit(callUntil(100.5)))).toBe(false);
      expect(events).toEqual([]);
      for (const remainingMs of [0, -30]) {
        const { error } = guard.admit(callUntil(100 + remainingMs)) as Refusal;
        expect(error).toBeInstanceOf(DeadlineTooShortError);
        expect(error).toMatchObject({ policy: 'timeout', remainingMs });
        expect(events.at(-1)).toEqual({ type: 'deadline-too-short', name: 'timeout', remainingMs });
        expect((error as Error).stack?.includes('\n    at ')).toBe(stack ?? false);
      }
    }
  });

  it('hands nothing to onLateResult if nothing is known of the end, and contains its exceptions', () => {
    let late = 0;
    const guard = timeout({
      after: 50,
      onLateResult() {
        late++;
        throw new Error('contained');
      },
    });
    const permit = guard.admit() as Permit;
    permit.ended?.();
    permit.ended?.({ ok: false, error: new Error('late') });
    expect(late).toBe(0);
    permit.ended?.({ ok: true, value: 1 });
    expect(late).toBe(1);
  });

  it('describes what it does', () => {
    expect(timeout('2s').traits).toMatchObject({
      kind: 'timeout',
      summary: 'gives an attempt up after 2000 ms and aborts its signal',
      afterMs: 2_000,
    });
  });

  it('shows the value that was given in place of a duration', () => {
    expect(() => timeout(null as never)).toThrow('option "after" must be a duration such as 5000 or \'5s\', got null');
  });

  it.each([
    ['after', 0],
    ['after', null],
    ['after', undefined],
    ['after', 2 ** 31],
    ['after', {}],
    ['after', { after: '2 sec' }],
    ['onLateResult', { after: 5, onLateResult: true }],
    ['stack', { after: 5, stack: 1 }],
    ['afterMs', { after: 5, afterMs: 5 }],
  ])('refuses a wrong "%s" at once: %j', (option, options) => {
    expect(() => timeout(options as never)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });
});
