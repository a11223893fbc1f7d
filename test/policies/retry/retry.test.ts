import { AsyncLocalStorage } from 'node:async_hooks';
import { describe, expect, it, vi } from 'vitest';
import {
  attemptsOf,
  bulkhead,
  circuitBreaker,
  constant,
  DeadlineExceededError,
  deadline,
  fallback,
  type Guard,
  HandlesError,
  type HoldfastEvent,
  isRejected,
  keyed,
  OptionsError,
  type Pipeline,
  pipeline,
  RateLimitedError,
  RejectedError,
  type RetryOptions,
  refuse,
  retry,
  retryBudget,
  type Strategy,
  TimeoutError,
  timeout,
} from '../../../src/index.js';
import { seededRandom, virtualClock } from '../../../src/testing/index.js';

const down = (attempt = 0) => new Error(`down ${attempt}`);

/** Runs a retry to its end in virtual time and tells what happened when. */
async function run(options: RetryOptions, task: (attempt: number) => unknown, execute: object = {}) {
  const clock = virtualClock();
  const calls: number[] = [];
  const events: HoldfastEvent[] = [];
  const steady = pipeline(retry({ random: () => 0.5, ...options, clock, on: (event) => events.push(event) }));
  const running = steady.attempt(({ attempt }) => {
    calls.push(clock.now());
    return task(attempt);
  }, execute);
  await clock.runAll();
  const outcome = await running;
  expect(clock.pendingTimers).toBe(0);
  return {
    outcome,
    calls,
    events,
    endedMs: clock.now(),
    report: attemptsOf(outcome.ok ? outcome.value : outcome.error),
  };
}

describe('retry', () => {
  it('makes three attempts by default, with full jitter from 100 ms, and rethrows the last error unchanged', async () => {
    const errors = [down(1), down(2), down(3)];
    const { outcome, calls, events, report } = await run({}, (attempt) => Promise.reject(errors[attempt - 1]));
    expect(calls).toEqual([0, 50, 150]);
    expect(outcome).toEqual({ ok: false, error: errors[2] });
    expect(report).toEqual({ attempts: 3, stoppedBy: 'attempts', errors, retryAfterMs: undefined });
    expect(events).toEqual([
      {
        type: 'retry',
        name: 'retry',
        attempt: 1,
        delayMs: 50,
        error: errors[0],
        outcome: { ok: false, error: errors[0] },
      },
      {
        type: 'retry',
        name: 'retry',
        attempt: 2,
        delayMs: 100,
        error: errors[1],
        outcome: { ok: false, error: errors[1] },
      },
      { type: 'retry-stopped', name: 'retry', attempts: 3, stoppedBy: 'attempts', error: errors[2] },
    ]);
  });

  it('stops at the first success and reports the number of attempts', async () => {
    const { outcome, events } = await run({ attempts: 5 }, (attempt) => (attempt < 3 ? Promise.reject(down()) : 'up'));
    expect(outcome).toEqual({ ok: true, value: 'up' });
    expect(events.at(-1)).toEqual({ type: 'retry-succeeded', name: 'retry', attempts: 3 });
  });

  it('reports nothing about a call that succeeds at once', async () => {
    const { events, report } = await run({}, () => ({}));
    expect(events).toEqual([]);
    expect(report).toBeUndefined();
  });

  it.each([
    [
      'throws at once',
      () => {
        throw 'text';
      },
    ],
    ['rejects with no error', () => Promise.reject(undefined)],
    ['rejects with null', () => Promise.reject(null)],
  ])('repeats an operation that %s, and gives up with what it threw', async (_, task) => {
    const { calls, outcome } = await run({ attempts: 2 }, task);
    expect(calls).toHaveLength(2);
    expect(!outcome.ok && [undefined, null, 'text'].includes(outcome.error as never)).toBe(true);
  });

  it('passes the previous delay and its random source to a custom backoff', async () => {
    const seen: unknown[] = [];
    await run(
      {
        attempts: 3,
        backoff: ({ attempt, previousDelayMs, error, random }) => {
          seen.push([attempt, previousDelayMs, error, random()]);
          return attempt * 7;
        },
      },
      (attempt) => Promise.reject(attempt),
    );
    expect(seen).toEqual([
      [1, undefined, 1, 0.5],
      [2, 7, 2, 0.5],
    ]);
  });

  it('gives each attempt its own signal', async () => {
    const clock = virtualClock();
    const signals: AbortSignal[] = [];
    const running = pipeline(retry({ attempts: 3, backoff: constant(1), clock }), timeout(5)).attempt(({ signal }) => {
      signals.push(signal);
      return new Promise(() => {});
    });
    await clock.runAll();
    expect(await running).toMatchObject({ error: expect.any(TimeoutError) });
    expect(new Set(signals).size).toBe(3);
  });

  describe('with handles', () => {
    const isBusy = {
      handles: (outcome: { ok: boolean; value?: { status: number } }) => outcome.ok && outcome.value?.status === 503,
    };

    it('repeats a value counted as a failure, and returns the last one when it gives up', async () => {
      const { outcome, calls, report } = await run({ ...isBusy, attempts: 2 } as RetryOptions, (attempt) => ({
        status: 503,
        attempt,
      }));
      expect(calls).toHaveLength(2);
      expect(outcome).toEqual({ ok: true, value: { status: 503, attempt: 2 } });
      expect(report).toMatchObject({ attempts: 2, stoppedBy: 'attempts', errors: [undefined, undefined] });
    });

    it('hands each value that another attempt replaces to onDiscard, but not the one it returns', async () => {
      const discarded: unknown[] = [];
      const onDiscard = (value: unknown) => {
        discarded.push(value);
        throw new Error('contained');
      };
      await run({ ...isBusy, attempts: 3, onDiscard } as RetryOptions, (attempt) => ({ status: 503, attempt }));
      expect(discarded).toEqual([
        { status: 503, attempt: 1 },
        { status: 503, attempt: 2 },
      ]);
    });

    it('hands a value over when the next operation begins: not while that waits for a place, and not later', async () => {
      const clock = virtualClock();
      const log: string[] = [];
      const plan = { ...isBusy, attempts: 2, backoff: constant(0), clock };
      const onDiscard = () => void log.push('discarded');
      const slots = bulkhead({ limit: 1, queue: 1, clock });
      const steady = pipeline(retry({ ...plan, onDiscard } as RetryOptions), slots);
      const running = steady.attempt(({ attempt }) => {
        log.push(`began ${attempt}`);
        if (attempt === 1) void pipeline(slots).execute(() => clock.sleep(50));
        return { status: attempt === 1 ? 503 : 200 };
      });
      await clock.advance(49);
      expect(log).toEqual(['began 1']);
      await clock.advance(1);
      await running;
      expect(log).toEqual(['began 1', 'discarded', 'began 2']);
    });

    it('hands a value over that is replaced without an operation', async () => {
      const discarded: unknown[] = [];
      const onDiscard = (value: unknown) => discarded.push(value);
      const fromSecond: Strategy = {
        name: 'kept',
        handle: (call, next) => (call.attempt === 1 ? next(call) : Promise.resolve({ status: 200 } as never)),
      };
      const plan = { ...isBusy, attempts: 2, backoff: constant(0), onDiscard } as RetryOptions;
      expect(await pipeline(retry(plan), fromSecond).execute(() => ({ status: 503 }))).toEqual({ status: 200 });
      expect(discarded).toEqual([{ status: 503 }]);
    });

    it('returns the value of its last attempt even if an earlier one threw', async () => {
      const discarded: unknown[] = [];
      const plan = { attempts: 2, handles: () => true, onDiscard: (value: unknown) => discarded.push(value) };
      const { outcome } = await run(plan, (attempt) => (attempt === 1 ? Promise.reject(down()) : 503));
      expect(outcome).toEqual({ ok: true, value: 503 });
      expect(discarded).toEqual([]);
    });

    const throwsAt = (attempt: number) => (outcome: { readonly value?: unknown }) => {
      if (outcome.value === attempt) throw new Error('cannot tell');
      return true;
    };

    it.each<[string, RetryOptions]>([
      ['handles, at the first one', { handles: throwsAt(1) as never }],
      ['handles, at a later one', { handles: throwsAt(2) as never, backoff: constant(0) }],
      [
        'backoff',
        { handles: () => true, backoff: (({ attempt }: { attempt: number }) => attempt === 1 && 'soon') as never },
      ],
      ['random, of a value that says when', { handles: () => true, random: () => throwsAt(1)({ value: 1 }) as never }],
      ['a budget', { handles: () => true, budget: { balance: 0, deposit() {}, tryWithdraw: () => 1 as never } }],
    ])('hands each value to onDiscard once, if the caller gets an error in its place: %s', async (_, options) => {
      for (const around of [[], [timeout('1m')]]) {
        const clock = virtualClock();
        const discarded: unknown[] = [];
        const answered: unknown[] = [];
        const plan = { ...options, clock, onDiscard: (value: unknown) => discarded.push(value) };
        const running = pipeline(retry(plan), ...around).attempt(({ attempt }) => {
          answered.push(attempt);
          return attempt;
        });
        await clock.runAll();
        expect(await running).toMatchObject({ ok: false, error: { code: 'ERR_HANDLES_FAILED' } });
        expect(discarded).toEqual(answered);
      }
    });

    it('hands a value that the handles of a guard inside could not judge to onDiscard, once', async () => {
      for (const around of [[], [timeout('1m')]]) {
        const clock = virtualClock();
        const discarded: unknown[] = [];
        const onDiscard = (value: unknown) => discarded.push(value);
        const breaker = circuitBreaker({ handles: throwsAt(1) as never, clock });
        const policy = pipeline(retry({ attempts: 2, onDiscard, clock }), breaker, ...around);
        const running = policy.attempt(({ attempt }) => attempt);
        await clock.runAll();
        expect([await running, discarded]).toEqual([{ ok: true, value: 2 }, [1]]);
        const last = await pipeline(retry({ attempts: 1, onDiscard }), breaker).attempt(() => 1);
        expect(last).toMatchObject({ error: { code: 'ERR_HANDLES_FAILED', value: undefined } });
        expect(discarded).toEqual([1, 1]);
      }
    });

    it('calls nothing in place of a missing onDiscard', async () => {
      const warning = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
      await run({ attempts: 2, handles: () => true }, () => 503);
      expect(warning).not.toHaveBeenCalled();
      warning.mockRestore();
    });

    it('makes no further attempt when onDiscard ends the call', async () => {
      const controller = new AbortController();
      const plan = { backoff: constant(0), handles: () => true, onDiscard: () => controller.abort('gone') };
      const { outcome, calls } = await run(plan, () => 503, { signal: controller.signal });
      expect(outcome).toEqual({ ok: false, error: 'gone' });
      expect(calls).toHaveLength(1);
    });

    it('hands the current value to onDiscard when the call is ended during a wait', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const discarded: unknown[] = [];
      const onDiscard = (value: unknown) => discarded.push(value);
      const steady = pipeline(retry({ ...isBusy, backoff: constant(100), clock, onDiscard } as RetryOptions));
      const running = steady.attempt(() => ({ status: 503 }), { signal: controller.signal });
      await clock.advance(50);
      controller.abort('gone');
      expect(await running).toEqual({ ok: false, error: 'gone' });
      await clock.flush();
      expect(discarded).toEqual([{ status: 503 }]);
    });

    it.each<[string, (abort: () => void) => RetryOptions]>([
      ['a listener', (abort) => ({ attempts: 1, on: ({ type }) => type === 'retry-stopped' && abort() })],
      ['a budget', (abort) => ({ budget: { balance: 0, deposit() {}, tryWithdraw: () => abort() === null } })],
    ])(
      'hands the last value to onDiscard when %s ends the call while it gives up, and reports one end',
      async (_, given) => {
        const controller = new AbortController();
        const discarded: unknown[] = [];
        const stops: unknown[] = [];
        const options = given(() => controller.abort('gone'));
        const steady = pipeline(
          retry({
            ...isBusy,
            ...options,
            onDiscard: (value) => discarded.push(value),
            on: (event) => {
              if (event.type === 'retry-stopped') stops.push(event.stoppedBy);
              options.on?.(event);
            },
          } as RetryOptions),
        );
        const outcome = await steady.attempt(() => ({ status: 503 }), { signal: controller.signal });
        expect(outcome).toEqual({ ok: false, error: 'gone' });
        await new Promise(setImmediate);
        expect(discarded).toEqual([{ status: 503 }]);
        expect(stops).toHaveLength(1);
      },
    );

    it('includes the value that it repeats in its event', async () => {
      const { events } = await run({ ...isBusy, attempts: 2 } as RetryOptions, () => ({ status: 503 }));
      expect(events[0]).toMatchObject({ error: undefined, outcome: { ok: true, value: { status: 503 } } });
    });

    it('does not repeat an error that is not counted as a failure', async () => {
      const { calls, report } = await run(isBusy as RetryOptions, () => Promise.reject(down()));
      expect(calls).toHaveLength(1);
      expect(report?.stoppedBy).toBe('classifier');
    });

    it('decides alone: an error of any class is repeated if it says so', async () => {
      const { calls } = await run({ attempts: 2, handles: () => true }, () => Promise.reject(new TypeError('x')));
      expect(calls).toHaveLength(2);
    });

    it('is called once for each outcome', async () => {
      const asked: unknown[] = [];
      await run({ attempts: 3, handles: (outcome) => asked.push(outcome) > 0 }, (attempt) =>
        attempt === 2 ? attempt : Promise.reject(attempt),
      );
      expect(asked).toEqual([
        { ok: false, error: 1 },
        { ok: true, value: 2 },
        { ok: false, error: 3 },
      ]);
    });

    it('rejects with a HandlesError when it throws, with the error of the call as its cause', async () => {
      const [bug, cause] = [new Error('bug'), down()];
      const broken = () => {
        throw bug;
      };
      const { outcome, report, events } = await run({ handles: broken }, () => Promise.reject(cause));
      expect(report).toEqual({ attempts: 1, stoppedBy: 'classifier', errors: [cause], retryAfterMs: undefined });
      const error = !outcome.ok && outcome.error;
      expect(events).toEqual([{ type: 'retry-stopped', name: 'retry', attempts: 1, stoppedBy: 'classifier', error }]);
      expect(outcome).toMatchObject({
        ok: false,
        error: {
          code: 'ERR_HANDLES_FAILED',
          thrown: bug,
          cause,
          message: '"retry": its "handles" function failed: bug',
        },
      });
      expect((await run({ handles: broken }, () => 1)).outcome).toMatchObject({ ok: false, error: { cause: bug } });
    });
  });

  it.each([[Number.NaN], [-1], ['5'], ['5s'], [undefined]])(
    'rejects with a HandlesError when backoff returns %s',
    async (delay) => {
      const cause = down();
      const { outcome, calls } = await run({ backoff: () => delay as number }, () => Promise.reject(cause));
      expect(outcome).toMatchObject({ ok: false, error: expect.any(HandlesError) });
      expect(outcome).toMatchObject({
        error: { cause, message: expect.stringContaining('"backoff" function failed: a delay is a number') },
      });
      expect(calls).toHaveLength(1);
    },
  );

  it('waits no longer than a platform timer can, whatever backoff returns', async () => {
    const { events } = await run({ attempts: 2, backoff: () => Number.POSITIVE_INFINITY }, () =>
      Promise.reject(down()),
    );
    expect(events[0]).toMatchObject({ delayMs: 2 ** 31 - 1 });
  });

  describe('and an abort by the caller', () => {
    it('ends a wait at once with the reason and does not run the operation again', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const reason = new Error('user left');
      let calls = 0;
      const events: HoldfastEvent[] = [];
      const running = pipeline(retry({ backoff: constant(400), clock, on: (event) => events.push(event) })).execute(
        () => {
          calls++;
          throw down();
        },
        { signal: controller.signal },
      );
      await clock.advance(50);
      controller.abort(reason);
      await expect(running).rejects.toBe(reason);
      expect(attemptsOf(reason)).toMatchObject({ attempts: 1, stoppedBy: 'abort' });
      expect(events.at(-1)).toMatchObject({ type: 'retry-stopped', stoppedBy: 'abort', error: reason });
      expect([clock.pendingTimers, calls]).toEqual([0, 1]);
      await clock.advance('1m');
      expect(calls).toBe(1);
    });

    it('asks for no further attempt when the operation itself ends its call', async () => {
      const controller = new AbortController();
      const budget = retryBudget({ initial: 5, minPerSecond: 0 });
      const { outcome, calls, events } = await run(
        { budget },
        () => {
          controller.abort('gone');
          throw down();
        },
        { signal: controller.signal },
      );
      expect(outcome).toEqual({ ok: false, error: 'gone' });
      expect([calls.length, budget.balance]).toEqual([1, 5]);
      expect(events.map(({ type }) => type)).toEqual(['retry-stopped']);
    });

    it('starts no wait if the abort comes while the retry is reported', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const steady = pipeline(
        retry({ backoff: constant(400), clock, on: (event) => event.type === 'retry' && controller.abort('gone') }),
      );
      const outcome = await steady.attempt(() => Promise.reject(down()), { signal: controller.signal });
      expect(outcome).toEqual({ ok: false, error: 'gone' });
      await clock.flush();
      expect(clock.pendingTimers).toBe(0);
    });

    it('does not abort attempts that have ended', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const signals: AbortSignal[] = [];
      const running = pipeline(retry({ backoff: constant(10), clock })).attempt(
        ({ signal }) => (signals.push(signal) < 3 ? Promise.reject(down()) : new Promise(() => {})),
        { signal: controller.signal },
      );
      await clock.runAll();
      controller.abort('gone');
      await running;
      expect(signals.slice(1).map(({ aborted }) => aborted)).toEqual([false, true]);
    });

    it.each([
      ['succeeds', 'late'],
      ['fails', down()],
    ])('reports no attempt that %s after it', async (_, answer) => {
      const clock = virtualClock();
      const controller = new AbortController();
      const reason = new Error('gone');
      const events: HoldfastEvent[] = [];
      const running = pipeline(retry({ backoff: constant(10), clock, on: (event) => events.push(event) })).attempt(
        async ({ attempt }) => {
          if (attempt === 1) throw down();
          await clock.sleep(100);
          if (answer instanceof Error) throw answer;
          return answer;
        },
        { signal: controller.signal },
      );
      await clock.advance(50);
      controller.abort(reason);
      await running;
      await clock.runAll();
      expect(events.map(({ type }) => type)).toEqual(['retry', 'retry-stopped']);
      expect(attemptsOf(reason)).toMatchObject({ attempts: 1, errors: [expect.any(Error)] });
    });

    it('reports no abort that comes after it gave up', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const events: HoldfastEvent[] = [];
      const slow = fallback(() => new Promise(() => {}));
      const running = pipeline(
        slow,
        retry({ attempts: 2, backoff: constant(0), clock, on: (event) => events.push(event) }),
      ).attempt(() => Promise.reject(down()), { signal: controller.signal });
      await clock.runAll();
      controller.abort('gone');
      await running;
      expect(events.map(({ type }) => type)).toEqual(['retry', 'retry-stopped']);
    });

    it('makes no further attempt after one that fails because of the abort', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      let calls = 0;
      const running = pipeline(retry({ clock })).attempt(
        ({ signal }) =>
          new Promise((_, reject) => {
            calls++;
            signal.addEventListener('abort', () => reject(signal.reason));
          }),
        { signal: controller.signal },
      );
      controller.abort('gone');
      expect(await running).toEqual({ ok: false, error: 'gone' });
      await clock.runAll();
      expect(calls).toBe(1);
    });
  });

  describe('and a deadline', () => {
    it('gives up at once when the next wait would pass it', async () => {
      const clock = virtualClock();
      const error = down();
      const running = pipeline(deadline({ after: 300, clock }), retry({ backoff: constant(300) })).attempt(() =>
        Promise.reject(error),
      );
      await clock.flush();
      expect(await running).toEqual({ ok: false, error });
      expect(attemptsOf(error)?.stoppedBy).toBe('deadline');
      expect(clock.pendingTimers).toBe(0);
    });

    it('leaves at least minAttemptTime for an attempt', async () => {
      const clock = virtualClock();
      const error = down();
      const build = (minAttemptTime: number) =>
        pipeline(deadline({ after: 300, clock }), retry({ attempts: 2, backoff: constant(200), minAttemptTime }));
      expect(await build(100).attempt(() => Promise.reject(error))).toEqual({ ok: false, error });
      expect(attemptsOf(error)).toMatchObject({ attempts: 1, stoppedBy: 'deadline' });
      const running = build(99).attempt(() => Promise.reject(error));
      await clock.runAll();
      await running;
      expect(attemptsOf(error)?.attempts).toBe(2);
    });

    it('makes no attempt if the wait ended too late', async () => {
      const clock = virtualClock();
      let calls = 0;
      const late = {
        now: () => clock.now() * 2,
        wallNow: () => clock.wallNow(),
        schedule: clock.schedule.bind(clock),
        cancel: clock.cancel.bind(clock),
      };
      const steady = pipeline(retry({ backoff: constant(60), clock: late }));
      const running = steady.attempt(
        () => {
          calls++;
          throw down();
        },
        { deadline: 100 },
      );
      await clock.runAll();
      await running;
      expect(calls).toBe(1);
    });

    it('is ended by it in the middle of an attempt, and reports the attempts before', async () => {
      const clock = virtualClock();
      const running = pipeline(deadline({ after: 100, clock }), retry({ backoff: constant(10) })).attempt(
        ({ attempt }) => (attempt === 1 ? Promise.reject(down()) : new Promise(() => {})),
      );
      await clock.runAll();
      const outcome = await running;
      expect(outcome).toMatchObject({ error: expect.any(DeadlineExceededError) });
      expect(attemptsOf(!outcome.ok && outcome.error)).toMatchObject({ attempts: 1, stoppedBy: 'abort' });
    });
  });

  describe('and Retry-After', () => {
    const busy = (retryAfterMs: number) => Object.assign(new Error('busy'), { retryAfterMs });

    it('never comes back earlier than asked, and up to a tenth later, so that not all clients come at once', async () => {
      const { calls } = await run({ attempts: 2, random: () => 0 }, () => Promise.reject(busy(2_000)));
      expect(calls).toEqual([0, 2_000]);
      const random = seededRandom(1);
      for (let trial = 0; trial < 50; trial++) {
        const [, secondMs = 0] = (await run({ attempts: 2, random }, () => Promise.reject(busy(2_000)))).calls;
        expect(secondMs).toBeGreaterThanOrEqual(2_000);
        expect(secondMs).toBeLessThan(2_200);
      }
    });

    it.each([
      [0, 2_000],
      [0.5, 2_100],
      [1, 2_200],
      [-1, 2_000],
      [2, 2_000],
      [Number.NaN, 2_000],
    ])('comes back later by the draw, if there is one: with %d at %i ms', async (draw, secondMs) => {
      const { calls } = await run({ attempts: 2, backoff: constant(0), random: () => draw }, () =>
        Promise.reject(busy(2_000)),
      );
      expect(calls).toEqual([0, secondMs]);
    });

    it('draws nothing if no time was asked for', async () => {
      let draws = 0;
      await run({ attempts: 2, backoff: constant(1), random: () => ++draws }, () => Promise.reject(down()));
      expect(draws).toBe(0);
    });

    it('keeps its own delay if that is longer', async () => {
      const { calls } = await run({ attempts: 2, backoff: constant(700) }, () => Promise.reject(busy(100)));
      expect(calls).toEqual([0, 700]);
    });

    it('gives up at once if asked to wait longer than maxRetryAfter', async () => {
      expect((await run({ attempts: 2, maxRetryAfter: '1s' }, () => Promise.reject(busy(1_000)))).calls).toHaveLength(
        2,
      );
      const { calls, report } = await run({ maxRetryAfter: '1s' }, () => Promise.reject(busy(1_001)));
      expect(calls).toEqual([0]);
      expect(report).toMatchObject({ stoppedBy: 'pushback', retryAfterMs: 1_001 });
    });

    it('reads it from a response, in seconds and as a date by the wall clock', async () => {
      const response = (value: string) => ({ status: 503, headers: new Headers({ 'retry-after': value }) });
      const handles = (outcome: { ok: boolean }) => outcome.ok;
      const options = { attempts: 2, backoff: constant(0), random: () => 0, handles };
      expect((await run(options, () => response('3'))).calls).toEqual([0, 3_000]);
      const at = new Date(virtualClock().wallNow() + 4_000).toUTCString();
      expect((await run(options, () => response(at))).calls).toEqual([0, 4_000]);
    });

    it('treats a refusal of retries as final', async () => {
      const { calls, report } = await run({}, () =>
        Promise.reject(Object.assign(new Error('x'), { headers: { 'grpc-retry-pushback-ms': '-1' } })),
      );
      expect(calls).toEqual([0]);
      expect(report).toMatchObject({ stoppedBy: 'pushback', retryAfterMs: undefined });
    });
  });

  describe('and a refusal of a policy inside', () => {
    const refusing = (retryAfterMs?: number) => {
      const guard = {
        name: 'guard',
        asked: 0,
        admit() {
          guard.asked++;
          return refuse(new RejectedError('ERR_X', 'no', { policy: 'guard', retryAfterMs }));
        },
      };
      return guard;
    };

    it('does not repeat one without a time, whatever handles says', async () => {
      const guard = refusing();
      await pipeline(retry({ handles: () => true }), guard).attempt(() => 1);
      expect(guard.asked).toBe(1);
    });

    it('waits for the time it names, if that is before the deadline', async () => {
      const clock = virtualClock();
      const guard = refusing(200);
      const running = pipeline(retry({ attempts: 2, clock, random: () => 0 }), guard).attempt(() => 1);
      await clock.runAll();
      await running;
      expect([guard.asked, clock.now()]).toEqual([2, 200]);
      const short = refusing(200);
      await pipeline(deadline({ after: 150, clock }), retry(), short).attempt(() => 1);
      expect(short.asked).toBe(1);
    });

    const openAfter = (starts: number): Guard => ({
      name: 'guard',
      admit: () =>
        starts-- > 0 ? { settle() {}, release() {} } : refuse(new RejectedError('ERR_X', 'no', { policy: 'guard' })),
    });

    it('gives the caller the error of the attempt that was started, which a refusal would deny', async () => {
      const error = down();
      const steady = pipeline(retry({ attempts: 5, backoff: constant(0) }), openAfter(2));
      const outcome = await steady.attempt(() => Promise.reject(error));
      expect(outcome).toEqual({ ok: false, error });
      expect(attemptsOf(error)).toMatchObject({ stoppedBy: 'classifier', errors: [error, error, { code: 'ERR_X' }] });
      const neverStarted = await steady.attempt(() => Promise.reject(error));
      expect(isRejected(!neverStarted.ok && neverStarted.error)).toBe(true);
    });

    it.each([
      ['', {}],
      [', even if it would discard values', { onDiscard: () => {} }],
    ])('gives the caller the last refusal if all attempts were refused%s', async (_, options) => {
      const clock = virtualClock();
      const full: Guard = {
        name: 'guard',
        admit: () => refuse(new RateLimitedError({ policy: 'guard', limit: 1, retryAfterMs: 10 })),
      };
      const events: HoldfastEvent[] = [];
      const plan = { attempts: 3, backoff: constant(0), clock, on: (event: HoldfastEvent) => events.push(event) };
      const outcome = pipeline(retry({ ...plan, ...options }), full).attempt(() => 1);
      await clock.runAll();
      expect(isRejected(((await outcome) as { error: unknown }).error)).toBe(true);
      expect(events.at(-1)).toMatchObject({ type: 'retry-stopped', attempts: 3, stoppedBy: 'attempts' });
    });

    it.each([false, true])('gives the caller the value of that attempt, with onDiscard: %s', async (discards) => {
      const discarded: unknown[] = [];
      const plan = { attempts: 5, backoff: constant(0), handles: () => true };
      const onDiscard = (value: unknown) => discarded.push(value);
      const steady = pipeline(retry({ ...plan, ...(discards && { onDiscard }) }), openAfter(2));
      const outcome = await steady.attempt(({ attempt }) => ({ status: 503, attempt }));
      expect(outcome).toEqual({ ok: true, value: { status: 503, attempt: 2 } });
      expect(discarded).toEqual(discards ? [{ status: 503, attempt: 1 }] : []);
      const neverStarted = await steady.attempt(() => 503);
      expect(isRejected(!neverStarted.ok && neverStarted.error)).toBe(true);
    });

    it('never hands over a value that the caller has, even if the operation of a refused attempt begins late', async () => {
      const discarded: unknown[] = [];
      let beginLate: (() => unknown) | undefined;
      const refusesEarly: Strategy = {
        name: 'early',
        handle(call, next) {
          if (call.attempt === 1) return next(call);
          beginLate = () => next(call);
          return Promise.reject(new RejectedError('ERR_X', 'no', { policy: 'early' }));
        },
      };
      const plan = { attempts: 2, backoff: constant(0), handles: () => true };
      const steady = pipeline(retry({ ...plan, onDiscard: (value) => discarded.push(value) }), refusesEarly);
      expect(await steady.execute(({ attempt }) => attempt)).toBe(1);
      await beginLate?.();
      expect(discarded).toEqual([]);
    });

    it('names the discarded value if the operation itself was refused after it had begun', async () => {
      const refusal = new RejectedError('ERR_X', 'no', { policy: 'inside' });
      const steady = pipeline(retry({ attempts: 2, backoff: constant(0), handles: () => true, onDiscard: () => {} }));
      const outcome = await steady.attempt(({ attempt }) => (attempt === 1 ? 503 : Promise.reject(refusal)));
      expect(outcome).toMatchObject({ ok: false, error: { code: 'ERR_ATTEMPTS_DISCARDED', cause: refusal } });
      expect(isRejected(!outcome.ok && outcome.error)).toBe(false);
      expect(String(!outcome.ok && outcome.error)).toMatch(/"retry".*refused a further one: no$/);
    });
  });

  describe('and a budget', () => {
    it('stops with the error of the call if nothing is left', async () => {
      const budget = retryBudget({ initial: 1, minPerSecond: 0 });
      const { calls, report } = await run({ attempts: 5, budget }, () => Promise.reject(down()));
      expect(calls).toHaveLength(2);
      expect(report?.stoppedBy).toBe('budget');
    });

    it('pays in for each successful call, at once or after a retry', async () => {
      const budget = retryBudget({ initial: 5, minPerSecond: 0 });
      await run({ budget }, () => 1);
      await run({ budget }, (attempt) => (attempt === 1 ? Promise.reject(down()) : 1));
      await run({ budget, handles: ({ ok }) => !ok }, () => 1);
      expect(budget.balance).toBeCloseTo(5 + 0.3 - 1, 9);
    });

    it('takes nothing out if it does not retry', async () => {
      const budget = retryBudget({ initial: 5, minPerSecond: 0 });
      await run({ attempts: 1, budget }, () => Promise.reject(down()));
      expect(budget.balance).toBe(5);
    });

    it('bounds what a thousand calls send to a service that is down', async () => {
      const budget = retryBudget({ minPerSecond: 0 });
      let sent = 0;
      for (let call = 0; call < 1_000; call++) {
        await run({ attempts: 4, budget }, () => {
          sent++;
          throw down();
        });
      }
      expect(sent).toBe(1_010);
    });
  });

  it('makes one attempt at an unsafe operation without an idempotency key, and retries it with one', async () => {
    const unsafe = await run({}, () => Promise.reject(down()), { unsafe: true });
    expect(unsafe.calls).toHaveLength(1);
    expect(unsafe.report?.stoppedBy).toBe('unsafe');
    const keyed = await run({}, () => Promise.reject(down()), { unsafe: true, idempotencyKey: 'k' });
    expect(keyed.calls).toHaveLength(3);
  });

  it('runs the attempts after a timed-out one in the asynchronous context of the caller, whoever moves the clock', async () => {
    const clock = virtualClock();
    const requests = new AsyncLocalStorage<string>();
    const seen: unknown[] = [];
    const look = () => seen.push(requests.getStore());
    const handles = () => look() > 0;
    const retried = pipeline(
      retry({ backoff: constant(100), handles, on: look, clock }),
      timeout({ after: 50, clock }),
    );
    const running = requests.run('mine', () =>
      retried.execute(({ attempt }) => {
        look();
        return attempt === 3 ? 'third' : new Promise<string>(() => {});
      }),
    );
    await requests.run('another', () => clock.advance(300));
    expect(await running).toBe('third');
    expect(new Set(seen)).toEqual(new Set(['mine']));
  });

  it('ends its loop when an outer timeout ends the call', async () => {
    const clock = virtualClock();
    let calls = 0;
    const running = pipeline(timeout({ after: 90, clock }), retry({ attempts: 100, backoff: constant(20) })).attempt(
      async () => {
        calls++;
        await clock.sleep(20);
        throw down();
      },
    );
    await clock.advance(90);
    expect(await running).toMatchObject({ error: expect.any(TimeoutError) });
    const callsThen = calls;
    await clock.runAll();
    expect(calls).toBe(callsThen);
    expect(callsThen).toBe(3);
  });

  describe('inside another retry', () => {
    const three = () => retry({ attempts: 3, backoff: constant(0) });
    const inner = () => keyed(() => pipeline(three()), { key: () => 'all' });

    it.each<[string, () => Pipeline, number]>([
      ['is left out, because attempts would multiply', () => pipeline(three(), inner()), 3],
      ['is left out behind a guard, too', () => pipeline(timeout(1_000), three(), inner()), 3],
      ['makes its attempts where the outer one makes only one', () => pipeline(retry({ attempts: 1 }), inner()), 3],
      ['makes its attempts behind a guard, too', () => pipeline(timeout(1_000), retry({ attempts: 1 }), inner()), 3],
    ])('%s', async (_, make, attempts) => {
      let calls = 0;
      const error = down();
      const outcome = await make().attempt(() => {
        calls++;
        throw error;
      });
      expect(outcome).toEqual({ ok: false, error });
      expect(calls).toBe(attempts);
    });

    it('reports that nesting stopped it', async () => {
      const reports: unknown[] = [];
      const heard = keyed(
        () => pipeline(retry({ on: (event) => event.type === 'retry-stopped' && reports.push(event.stoppedBy) })),
        { key: () => 'all' },
      );
      await pipeline(retry({ attempts: 2, backoff: constant(0) }), heard).attempt(() => Promise.reject(down()));
      expect(reports).toEqual(['nested', 'nested']);
    });
  });

  it('describes what it does', () => {
    expect(retry().traits).toMatchObject({
      kind: 'retry',
      summary: 'makes up to 3 attempts, waiting 0 to 5000 ms with full jitter',
      attempts: 3,
      totalDelayMs: 300,
      hasBudget: false,
    });
    expect(retry({ backoff: () => 1, budget: retryBudget() }).traits).toMatchObject({
      summary: 'makes up to 3 attempts, drawn from a budget',
      totalDelayMs: undefined,
      hasBudget: true,
    });
  });

  it.each([
    ['attempts', { attempts: 0 }],
    ['attempts', { attempts: 1_001 }],
    ['attempts', { attempts: 1.5 }],
    ['backoff', { backoff: 100 }],
    ['budget', { budget: { deposit() {} } }],
    ['budget', { budget: { tryWithdraw: () => true } }],
    ['handles', { handles: [503] }],
    ['maxRetryAfter', { maxRetryAfter: -1 }],
    ['minAttemptTime', { minAttemptTime: -1 }],
    ['onDiscard', { onDiscard: true }],
    ['random', { random: 0.5 }],
    ['retries', { retries: 3 }],
  ])('refuses a wrong "%s" at once: %j', (option, options) => {
    expect(() => retry(options as never)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });

  it('accepts zero as a limit', async () => {
    const error = Object.assign(new Error('busy'), { retryAfterMs: 1 });
    const { calls, report } = await run({ attempts: 1_000, maxRetryAfter: 0, minAttemptTime: 0 }, () =>
      Promise.reject(error),
    );
    expect([calls.length, report?.stoppedBy]).toEqual([1, 'pushback']);
  });

  it('treats an OptionsError of an inner pipeline like any other error', async () => {
    const { outcome } = await run({ attempts: 1 }, () => retry({ attempts: 0 }));
    expect(outcome).toMatchObject({ error: expect.any(OptionsError) });
  });

  it('serves many calls at once without mixing them up', async () => {
    const clock = virtualClock();
    const steady = pipeline(retry({ attempts: 4, clock, random: seededRandom(2) }));
    const all = Promise.all(
      Array.from({ length: 200 }, (_, id) =>
        steady.execute(({ attempt }) => (attempt <= id % 4 ? Promise.reject(down(id)) : `${id}:${attempt}`)),
      ),
    );
    await clock.runAll();
    expect(await all).toEqual(Array.from({ length: 200 }, (_, id) => `${id}:${(id % 4) + 1}`));
  });
});

describe('attemptsOf', () => {
  it('knows nothing about errors that no retry gave up with', () => {
    for (const stranger of [new Error('x'), undefined, 'text', null, 5]) expect(attemptsOf(stranger)).toBeUndefined();
  });

  it('knows nothing before any retry has given up', () => {
    const shared = globalThis as { [key: symbol]: unknown };
    const key = Symbol.for('holdfast.attempts');
    const reports = shared[key];
    delete shared[key];
    try {
      expect(attemptsOf(new Error('x'))).toBeUndefined();
    } finally {
      shared[key] = reports;
    }
  });

  it('has no report for the refusal of a guard outside of a retry', async () => {
    const guard: Guard = { name: 'g', admit: () => refuse(new RejectedError('ERR_X', 'no', { policy: 'g' })) };
    const outcome = await pipeline(guard, retry()).attempt(() => 1);
    expect(attemptsOf(!outcome.ok && outcome.error)).toBeUndefined();
  });
});
