import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Call } from '../../src/core/call.js';
import {
  bulkhead,
  constant,
  deadline,
  HandlesError,
  type HoldfastEvent,
  isRefusal,
  isRejected,
  OptionsError,
  type Permit,
  pipeline,
  RateLimitedError,
  type Refusal,
  rateLimit,
  retry,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const hangs = () => new Promise<never>(() => {});

const retryAfterOf = (answer: unknown) => (answer as { error: RateLimitedError }).error.retryAfterMs;

describe('rateLimit', () => {
  it('follows the golden vector: ten per second, five at once', async () => {
    const clock = virtualClock();
    const guard = rateLimit({ limit: 10, period: '1s', burst: 5, clock });
    const seen: string[] = [];
    for (const atMs of [0, 0, 0, 0, 0, 0, 50, 100, 150, 1_000]) {
      await clock.advanceTo(atMs);
      const answer = guard.admit() as Permit | Refusal;
      seen.push(isRefusal(answer) ? `deny ${retryAfterOf(answer)}` : `ok ${guard.remaining}`);
    }
    expect(seen).toEqual([
      ...['ok 4', 'ok 3', 'ok 2', 'ok 1', 'ok 0', 'deny 100'],
      ...['deny 50', 'ok 0', 'deny 50', 'ok 4'],
    ]);
    expect(guard.resetMs).toBe(100);
  });

  it('refuses with an error that says when to retry, and reports it', async () => {
    const clock = virtualClock();
    const events: HoldfastEvent[] = [];
    const calls = pipeline(rateLimit({ limit: 2, name: 'quota', clock, on: (event) => events.push(event) }));
    await calls.execute(() => 1);
    await calls.execute(() => 2);
    const outcome = await calls.attempt(() => 3);
    expect(outcome).toMatchObject({
      ok: false,
      error: { name: 'RateLimitedError', policy: 'quota', limit: 2, retryAfterMs: 500 },
    });
    expect(!outcome.ok && isRejected(outcome.error)).toBe(true);
    expect(events).toEqual([{ type: 'rate-limited', name: 'quota', retryAfterMs: 500 }]);
    expect(clock.pendingTimers).toBe(0);
  });

  it('lets an outer retry come back in time', async () => {
    const clock = virtualClock();
    const calls = pipeline(
      retry({ attempts: 2, backoff: constant(1), random: () => 0 }),
      rateLimit({ limit: 1, period: 100, clock }),
    );
    await calls.execute(() => 1);
    const again = calls.attempt(() => 2);
    await clock.runAll();
    expect(await again).toEqual({ ok: true, value: 2 });
    expect(clock.now()).toBe(100);
  });

  describe('at its position (X14)', () => {
    const failing = () => Promise.reject(new Error('down'));

    it('counts every attempt inside a retry, and every call outside it', async () => {
      const clock = virtualClock();
      const inside = rateLimit({ limit: 10, clock });
      const around = rateLimit({ limit: 10, clock });
      const calls = pipeline(around, retry({ attempts: 3, backoff: constant(0) }), inside);
      const running = calls.attempt(failing);
      await clock.runAll();
      await running;
      expect([around.remaining, inside.remaining]).toEqual([9, 7]);
    });
  });

  describe('cost', () => {
    it('uses as many units as a call costs', () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, cost: 4, clock });
      guard.admit();
      guard.admit();
      expect(guard.remaining).toBe(2);
      expect(retryAfterOf(guard.admit())).toBe(200);
    });

    it('can be a function of the call', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, cost: ({ key }) => Number(key), clock });
      await pipeline(guard).execute(() => 1, { key: '7' });
      expect(guard.remaining).toBe(3);
      guard.admit();
      expect(guard.remaining).toBe(2);
    });

    it('above the burst is always refused: by the factory, or by an error without a time to retry', async () => {
      expect(() => rateLimit({ limit: 10, burst: 5, cost: 6 })).toThrow(OptionsError);
      const guard = rateLimit({ limit: 10, burst: 5, cost: () => 6, whenFull: 'wait', clock: virtualClock() });
      const outcome = await pipeline(guard).attempt(() => 1);
      expect(outcome).toMatchObject({ ok: false, error: expect.any(RateLimitedError) });
      expect(outcome).toMatchObject({ error: { retryAfterMs: undefined, cause: expect.any(RangeError) } });
      expect(guard.remaining).toBe(5);
    });

    it.each([
      ['throws', () => Promise.reject as never],
      ['answers no number', () => 'two' as never],
      ['answers a number as text', () => '2' as never],
      ['answers NaN', () => Number.NaN],
      ['answers infinity', () => Number.POSITIVE_INFINITY],
      ['answers a negative number', () => -1],
    ])('that %s is distinguished from a refusal', async (_, cost) => {
      const guard = rateLimit({ limit: 10, cost, clock: virtualClock() });
      const outcome = await pipeline(guard).attempt(() => 1);
      expect(outcome).toEqual({ ok: false, error: expect.any(HandlesError) });
      expect(outcome).toMatchObject({
        error: { policy: 'rateLimit', message: expect.stringContaining('"cost" function failed') },
      });
      expect(guard.remaining).toBe(10);
    });
  });

  describe("whenFull: 'wait'", () => {
    it('starts calls in the order of arrival, each as soon as the rate allows, and leaves no timer', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, burst: 2, whenFull: 'wait', clock });
      const calls = pipeline(guard);
      const starts: string[] = [];
      const all = [1, 2, 3, 4, 5].map((index) => calls.attempt(() => starts.push(`${index} at ${clock.now()}`)));
      expect([guard.waiting, clock.pendingTimers]).toEqual([3, 1]);
      await clock.runAll();
      await Promise.all(all);
      expect(starts).toEqual(['1 at 0', '2 at 0', '3 at 100', '4 at 200', '5 at 300']);
      expect([guard.waiting, clock.pendingTimers]).toEqual([0, 0]);
    });

    it('lets no cheap newcomer overtake an expensive waiter', async () => {
      const clock = virtualClock();
      const calls = pipeline(
        rateLimit({ limit: 10, burst: 5, cost: ({ key }) => Number(key), whenFull: 'wait', clock }),
      );
      const starts: string[] = [];
      const all = ['3', '5', '1', '0'].map((key) =>
        calls.attempt(() => starts.push(`${key} at ${clock.now()}`), { key }),
      );
      await clock.runAll();
      await Promise.all(all);
      expect(starts).toEqual(['3 at 0', '5 at 300', '1 at 400', '0 at 400']);
    });

    it('refuses at once a call that would wait past its deadline or `maxWait`, or finds no place, and says how long', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, burst: 1, whenFull: 'wait', queue: 3, maxWait: 250, clock });
      const calls = pipeline(guard);
      await calls.execute(() => 1);
      const hurried = await calls.attempt(() => 2, { deadline: 100 });
      expect(retryAfterOf(hurried)).toBe(100);
      const waiting = [calls.attempt(() => 3, { deadline: 101 }), calls.attempt(() => 4)];
      expect(retryAfterOf(await calls.attempt(() => 5))).toBe(300);
      await clock.runAll();
      expect(await Promise.all(waiting)).toEqual([
        { ok: true, value: 3 },
        { ok: true, value: 4 },
      ]);
      const narrow = pipeline(rateLimit({ limit: 10, burst: 1, whenFull: 'wait', queue: 0, clock }));
      await narrow.execute(() => 1);
      expect(retryAfterOf(await narrow.attempt(() => 2))).toBe(100);
    });

    it('serves on in a lasting overload: no call waits until its deadline is too near for its operation', async () => {
      const clock = virtualClock();
      const calls = pipeline(deadline({ after: '5s', clock }), rateLimit({ limit: 10, whenFull: 'wait', clock }));
      let served = 0;
      // A minute of twice as many calls as may start.
      for (let call = 0; call < 1_200; call++) {
        void calls
          .attempt(() => clock.sleep(200))
          .then(({ ok }) => {
            if (ok) served++;
          });
        await clock.advance(50);
      }
      await clock.runAll();
      expect(served).toBeGreaterThan(0.9 * 600);
    });

    it('knows how long operations take once ten have succeeded, whatever failed meanwhile', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, burst: 1, whenFull: 'wait', clock });
      const calls = pipeline(guard);
      /** Whether a call may wait for 100 ms if that leaves it so much time. */
      const mayLeave = async (leftMs: number) => {
        await clock.advance('1s');
        void calls.attempt(() => clock.sleep(100));
        const second = calls.attempt(() => clock.sleep(10), { deadline: clock.now() + 100 + leftMs });
        await clock.advance('1s');
        return (await second).ok;
      };
      for (let call = 1; call <= 4; call++) expect(await mayLeave(11)).toBe(true);
      await clock.advance('1s');
      void calls.attempt(() => clock.sleep(100));
      for (let call = 0; call < 20; call++) {
        await clock.advance('1s');
        await calls.attempt(() => Promise.reject(new Error('down')));
      }
      expect(await mayLeave(11)).toBe(true);
      expect(await mayLeave(11)).toBe(false);
      expect(await mayLeave(110)).toBe(true);
    });

    it('learns from operations that were given up that they take longer', async () => {
      const clock = virtualClock();
      const calls = pipeline(
        rateLimit({ limit: 10, burst: 1, whenFull: 'wait', clock }),
        timeout({ after: 300, clock }),
      );
      const run = async (task: () => Promise<unknown>, options?: { deadline: number }) => {
        const outcome = calls.attempt(task, options);
        await clock.advance('1s');
        return outcome;
      };
      for (let call = 0; call < 10; call++) await run(() => clock.sleep(10));
      const late = () => {
        void calls.attempt(() => clock.sleep(10));
        return run(() => clock.sleep(10), { deadline: clock.now() + 150 });
      };
      expect(await late()).toMatchObject({ ok: true });
      for (let call = 0; call < 60; call++) await run(hangs);
      expect(await late()).toMatchObject({ ok: false, error: { code: 'ERR_RATE_LIMITED' } });
    });

    it('learns nothing from operations that were given up sooner than most end, or that failed late', async () => {
      const clock = virtualClock();
      const calls = pipeline(rateLimit({ limit: 10, burst: 1, whenFull: 'wait', clock }));
      const run = async (task: () => Promise<unknown>, lastsMs?: number) => {
        const deadlineMs = lastsMs === undefined ? undefined : clock.now() + lastsMs;
        const outcome = calls.attempt(task, { deadline: deadlineMs });
        await clock.advance('1s');
        return outcome;
      };
      for (let call = 0; call < 10; call++) await run(() => clock.sleep(10));
      for (let call = 0; call < 60; call++) {
        expect(await run(hangs, 9)).toMatchObject({ error: { code: 'ERR_DEADLINE_EXCEEDED' } });
        await run(() => clock.sleep(500).then(() => Promise.reject(new Error('down'))));
      }
      void calls.attempt(() => clock.sleep(10));
      expect(await run(() => clock.sleep(10), 120)).toMatchObject({ ok: true });
    });

    it('includes the remaining waiters when it says how long a newcomer would wait, also after the first was served', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, burst: 1, whenFull: 'wait', clock });
      const calls = pipeline(guard);
      await clock.advance('1m');
      await calls.execute(() => 1);
      const waiting = [calls.attempt(() => 2), calls.attempt(() => 3)];
      await clock.advance(100);
      await waiting[0];
      expect(guard.waiting).toBe(1);
      expect(retryAfterOf(await calls.attempt(() => 4, { deadline: '150ms' }))).toBe(200);
      const patient = calls.attempt(() => 5, { deadline: '201ms' });
      await clock.runAll();
      expect([await waiting[1], await patient]).toEqual([
        { ok: true, value: 3 },
        { ok: true, value: 5 },
      ]);
    });

    it('queues without a call', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, burst: 1, whenFull: 'wait', clock });
      guard.admit();
      const answer = guard.admit() as Promise<Permit | Refusal>;
      await clock.advance(100);
      expect(isRefusal(await answer)).toBe(false);
      expect([guard.waiting, clock.pendingTimers]).toEqual([0, 0]);
    });

    it('removes an aborted call at once, and the others move up', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 10, burst: 1, whenFull: 'wait', clock });
      const calls = pipeline(guard);
      await calls.execute(() => 1);
      const controllers = [new AbortController(), new AbortController()];
      const [first, third] = controllers.map(({ signal }) => calls.attempt(() => clock.now(), { signal })) as [
        Promise<unknown>,
        Promise<unknown>,
      ];
      const last = calls.attempt(() => clock.now());
      controllers[0]!.abort('gone');
      expect(await first).toEqual({ ok: false, error: 'gone' });
      expect([guard.waiting, clock.pendingTimers]).toEqual([2, 1]);
      controllers[1]!.abort('gone too');
      expect(await third).toEqual({ ok: false, error: 'gone too' });
      await clock.runAll();
      expect(await last).toEqual({ ok: true, value: 100 });
      expect(clock.pendingTimers).toBe(0);
    });

    it('lets the waiter behind an aborted expensive call start at its own time, and others take the place', async () => {
      const clock = virtualClock();
      const guard = rateLimit({
        limit: 10,
        burst: 5,
        cost: ({ key }) => Number(key),
        whenFull: 'wait',
        maxWait: 600,
        clock,
      });
      const calls = pipeline(guard);
      const start = (key: string, signal?: AbortSignal) => calls.attempt(() => clock.now(), { key, signal });
      await start('5');
      const controller = new AbortController();
      const dear = start('5', controller.signal);
      const cheap = start('1');
      expect(retryAfterOf(await start('5'))).toBe(1_100);
      controller.abort();
      await dear;
      const next = start('5');
      await clock.runAll();
      expect(await cheap).toEqual({ ok: true, value: 100 });
      expect(await next).toEqual({ ok: true, value: 600 });
    });

    it('lets nobody overtake a waiter whose timer is late', () => {
      let nowMs = 0;
      const clock = { now: () => nowMs, wallNow: () => 0, schedule() {}, cancel() {} };
      const guard = rateLimit({ limit: 10, burst: 2, whenFull: 'wait', clock });
      expect([guard.admit(), guard.admit()].some((answer) => answer instanceof Promise)).toBe(false);
      expect(guard.admit()).toBeInstanceOf(Promise);
      nowMs = 500;
      expect(guard.admit()).toBeInstanceOf(Promise);
    });

    it('leaves nothing on a call whose turn came while it was being queued', async () => {
      let nowMs = 0;
      const clock = { now: () => nowMs, wallNow: () => 0, schedule() {}, cancel() {} };
      const guard = rateLimit({ limit: 10, burst: 1, whenFull: 'wait', clock });
      guard.admit();
      const call = new Call(clock, hangs, undefined);
      call.admittedAtMs = 0;
      nowMs = 100;
      const answer = await guard.admit(call);
      expect(isRefusal(answer)).toBe(false);
      call.abort();
      expect(guard.waiting).toBe(0);
    });

    it('refuses a call that was aborted before it would have had to wait', async () => {
      const clock = virtualClock();
      const guard = rateLimit({ limit: 1, whenFull: 'wait', clock });
      guard.admit();
      const call = new Call(clock, hangs, undefined);
      call.abort('gone');
      expect(await guard.admit(call)).toEqual({ error: 'gone' });
      expect([guard.waiting, clock.pendingTimers]).toEqual([0, 0]);
    });

    it('starts each waiter exactly as a list of reservations predicts, whatever comes and goes', async () => {
      const step = fc.record({
        pauseMs: fc.integer({ min: 0, max: 60 }),
        cost: fc.integer({ min: 0, max: 3 }),
        abortsAfterMs: fc.option(fc.integer({ min: 0, max: 200 })),
      });
      await fc.assert(
        fc.asyncProperty(fc.integer({ min: 3, max: 6 }), fc.array(step, { maxLength: 30 }), async (burst, steps) => {
          const clock = virtualClock();
          const guard = rateLimit({
            limit: 30,
            burst,
            cost: ({ key }) => Number(key),
            whenFull: 'wait',
            queue: 10,
            clock,
          });
          const calls = pipeline(guard);
          const starts: { index: number; atMs: number; cost: number }[] = [];
          const outcomes: Promise<{ ok: boolean }>[] = [];
          for (const [index, { pauseMs, cost, abortsAfterMs }] of steps.entries()) {
            await clock.advance(pauseMs);
            const controller = new AbortController();
            if (abortsAfterMs !== null) void clock.sleep(abortsAfterMs).then(() => controller.abort());
            outcomes.push(
              calls.attempt(() => starts.push({ index, atMs: clock.now(), cost }), {
                key: String(cost),
                signal: controller.signal,
              }),
            );
          }
          await clock.runAll();
          await Promise.all(outcomes);
          // Nobody overtakes, and no stretch of time sees more than the burst and what the rate grants for its length.
          expect(starts.map(({ index }) => index)).toEqual(starts.map(({ index }) => index).toSorted((a, b) => a - b));
          for (let first = 0; first < starts.length; first++) {
            let sum = 0;
            for (let last = first; last < starts.length; last++) {
              sum += starts[last]!.cost;
              const stretchMs = starts[last]!.atMs - starts[first]!.atMs;
              expect(sum).toBeLessThanOrEqual(burst + stretchMs * 0.03 + 1e-3);
            }
          }
          expect([guard.waiting, clock.pendingTimers]).toEqual([0, 0]);
        }),
        { seed: 27, numRuns: 200 },
      );
    });
  });

  it('gives nothing back for a call that was refused further inside or released', async () => {
    const clock = virtualClock();
    const guard = rateLimit({ limit: 5, clock });
    const calls = pipeline(guard, bulkhead({ limit: 1 }));
    await Promise.all([calls.attempt(async () => 1), calls.attempt(async () => 2)]);
    expect(guard.remaining).toBe(3);
  });

  it('grants its limit per second, all of it at once, by default', async () => {
    const clock = virtualClock();
    const guard = rateLimit({ limit: 4, clock });
    const admitted = () =>
      Array.from({ length: 5 }, () => guard.admit() as Permit | Refusal).filter((a) => !isRefusal(a));
    expect(admitted()).toHaveLength(4);
    await clock.advance(999);
    expect(guard.remaining).toBe(3);
    await clock.advance(1);
    expect(admitted()).toHaveLength(4);
    expect(guard.resetMs).toBe(1_000);
  });

  it('uses the clock of its calls if it has none, and that of the system for direct calls', async () => {
    const clock = virtualClock();
    const guard = rateLimit({ limit: 1, period: '1h' });
    expect([guard.remaining, isRefusal(guard.admit() as Permit | Refusal), guard.remaining]).toEqual([1, false, 0]);
    const shared = rateLimit({ limit: 1, period: '1h' });
    const calls = pipeline(timeout({ after: 5, clock }), retry({ attempts: 1 }), shared);
    await calls.execute(() => 1);
    expect([shared.remaining, shared.resetMs]).toEqual([0, 3_600_000]);
    await clock.advance('1h');
    expect([shared.remaining, shared.resetMs]).toEqual([1, 0]);
  });

  it('captures a stack for a refusal only if asked', () => {
    for (const stack of [undefined, false, true]) {
      const guard = rateLimit({ limit: 1, clock: virtualClock(), ...(stack === undefined ? {} : { stack }) });
      guard.admit();
      const { error } = guard.admit() as Refusal;
      expect((error as Error).stack?.includes('\n    at ')).toBe(stack ?? false);
    }
  });

  it('describes what it does', () => {
    expect(rateLimit({ limit: 5, burst: 2 }).traits).toMatchObject({
      kind: 'rate-limit',
      summary: 'lets 5 per 1000 ms start, 2 at once',
    });
    expect(rateLimit({ limit: 5, whenFull: 'wait' }).traits?.summary).toBe(
      'lets 5 per 1000 ms start, 5 at once, and others wait',
    );
  });

  it('queues a hundred by default', () => {
    const guard = rateLimit({ limit: 1, whenFull: 'wait', clock: virtualClock() });
    guard.admit();
    for (let call = 0; call < 100; call++) void guard.admit();
    expect(guard.waiting).toBe(100);
    expect(isRefusal(guard.admit() as Refusal)).toBe(true);
  });

  it('tolerates a hook that throws', async () => {
    const guard = rateLimit({
      limit: 1,
      clock: virtualClock(),
      on() {
        throw new Error('hook');
      },
    });
    guard.admit();
    expect(isRefusal(guard.admit() as Refusal)).toBe(true);
  });

  it.each([
    [{ limit: 1, burst: 1, cost: 1 }, 0],
    [{ limit: 5, cost: 0 }, 5],
    [{ limit: 5, whenFull: 'wait', queue: 0, maxWait: 1 }, 4],
  ] as const)('takes the options %j', (options, remaining) => {
    const guard = rateLimit({ ...options, clock: virtualClock() });
    guard.admit();
    expect(guard.remaining).toBe(remaining);
  });

  it.each([
    [{}, 'limit'],
    [{ limit: 0 }, 'limit'],
    [{ limit: 5, period: '1 sec' }, 'period'],
    [{ limit: 5, burst: 0 }, 'burst'],
    [{ limit: 5, cost: 'one' }, 'cost'],
    [{ limit: 5, cost: '1' }, 'cost'],
    [{ limit: 5, cost: -1 }, 'cost'],
    [{ limit: 5, cost: 6 }, 'cost'],
    [{ limit: 5, cost: Number.POSITIVE_INFINITY }, 'cost'],
    [{ limit: 5, cost: null }, 'cost'],
    [{ limit: 5, whenFull: 'wait', queue: -1 }, 'queue'],
    [{ limit: 5, whenFull: 'wait', maxWait: 0 }, 'maxWait'],
    [{ limit: 5, whenFull: 'queue' }, 'whenFull'],
    [{ limit: 5, maxWait: 5 }, 'maxWait'],
    [{ limit: 5, queue: 5 }, 'queue'],
    [{ limit: 5, interval: 5 }, 'interval'],
  ])('refuses the options %j', (options, option) => {
    expect(() => rateLimit(options as never)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });
});
