import { AsyncLocalStorage } from 'node:async_hooks';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Call } from '../../src/core/call.js';
import {
  adaptiveLimit,
  bulkhead,
  type Clock,
  circuitBreaker,
  constant,
  deadline,
  type Guard,
  HandlesError,
  type HedgeOptions,
  type HoldfastEvent,
  hedge,
  isAbandoned,
  isRejected,
  OptionsError,
  type Outcome,
  pipeline,
  RejectedError,
  refuse,
  retry,
  retryBudget,
  type Strategy,
  singleFlight,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { seededRandom, virtualClock } from '../../src/testing/index.js';

const down = (text: string | number = '') => new Error(`down ${text}`);
const passOn: Strategy = { name: 'passOn', handle: (call, next) => next(call) };
const rejected = () => new RejectedError('ERR_NO', 'not now', { policy: 'no' });

/** A clock whose timers fire this much later than they should. */
const lateClock = (clock: Clock, lagMs: () => number): Clock => ({
  now: () => clock.now() + lagMs(),
  wallNow: () => clock.wallNow(),
  schedule: (timer, atMs) => clock.schedule(timer, atMs),
  cancel: (timer) => clock.cancel(timer),
});

/** What one copy does: after this many milliseconds it returns a value, or throws an error. */
type Script = readonly [afterMs: number, answer: unknown];

/** Runs one hedged call, whose copies follow a script, to its end in virtual time. */
async function run(options: HedgeOptions, scripts: readonly Script[], execute: object = {}) {
  const clock = virtualClock();
  const events: HoldfastEvent[] = [];
  const sentMs: number[] = [];
  const attempts: number[] = [];
  const signals: AbortSignal[] = [];
  const discarded: unknown[] = [];
  const hedged = pipeline(
    hedge({
      delay: 100,
      onDiscard: (value) => discarded.push(value),
      ...options,
      clock,
      on: (event) => events.push(event),
    }),
  );
  let endedMs = -1;
  const running = hedged
    .attempt(async ({ attempt, signal }) => {
      const [afterMs, answer] = scripts[sentMs.length] ?? [0, 'a copy that no script knows of'];
      sentMs.push(clock.now());
      attempts.push(attempt);
      signals.push(signal);
      await clock.sleep(afterMs);
      if (answer instanceof Error) throw answer;
      return answer;
    }, execute)
    .finally(() => {
      endedMs = clock.now();
    });
  await clock.runAll();
  const outcome = await running;
  expect(clock.pendingTimers).toBe(0);
  return { outcome, events, sentMs, attempts, signals, discarded, endedMs };
}

describe('hedge', () => {
  it('sends no copy of a call that answers in time', async () => {
    const { outcome, sentMs, events } = await run({}, [[99, 'first']]);
    expect(outcome).toEqual({ ok: true, value: 'first' });
    expect(sentMs).toEqual([0]);
    expect(events).toEqual([]);
  });

  it('sends a copy when the delay has passed and answers with the first success', async () => {
    const { outcome, sentMs, attempts, events, endedMs } = await run({}, [
      [1_000, 'first'],
      [20, 'copy'],
    ]);
    expect(outcome).toEqual({ ok: true, value: 'copy' });
    expect(sentMs).toEqual([0, 100]);
    expect(attempts).toEqual([1, 2]);
    expect(endedMs).toBe(120);
    expect(events).toEqual([
      { type: 'hedge', name: 'hedge', copy: 1, because: 'slow', afterMs: 100 },
      { type: 'hedge-won', name: 'hedge', copy: 1, afterMs: 120 },
    ]);
  });

  it('lets the first attempt win after a copy was sent, aborts the copy and keeps the signal of the winner', async () => {
    const { outcome, signals, events } = await run({}, [
      [150, 'first'],
      [1_000, 'copy'],
    ]);
    expect(outcome).toEqual({ ok: true, value: 'first' });
    expect(signals.map(({ aborted }) => aborted)).toEqual([false, true]);
    expect(signals[1]?.reason).toMatchObject({ name: 'AbortError', message: 'Another copy ended the call' });
    expect(events.map(({ type }) => type)).toEqual(['hedge']);
  });

  it('hands the late value of a loser to onDiscard, and consumes its late error', async () => {
    const late = await run({}, [
      [1_000, 'late'],
      [20, 'copy'],
    ]);
    expect(late.discarded).toEqual(['late']);
    const { outcome, discarded } = await run({}, [
      [1_000, down()],
      [20, 'copy'],
    ]);
    expect(outcome).toEqual({ ok: true, value: 'copy' });
    expect(discarded).toEqual([]);
  });

  describe('hands to onDiscard what a copy returns for nobody from within a guard', () => {
    const guards: [string, () => (Guard | Strategy)[]][] = [
      ['one', () => [circuitBreaker()]],
      ['two and a strategy', () => [timeout('1s'), passOn, circuitBreaker()]],
    ];
    /** Two copies. The first returns after so many milliseconds, the second 120 ms after the beginning. */
    async function late(inside: readonly (Guard | Strategy)[], firstMs: number, first: unknown = 'first') {
      const clock = virtualClock();
      const discarded: unknown[] = [];
      const hedged = pipeline(hedge({ delay: 100, clock, onDiscard: (value) => discarded.push(value) }), ...inside);
      const running = hedged.attempt(async ({ attempt }) => {
        await clock.sleep(attempt === 1 ? firstMs : 20);
        return attempt === 1 ? first : 'copy';
      });
      await clock.runAll();
      return { outcome: await running, discarded };
    }

    it.each(guards)('in the turn in which another wins: %s', async (_, inside) => {
      expect(await late(inside(), 120)).toEqual({ outcome: { ok: true, value: 'first' }, discarded: ['copy'] });
    });

    it.each(guards)('after its abort: %s', async (_, inside) => {
      expect(await late(inside(), 500)).toEqual({ outcome: { ok: true, value: 'copy' }, discarded: ['first'] });
    });

    it('after a timeout inside has given it up', async () => {
      expect((await late([timeout(50)], 500)).discarded).toEqual(['first']);
    });

    it('after a timeout has given up an attempt of a retry inside, whose other timeouts do not hear of it', async () => {
      const whole = timeout({ after: '1s', onLateResult: () => expect.unreachable() });
      expect((await late([whole, retry({ backoff: constant(10) }), timeout(50)], 500)).discarded).toContain('first');
    });

    it('unless a timeout inside has a hook for it', async () => {
      const ended: unknown[] = [];
      const inside = timeout({ after: '1s', onLateResult: (value) => ended.push(value) });
      for (const firstMs of [120, 500]) expect((await late([inside], firstMs)).discarded).toEqual([]);
      expect(ended).toEqual(['copy', 'first']);
    });

    it('from a first and from a further attempt of a retry inside', async () => {
      expect((await late([bulkhead({ limit: 9 }), retry()], 500)).discarded).toEqual(['first']);
      const clock = virtualClock();
      const discarded: unknown[] = [];
      const hedged = pipeline(
        hedge({ delay: 100, clock, onDiscard: (value) => discarded.push(value) }),
        bulkhead({ limit: 9 }),
        retry({ backoff: constant(10) }),
      );
      let made = 0;
      const running = hedged.attempt(async () => {
        const number = ++made;
        if (number === 1) throw down();
        await clock.sleep(number === 2 ? 500 : 20);
        return number;
      });
      await clock.runAll();
      expect([await running, discarded]).toEqual([{ ok: true, value: 3 }, [2]]);
    });

    it('when the caller has left', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const discarded: unknown[] = [];
      const hedged = pipeline(hedge({ clock, onDiscard: (value) => discarded.push(value) }), circuitBreaker());
      const running = hedged.attempt(() => clock.sleep(50).then(() => 'late'), { signal: controller.signal });
      await clock.advance(10);
      controller.abort('gone');
      await clock.runAll();
      expect([await running, discarded]).toEqual([{ ok: false, error: 'gone' }, ['late']]);
    });

    it('but not the very value that the caller gets, which copies may share', async () => {
      const shared = singleFlight({ key: () => 'all' });
      for (const inside of [[shared], [circuitBreaker(), shared]]) {
        const { outcome, discarded } = await late(inside, 200);
        expect([outcome, discarded]).toEqual([{ ok: true, value: 'first' }, []]);
      }
    });
  });

  it('sends no more copies than max, one per delay', async () => {
    const slow: Script = [1_000, 'slow'];
    const { sentMs, endedMs } = await run({ max: 3 }, [slow, slow, slow, slow]);
    expect(sentMs).toEqual([0, 100, 200, 300]);
    expect(endedMs).toBe(1_000);
  });

  it('sends the next copy at once when one fails, and the one after that a delay later', async () => {
    const { sentMs, events, outcome } = await run({ max: 2 }, [
      [10, down(1)],
      [1_000, 'slow'],
      [5, 'quick'],
    ]);
    expect(sentMs).toEqual([0, 10, 110]);
    expect(outcome).toEqual({ ok: true, value: 'quick' });
    expect(events[0]).toEqual({ type: 'hedge', name: 'hedge', copy: 1, because: 'failed', afterMs: 10 });
  });

  it('waits for the running copy when another fails', async () => {
    const { outcome, endedMs } = await run({}, [
      [150, down()],
      [300, 'copy'],
    ]);
    expect(outcome).toEqual({ ok: true, value: 'copy' });
    expect(endedMs).toBe(400);
  });

  it('rejects with the last error unchanged, and reports all of them', async () => {
    const errors = [down(1), down(2), down(3)] as const;
    const { outcome, events, sentMs } = await run({ max: 2 }, [
      [10, errors[0]],
      [10, errors[1]],
      [10, errors[2]],
    ]);
    expect(sentMs).toEqual([0, 10, 20]);
    expect(!outcome.ok && outcome.error).toBe(errors[2]);
    expect(events.at(-1)).toEqual({ type: 'hedge-failed', name: 'hedge', copies: 2, errors: [...errors] });
  });

  it('reports no failed copies if none was sent', async () => {
    const { events } = await run({ budget: retryBudget({ initial: 0, minPerSecond: 0 }) }, [[10, down()]]);
    expect(events).toEqual([{ type: 'hedge-skipped', name: 'hedge', reason: 'budget' }]);
  });

  it('ends at once with an error that handles does not select, and aborts the rest', async () => {
    const fatal = new Error('no such user');
    const { outcome, endedMs, signals } = await run({ handles: (ended) => !ended.ok && ended.error !== fatal }, [
      [1_000, 'slow'],
      [50, fatal],
    ]);
    expect(!outcome.ok && outcome.error).toBe(fatal);
    expect(endedMs).toBe(150);
    expect(signals[0]?.aborted).toBe(true);
  });

  it('prefers a success to a value that handles counts as a failure, and hands that value to onDiscard', async () => {
    const handles = (outcome: Outcome) => !outcome.ok || outcome.value === 'busy';
    const { outcome, discarded } = await run({ handles }, [
      [10, 'busy'],
      [10, 'good'],
    ]);
    expect(outcome).toEqual({ ok: true, value: 'good' });
    expect(discarded).toEqual(['busy']);
  });

  it('returns the last value that handles counted as a failure if nothing better comes', async () => {
    const { outcome, discarded } = await run({ handles: () => true }, [
      [10, 'busy 1'],
      [10, 'busy 2'],
    ]);
    expect(outcome).toEqual({ ok: true, value: 'busy 2' });
    expect(discarded).toEqual(['busy 1']);
  });

  it('rejects with a HandlesError when handles throws', async () => {
    const { outcome, discarded } = await run(
      {
        handles: () => {
          throw new Error('broken');
        },
      },
      [[10, 'value']],
    );
    expect(!outcome.ok && outcome.error).toBeInstanceOf(HandlesError);
    expect(discarded).toEqual(['value']);
  });

  it('hands a value that the handles of a guard inside could not judge to onDiscard, once', async () => {
    const discarded: unknown[] = [];
    const broken = () => {
      throw new Error('broken');
    };
    const policy = pipeline(
      hedge({ delay: '1s', onDiscard: (value) => discarded.push(value) }),
      circuitBreaker({ handles: broken }),
    );
    let answers = 0;
    expect(await policy.attempt(() => ++answers)).toMatchObject({ error: { code: 'ERR_HANDLES_FAILED' } });
    expect([discarded, answers]).toEqual([[1, 2], 2]);
  });

  describe('with its budget', () => {
    it('continues without a copy if nothing is left, and reports it', async () => {
      const budget = retryBudget({ initial: 0, minPerSecond: 0 });
      const { outcome, sentMs, events } = await run({ budget }, [[1_000, 'first']]);
      expect(outcome).toEqual({ ok: true, value: 'first' });
      expect(sentMs).toEqual([0]);
      expect(events).toEqual([{ type: 'hedge-skipped', name: 'hedge', reason: 'budget' }]);
    });

    it('rejects with the error of the attempt if nothing is left for another', async () => {
      const budget = retryBudget({ initial: 0, minPerSecond: 0 });
      const error = down();
      const { outcome } = await run({ budget }, [[10, error]]);
      expect(!outcome.ok && outcome.error).toBe(error);
    });

    it('takes one for each copy and pays in once for each successful call', async () => {
      const budget = retryBudget({ initial: 5, ratio: 0.5, minPerSecond: 0 });
      await run({ budget, max: 2 }, [
        [1_000, 'slow'],
        [1_000, 'slow'],
        [5, 'quick'],
      ]);
      expect(budget.balance).toBe(3.5);
    });

    it('treats a throwing budget as empty', async () => {
      const broken = () => {
        throw new Error('budget');
      };
      const { outcome, sentMs } = await run({ budget: { balance: 1, deposit: broken, tryWithdraw: broken } }, [
        [1_000, 'first'],
      ]);
      expect(outcome).toEqual({ ok: true, value: 'first' });
      expect(sentMs).toEqual([0]);
    });

    it('has its own budget by default: a service that is down receives a bounded number of copies', async () => {
      const clock = virtualClock();
      const hedged = pipeline(hedge({ delay: 100, clock }));
      let sent = 0;
      for (let call = 0; call < 200; call++) {
        await hedged.attempt(() => {
          sent++;
          throw down();
        });
      }
      expect(sent).toBe(210);
    });

    it('uses its own clock for the one copy per second that an empty budget still grants', async () => {
      const clock = virtualClock();
      const hedged = pipeline(hedge({ delay: 100, clock }));
      let sent = 0;
      const send = async (calls: number) => {
        sent = 0;
        for (let call = 0; call < calls; call++) {
          await hedged.attempt(() => {
            sent++;
            throw down();
          });
        }
        return sent;
      };
      expect(await send(20)).toBe(30);
      await clock.advance('1s');
      expect(await send(5)).toBe(6);
    });
  });

  describe('with { quantile }', () => {
    const quantileRun = (count: number, options: HedgeOptions = {}) => {
      const clock = virtualClock();
      const sentMs: number[] = [];
      const hedged = pipeline(
        hedge({
          delay: { quantile: 0.9, minimumSamples: 10 },
          budget: retryBudget({ capacity: 1_000_000, initial: 1_000_000, clock }),
          clock,
          on: (event) => event.type === 'hedge' && sentMs.push(event.afterMs),
          ...options,
        }),
      );
      const call = async (...durations: readonly number[]) => {
        let copy = 0;
        const running = hedged.attempt(() => clock.sleep(durations[Math.min(copy++, durations.length - 1)]!));
        await clock.runAll();
        return running;
      };
      const warmUp = async () => {
        for (let index = 0; index < count; index++) await call(10);
      };
      return { call, warmUp, sentMs };
    };

    it('sends no copy for slowness until enough calls have succeeded', async () => {
      const { call, warmUp, sentMs } = quantileRun(9);
      await warmUp();
      await call(10_000);
      expect(sentMs).toEqual([]);
      await call(10_000);
      expect(sentMs).toEqual([10]);
    });

    it('then sends one after that quantile of the latencies', async () => {
      const { call, warmUp, sentMs } = quantileRun(10);
      await warmUp();
      await call(10_000, 1);
      expect(sentMs).toEqual([10]);
    });

    it('waits at least a millisecond', async () => {
      const { call, sentMs } = quantileRun(0);
      for (let index = 0; index < 10; index++) await call(0);
      await call(50);
      expect(sentMs).toEqual([1]);
    });

    it('does not count failures', async () => {
      const clock = virtualClock();
      const sent: HoldfastEvent[] = [];
      const hedged = pipeline(
        hedge({
          delay: { quantile: 0.9, minimumSamples: 10 },
          budget: retryBudget({ initial: 0, minPerSecond: 0, clock }),
          clock,
          on: (event) => sent.push(event),
        }),
      );
      for (let index = 0; index < 20; index++) await hedged.attempt(() => Promise.reject(down()));
      sent.length = 0;
      const running = hedged.attempt(() => clock.sleep(50));
      await clock.runAll();
      await running;
      expect(sent).toEqual([]);
    });

    it('counts a first attempt that a copy overtook as slow, however soon the copy answered', async () => {
      const { call, warmUp, sentMs } = quantileRun(10);
      await warmUp();
      await call(10_000, 0);
      await call(10_000, 0);
      expect(sentMs[0]).toBe(10);
      expect(sentMs[1]).toBeGreaterThan(10);
    });

    it('learns nothing from a copy that replaced a failed attempt', async () => {
      const clock = virtualClock();
      const sentMs: number[] = [];
      const hedged = pipeline(
        hedge({
          delay: { quantile: 0.9, minimumSamples: 10 },
          clock,
          on: (event) => event.type === 'hedge' && event.because === 'slow' && sentMs.push(event.afterMs),
        }),
      );
      const call = async (task: (attempt: number) => Promise<unknown>) => {
        const running = hedged.attempt(({ attempt }) => task(attempt));
        await clock.runAll();
        await running;
      };
      for (let index = 0; index < 10; index++) await call(() => clock.sleep(10));
      await call((attempt) => (attempt === 1 ? Promise.reject(down()) : clock.sleep(15)));
      await call(() => clock.sleep(50));
      expect(sentMs).toEqual([10]);
    });

    it('keeps to the requested share of copies, although the slow attempts that it aborts are never measured', async () => {
      for (let seed = 1; seed <= 5; seed++) {
        const random = seededRandom(seed);
        const { call, sentMs } = quantileRun(0, { delay: { quantile: 0.95, minimumSamples: 100 } });
        const calls = 3_000;
        // One call in twelve hangs for a long time, which is more than the share of copies.
        const latency = () => (random() < 0.08 ? 5_000 : 5 + random() * 10);
        for (let index = 0; index < calls; index++) await call(latency(), latency(), latency());
        expect(sentMs.length / calls, `seed ${seed}`).toBeLessThan(0.07);
        expect(sentMs.length / calls, `seed ${seed}`).toBeGreaterThan(0.03);
      }
    });
  });

  describe('with a deadline', () => {
    it('sends no copy if the delay would pass it', async () => {
      const clock = virtualClock();
      const sent: number[] = [];
      const hedged = pipeline(deadline({ after: 100, clock }), hedge({ delay: 100, clock }));
      const running = hedged.attempt(() => {
        sent.push(clock.now());
        return clock.sleep(1_000);
      });
      await clock.flush();
      expect(clock.nextTimerAt).toBe(100);
      expect(clock.pendingTimers).toBe(2); // the deadline's and the operation's
      await clock.runAll();
      expect(isAbandoned(!(await running).ok && ((await running) as { error: unknown }).error)).toBe(true);
      expect(sent).toEqual([0]);
    });
  });

  it('sends no copy for a failure after the deadline has passed, even if the timer is late', async () => {
    const clock = virtualClock();
    let lagMs = 0;
    const budget = retryBudget({ initial: 5, minPerSecond: 0 });
    const hedged = pipeline(hedge({ delay: 100, budget, clock: lateClock(clock, () => lagMs) }));
    let sent = 0;
    const error = down();
    const running = hedged.attempt(
      async () => {
        sent++;
        await clock.sleep(10);
        lagMs = 190;
        throw error;
      },
      { deadline: 200 },
    );
    await clock.advance(10);
    expect(await running).toEqual({ ok: false, error });
    expect([sent, budget.balance]).toEqual([1, 5]);
  });

  it('sends no copy if its timer is so late that the time of the call is over', async () => {
    const clock = virtualClock();
    let lagMs = 0;
    const budget = retryBudget({ initial: 5, minPerSecond: 0 });
    const hedged = pipeline(hedge({ delay: 100, budget, clock: lateClock(clock, () => lagMs) }));
    let sent = 0;
    const running = hedged.attempt(
      () => {
        sent++;
        return new Promise(() => {});
      },
      { deadline: 120 },
    );
    await clock.flush();
    lagMs = 30;
    await clock.advance(120);
    expect(await running).toMatchObject({ ok: false, error: { code: 'ERR_DEADLINE_EXCEEDED' } });
    expect([sent, budget.balance]).toEqual([1, 5]);
  });

  it('makes one attempt at an unsafe operation without an idempotency key', async () => {
    const { sentMs } = await run({}, [[1_000, 'first']], { unsafe: true });
    expect(sentMs).toEqual([0]);
    const keyed = await run(
      {},
      [
        [1_000, 'first'],
        [5, 'copy'],
      ],
      { unsafe: true, idempotencyKey: 'k' },
    );
    expect(keyed.sentMs).toEqual([0, 100]);
  });

  describe('when the caller aborts', () => {
    it('settles at once, aborts every copy with the reason, sends none and leaves no timer', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const signals: AbortSignal[] = [];
      const hedged = pipeline(hedge({ delay: 100, max: 4, clock }));
      const running = hedged.attempt(
        ({ signal }) => {
          signals.push(signal);
          return new Promise(() => {});
        },
        { signal: controller.signal },
      );
      await clock.advance(250);
      expect(signals).toHaveLength(3);
      controller.abort('gone');
      expect(signals.map(({ reason }) => reason)).toEqual(['gone', 'gone', 'gone']);
      expect(clock.pendingTimers).toBe(0);
      expect(await running).toEqual({ ok: false, error: 'gone' });
    });

    it('hands the current failed value and late values to onDiscard', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const discarded: unknown[] = [];
      const hedged = pipeline(
        hedge({ delay: 100, handles: () => true, onDiscard: (value) => discarded.push(value), clock }),
      );
      let sent = 0;
      const running = hedged.attempt(() => (sent++ === 0 ? 'busy' : clock.sleep(50).then(() => 'late')), {
        signal: controller.signal,
      });
      await clock.advance(10);
      controller.abort('gone');
      await running;
      expect(discarded).toEqual(['busy']);
      await clock.runAll();
      expect(discarded).toEqual(['busy', 'late']);
    });

    it('does not abort an attempt that has already failed', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const signals: AbortSignal[] = [];
      const running = pipeline(hedge({ delay: 100, clock })).attempt(
        ({ signal }) => (signals.push(signal) === 1 ? Promise.reject(down()) : new Promise(() => {})),
        { signal: controller.signal },
      );
      await clock.flush();
      controller.abort('gone');
      await running;
      expect(signals.map(({ aborted }) => aborted)).toEqual([false, true]);
    });

    it('sends nothing if the abort came before the call reached the hedge', async () => {
      const call = new Call(virtualClock(), () => new Promise(() => {}), undefined);
      call.abort('gone');
      let sent = 0;
      const answer = hedge().handle(call, async () => sent++);
      await expect(answer).rejects.toBe('gone');
      expect(sent).toBe(0);
    });

    it('is not affected if the abort comes after the answer', async () => {
      const clock = virtualClock();
      const call = new Call(clock, () => new Promise(() => {}), undefined);
      let sent = 0;
      const answer = hedge({ delay: 100, clock }).handle(call, () => clock.sleep(sent++ === 0 ? 1_000 : 0));
      await clock.advance(100);
      await answer;
      call.abort('gone');
      expect(call.isIdle).toBe(false);
      await clock.advance(900);
      expect(call.isIdle).toBe(true);
    });

    it.each([true, false])(
      'while handles is called, hands the value to onDiscard, whatever handles returns: %s',
      async (answer) => {
        const controller = new AbortController();
        const discarded: unknown[] = [];
        const events: HoldfastEvent[] = [];
        const hedged = pipeline(
          hedge({
            handles() {
              controller.abort('gone');
              return answer;
            },
            onDiscard: (value) => discarded.push(value),
            on: (event) => events.push(event),
          }),
        );
        let sent = 0;
        const outcome = await hedged.attempt(async () => `value ${sent++}`, { signal: controller.signal });
        expect(outcome).toEqual({ ok: false, error: 'gone' });
        expect(discarded).toEqual(['value 0']);
        expect([sent, events]).toEqual([1, []]);
      },
    );

    it('while a value is discarded, takes nothing from the budget for another copy', async () => {
      const controller = new AbortController();
      const budget = retryBudget({ initial: 5, minPerSecond: 0 });
      const hedged = pipeline(
        hedge({ max: 2, budget, handles: () => true, onDiscard: () => controller.abort('gone') }),
      );
      const outcome = await hedged.attempt(() => 'busy', { signal: controller.signal });
      expect(outcome).toEqual({ ok: false, error: 'gone' });
      expect(budget.balance).toBe(4);
    });

    it('while the winning copy is reported, hands the value to onDiscard', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const discarded: unknown[] = [];
      const hedged = pipeline(
        hedge({
          delay: 100,
          clock,
          onDiscard: (value) => discarded.push(value),
          on: (event) => event.type === 'hedge-won' && controller.abort('gone'),
        }),
      );
      let sent = 0;
      const running = hedged.attempt(() => (sent++ === 0 ? new Promise(() => {}) : 'copy'), {
        signal: controller.signal,
      });
      await clock.advance(100);
      expect(await running).toEqual({ ok: false, error: 'gone' });
      expect(discarded).toEqual(['copy']);
    });

    it('while a copy is reported, sends none', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      const hedged = pipeline(
        hedge({ delay: 100, clock, on: (event) => event.type === 'hedge' && controller.abort('gone') }),
      );
      let sent = 0;
      const running = hedged.attempt(
        () => {
          sent++;
          return new Promise(() => {});
        },
        { signal: controller.signal },
      );
      await clock.runAll();
      expect(await running).toEqual({ ok: false, error: 'gone' });
      expect(sent).toBe(1);
      expect(clock.pendingTimers).toBe(0);
    });

    it('while a skipped copy is reported, arms no timer', async () => {
      const clock = virtualClock();
      const controller = new AbortController();
      let lagMs = 0;
      const late = lateClock(clock, () => lagMs);
      const hedged = pipeline(hedge({ delay: 100, clock: late, on: () => controller.abort('gone') }));
      const running = hedged.attempt(() => new Promise(() => {}), { signal: controller.signal });
      await clock.flush();
      lagMs = 200;
      await clock.advance(100);
      expect(await running).toEqual({ ok: false, error: 'gone' });
      expect(clock.pendingTimers).toBe(0);
    });
  });

  it('runs each copy in the asynchronous context of its caller, whoever moves the clock', async () => {
    const clock = virtualClock();
    const requests = new AsyncLocalStorage<string>();
    const seen: unknown[] = [];
    const hedged = pipeline(hedge({ delay: 100, max: 2, clock, on: () => seen.push(requests.getStore()) }));
    const running = requests.run('mine', () =>
      hedged.execute(({ attempt }) => {
        seen.push(requests.getStore());
        return attempt === 3 ? 'third' : new Promise<string>(() => {});
      }),
    );
    await requests.run('another', () => clock.advance(200));
    expect(await running).toBe('third');
    expect(seen).toEqual(Array(6).fill('mine'));
  });

  it('postpones the copy while this process itself is late', async () => {
    const clock = virtualClock();
    let lagMs = 0;
    const late = lateClock(clock, () => lagMs);
    const events: HoldfastEvent[] = [];
    const hedged = pipeline(hedge({ delay: 100, clock: late, on: (event) => events.push(event) }));
    let sent = 0;
    const running = hedged.attempt<unknown>(() => (sent++ === 0 ? clock.sleep(1_000) : 'copy'));
    await clock.flush();
    lagMs = 51;
    await clock.advance(100);
    expect(events).toEqual([{ type: 'hedge-skipped', name: 'hedge', reason: 'event-loop' }]);
    lagMs = 0;
    await clock.advance(151);
    expect(await running).toEqual({ ok: true, value: 'copy' });
  });

  it.each([
    [4, 5],
    [20, 10],
    [400, 50],
  ])('with a delay of %i ms, postpones the copy if its timer is more than %i ms late', async (delay, toleratedMs) => {
    for (const [lateMs, copies] of [
      [toleratedMs, 1],
      [toleratedMs + 0.5, 0],
    ] as const) {
      const clock = virtualClock();
      let lagMs = 0;
      let sent = 0;
      const hedged = pipeline(hedge({ delay, clock: lateClock(clock, () => lagMs) }));
      const controller = new AbortController();
      const running = hedged.attempt(
        () => {
          sent++;
          return new Promise(() => {});
        },
        { signal: controller.signal },
      );
      await clock.flush();
      lagMs = lateMs;
      await clock.advance(delay);
      expect(sent).toBe(1 + copies);
      controller.abort();
      await running;
    }
  });

  describe('towards inner and outer policies', () => {
    /** A guard that records how its permits end. */
    function bookkeeper() {
      const book: string[] = [];
      const guard: Guard = {
        name: 'book',
        admit: () => ({
          settle: (outcome) => book.push(outcome.ok ? 'success' : 'failure'),
          release: () => book.push('released'),
          ended: () => book.push('ended'),
        }),
      };
      return { book, guard };
    }

    it('releases the permits of the losers, which learn nothing', async () => {
      const clock = virtualClock();
      const { book, guard } = bookkeeper();
      const hedged = pipeline(hedge({ delay: 100, clock }), guard);
      let sent = 0;
      const running = hedged.attempt(() => clock.sleep(sent++ === 0 ? 1_000 : 10));
      await clock.advance(110);
      await running;
      expect(book).toEqual(['success', 'ended', 'released']);
      await clock.runAll();
      expect(book).toEqual(['success', 'ended', 'released', 'ended']);
    });

    it('keeps the slot of an outer bulkhead until the loser has really ended', async () => {
      const clock = virtualClock();
      const { book, guard } = bookkeeper();
      const hedged = pipeline(guard, hedge({ delay: 100, clock }));
      let sent = 0;
      const running = hedged.attempt(() => clock.sleep(sent++ === 0 ? 1_000 : 10));
      await clock.advance(110);
      await running;
      expect(book).toEqual(['success']);
      await clock.advance(889);
      expect(book).toEqual(['success']);
      await clock.advance(1);
      expect(book).toEqual(['success', 'ended']);
    });

    it('gives each copy the full time of an inner timeout', async () => {
      const clock = virtualClock();
      const hedged = pipeline(hedge({ delay: 100, clock }), timeout({ after: 150, clock }));
      const running = hedged.attempt(() => new Promise(() => {}));
      await clock.advance(249);
      expect(clock.pendingTimers).toBe(1);
      await clock.advance(1);
      const outcome = await running;
      expect(!outcome.ok && outcome.error).toBeInstanceOf(TimeoutError);
    });

    it('does not fail because an inner policy refuses a copy', async () => {
      const clock = virtualClock();
      let admitted = 0;
      const one: Guard = {
        name: 'one',
        admit: () => (admitted++ === 0 ? { settle() {}, release() {} } : refuse(rejected())),
      };
      const running = pipeline(hedge({ delay: 100, clock }), one).attempt(() => clock.sleep(300).then(() => 'first'));
      await clock.runAll();
      expect(await running).toEqual({ ok: true, value: 'first' });
    });

    it('passes a refusal on at once if nothing was started, and sends no copy', async () => {
      const refusal = rejected();
      let asked = 0;
      const never: Guard = {
        name: 'never',
        admit: () => {
          asked++;
          return refuse(refusal);
        },
      };
      const outcome = await pipeline(hedge({ delay: 100 }), never).attempt(() => 1);
      expect(!outcome.ok && outcome.error).toBe(refusal);
      expect(asked).toBe(1);
    });

    it('reports copies without errors if everything sent was refused', async () => {
      const clock = virtualClock();
      const events: HoldfastEvent[] = [];
      let admitted = 0;
      const queue: Guard = {
        name: 'queue',
        admit: () => (admitted++ === 0 ? clock.sleep(150).then(() => refuse(rejected())) : refuse(rejected())),
      };
      const running = pipeline(hedge({ delay: 100, clock, on: (event) => events.push(event) }), queue).attempt(() => 1);
      await clock.runAll();
      expect(await running).toMatchObject({ ok: false, error: { code: 'ERR_NO' } });
      expect(events.at(-1)).toEqual({ type: 'hedge-failed', name: 'hedge', copies: 1, errors: [] });
    });

    it('rejects with the failure and not with a refusal if a copy was started', async () => {
      const error = down();
      let admitted = 0;
      const one: Guard = {
        name: 'one',
        admit: () => (admitted++ === 0 ? { settle() {}, release() {} } : refuse(rejected())),
      };
      const outcome = await pipeline(hedge({ delay: 100 }), one).attempt(() => Promise.reject(error));
      expect(!outcome.ok && outcome.error).toBe(error);
      expect(isRejected(!outcome.ok && outcome.error)).toBe(false);
    });
  });

  it('always answers with the first success, or else the last failure, with at most max copies', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 4 }),
        fc.array(fc.tuple(fc.integer({ min: 0, max: 400 }), fc.boolean()), { minLength: 5, maxLength: 5 }),
        async (max, plan) => {
          const scripts = plan.map(([afterMs, fails], copy): Script => [afterMs, fails ? down(copy) : `value ${copy}`]);
          const { outcome, sentMs, endedMs } = await run({ max, delay: 100 }, scripts);
          expect(sentMs.length).toBeLessThanOrEqual(max + 1);
          const ends = sentMs.map((atMs, copy) => ({ endMs: atMs + plan[copy]![0], fails: plan[copy]![1], copy }));
          const successes = ends.filter(({ fails }) => !fails).map(({ endMs }) => endMs);
          if (successes.length > 0) {
            expect(outcome.ok).toBe(true);
            expect(endedMs).toBe(Math.min(...successes));
          } else {
            expect(sentMs).toHaveLength(max + 1);
            expect(outcome.ok).toBe(false);
            expect(endedMs).toBe(Math.max(...ends.map(({ endMs }) => endMs)));
          }
        },
      ),
      { numRuns: 200 },
    );
  });

  it.each([
    ['bulkhead', () => bulkhead({ limit: 5, queue: 10 })],
    ['adaptiveLimit', () => adaptiveLimit({ initial: 5, min: 5, max: 5 })],
  ])('sends no copy into a %s with four fifths of its slots taken, and the call continues', async (_, limited) => {
    for (const [taken, copies] of [
      [2, 1],
      [3, 0],
    ] as const) {
      const clock = virtualClock();
      const limit = limited();
      for (let index = 0; index < taken; index++) limit.admit();
      const attempts: number[] = [];
      const running = pipeline(hedge({ delay: 100, clock }), limit).execute(async ({ attempt }) => {
        attempts.push(attempt);
        await clock.sleep(300);
        return attempt;
      });
      await clock.runAll();
      expect(await running).toBe(1);
      expect(attempts).toHaveLength(1 + copies);
      expect(limit.waiting).toBe(0);
    }
  });

  it('counts neither the first attempt nor a replacement of a failed one as a copy that must leave room', async () => {
    const limit = bulkhead({ limit: 5 });
    for (let taken = 0; taken < 4; taken++) limit.admit();
    const hedged = pipeline(hedge({ delay: 100, clock: virtualClock() }), limit);
    const answer = hedged.execute(({ attempt }) => (attempt === 1 ? Promise.reject(down()) : 'second'));
    expect(await answer).toBe('second');
  });

  it.each<[string, HedgeOptions]>([
    ['delay', { delay: 0 }],
    ['delay', { delay: '5 sec' as never }],
    ['delay', { delay: null as never }],
    ['quantile', { delay: { quantile: 1 } }],
    ['quantile', { delay: {} as never }],
    ['minimumSamples', { delay: { quantile: 0.9, minimumSamples: 1 } }],
    ['max', { max: 5 }],
    ['max', { max: 0 }],
    ['budget', { budget: {} as never }],
    ['onDiscard', { onDiscard: 1 as never }],
    ['maximum', { maximum: 1 } as never],
  ])('refuses a wrong %s', (option, options) => {
    expect(() => hedge(options)).toThrow(OptionsError);
    expect(() => hedge(options)).toThrow(`"${option}"`);
  });

  it('describes what it does', () => {
    expect(hedge({ delay: 20, max: 2 }).traits).toMatchObject({
      summary: 'sends up to 2 more copies, each after 20 ms, drawn from a budget',
      copies: 2,
      delayMs: 20,
      hasBudget: true,
    });
    expect(hedge().traits?.summary).toBe(
      'sends up to 1 more copy, each after the 0.95 quantile of the latencies, drawn from a budget',
    );
  });
});
