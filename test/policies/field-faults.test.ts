/**
 * What libraries of this kind got wrong in the field, one promise per fault, in virtual time. The ids are those of the
 * fault table in the specification; `real-time.test.ts` keeps some of them with a real clock, server and socket.
 */
import { describe, expect, it } from 'vitest';
import {
  attemptsOf,
  constant,
  deadline,
  exponential,
  fallback,
  HandlesError,
  type HoldfastEvent,
  type Outcome,
  pipeline,
  type RetryOptions,
  retry,
  retryBudget,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { seededRandom, type VirtualClock, virtualClock } from '../../src/testing/index.js';
import { forbidUnhandledRejections } from '../support/unhandled-rejections.ts';

const hangs = () => new Promise<never>(() => {});
const down = new Error('down');
const fails = () => Promise.reject(down);

const turn = () => new Promise((resolve) => setImmediate(resolve));

forbidUnhandledRejections();

/** Records when a promise settles, and how. */
function watched<T>(clock: VirtualClock, promise: Promise<T>) {
  const seen: { atMs?: number; value?: T } = {};
  void promise.then((value) => {
    seen.atMs = clock.now();
    seen.value = value;
  });
  return seen;
}

const errorOf = (outcome: Outcome | undefined) => (outcome?.ok === false ? outcome.error : undefined);

describe('retry', () => {
  it('B09: neither changes its options nor shares state between two policies made from them', async () => {
    const clock = virtualClock();
    const options = Object.freeze({ attempts: 2, backoff: Object.freeze(constant(5)), clock });
    const before = { ...options };
    const first = pipeline(retry(options));
    const second = pipeline(retry(options));
    const running = [
      first.attempt(() => Promise.reject('user 1')),
      second.attempt(({ attempt }) => `user 2, ${attempt}`),
    ];
    await clock.runAll();
    expect(await Promise.all(running)).toEqual([
      { ok: false, error: 'user 1' },
      { ok: true, value: 'user 2, 1' },
    ]);
    expect(options).toEqual(before);
  });

  it('B09: does not notice later changes of its options', async () => {
    const clock = virtualClock();
    const options: { -readonly [Key in keyof RetryOptions]: RetryOptions[Key] } = {
      attempts: 2,
      backoff: constant(5),
      clock,
    };
    const twice = pipeline(retry(options));
    options.attempts = 9;
    options.backoff = constant('1h');
    let attempts = 0;
    const running = twice.attempt(() => {
      attempts++;
      return fails();
    });
    await clock.runAll();
    await running;
    expect([attempts, clock.now()]).toEqual([2, 5]);
  });

  it('B10: gives each attempt its own signal, so that the timeout of one leaves the next alone', async () => {
    const clock = virtualClock();
    const signals: AbortSignal[] = [];
    const running = pipeline(retry({ clock, attempts: 2, backoff: constant(5) }), timeout(100)).attempt(
      ({ signal, attempt }) => {
        signals.push(signal);
        return attempt === 1 ? hangs() : clock.sleep(50).then(() => signal.aborted);
      },
    );
    await clock.runAll();
    expect(await running).toEqual({ ok: true, value: false });
    expect(signals[0]).not.toBe(signals[1]);
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, false]);
    expect(signals[0]?.reason).toBeInstanceOf(TimeoutError);
  });

  it('B10: gives each attempt its own signal even without a timeout', async () => {
    const clock = virtualClock();
    const signals: AbortSignal[] = [];
    const running = pipeline(retry({ clock, attempts: 3, backoff: constant(5) })).attempt(({ signal }) => {
      signals.push(signal);
      return fails();
    });
    await clock.runAll();
    await running;
    expect(new Set(signals).size).toBe(3);
  });

  it('B12: rejects with a HandlesError that keeps the error of the call when handles throws', async () => {
    const broken = new TypeError('a classifier with a mistake');
    const steady = pipeline(
      retry({
        clock: virtualClock(),
        handles() {
          throw broken;
        },
      }),
    );
    const outcome = await steady.attempt(fails);
    expect(errorOf(outcome)).toBeInstanceOf(HandlesError);
    expect(errorOf(outcome)).toMatchObject({ cause: down, thrown: broken });
    await expect(steady.execute(fails)).rejects.toMatchObject({ cause: down });
  });

  it('B13: returns the same result when every hook throws, and reports a hook once', async () => {
    const warnings: Error[] = [];
    const note = (warning: Error) => void warnings.push(warning);
    process.on('warning', note);
    try {
      const clock = virtualClock();
      const heard: string[] = [];
      const on = (event: HoldfastEvent) => {
        heard.push(event.type);
        throw new Error(`hook of ${event.type}`);
      };
      const steady = pipeline(retry({ clock, attempts: 3, backoff: constant(5), on, name: 'noisy' }));
      const running = [
        steady.attempt(({ attempt }) => (attempt < 3 ? fails() : 'third time')),
        steady.attempt(fails),
        steady.attempt(() => 'at once'),
      ];
      await clock.runAll();
      expect(await Promise.all(running)).toEqual([
        { ok: true, value: 'third time' },
        { ok: false, error: down },
        { ok: true, value: 'at once' },
      ]);
      expect(new Set(heard)).toEqual(new Set(['retry', 'retry-succeeded', 'retry-stopped']));
      await turn();
      expect(warnings.filter(({ message }) => message.includes('"noisy"'))).toHaveLength(1);
    } finally {
      process.off('warning', note);
    }
  });

  it('B15: waits the same time when the wall clock is set back an hour meanwhile', async () => {
    const clock = virtualClock();
    const attemptsAt: number[] = [];
    const running = pipeline(retry({ clock, attempts: 3, backoff: constant('2s') })).attempt(() => {
      attemptsAt.push(clock.now());
      return fails();
    });
    await clock.advance('1s');
    clock.jumpWallClock(-3_600_000);
    await clock.runAll();
    await running;
    expect(attemptsAt).toEqual([0, 2_000, 4_000]);
  });

  it('R01: ends in the tick of an abort with its reason, without running the operation again', async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    let runs = 0;
    const seen = watched(
      clock,
      pipeline(retry({ clock, backoff: constant(400) })).attempt(
        () => {
          runs++;
          return fails();
        },
        { signal: controller.signal },
      ),
    );
    await clock.advance(50);
    controller.abort('gone');
    await clock.flush();
    expect(seen).toEqual({ atMs: 50, value: { ok: false, error: 'gone' } });
    expect(clock.pendingTimers).toBe(0);
    await clock.advance('1m');
    expect(runs).toBe(1);
  });

  it('R01: does not run the operation for a signal that has already aborted', async () => {
    let runs = 0;
    const outcome = await pipeline(retry({ clock: virtualClock() })).attempt(() => ++runs, {
      signal: AbortSignal.abort('gone'),
    });
    expect(outcome).toEqual({ ok: false, error: 'gone' });
    expect(runs).toBe(0);
  });

  it('R03: spreads its delays even at their cap', async () => {
    const seed = 303;
    const random = seededRandom(seed);
    const clock = virtualClock();
    const delays: number[] = [];
    const steady = pipeline(
      retry({
        clock,
        attempts: 12,
        backoff: exponential({ initial: '1s', max: '4s' }),
        random,
        on: (event) => {
          if (event.type === 'retry' && event.attempt === 11) delays.push(event.delayMs);
        },
      }),
    );
    const running = Array.from({ length: 200 }, () => steady.attempt(fails));
    await clock.runAll();
    await Promise.all(running);
    expect(delays, `seed ${seed}`).toHaveLength(200);
    expect(new Set(delays).size, `seed ${seed}`).toBeGreaterThanOrEqual(190);
    expect(Math.max(...delays), `seed ${seed}`).toBeLessThanOrEqual(4_000);
  });

  it('R05: gives up at once if the next wait would reach the deadline', async () => {
    const clock = virtualClock();
    let runs = 0;
    const seen = watched(
      clock,
      pipeline(deadline({ after: 300, clock }), retry({ backoff: constant(300) })).attempt(() => {
        runs++;
        return fails();
      }),
    );
    await clock.runAll();
    expect(seen).toEqual({ atMs: 0, value: { ok: false, error: down } });
    expect(runs).toBe(1);
    expect(attemptsOf(down)?.stoppedBy).toBe('deadline');
  });

  it('R05: starts no attempt that would have less than minAttemptTime', async () => {
    const runsWith = async (minAttemptTime: number) => {
      const clock = virtualClock();
      let runs = 0;
      const running = pipeline(
        deadline({ after: 300, clock }),
        retry({ attempts: 2, backoff: constant(250), minAttemptTime }),
      ).attempt(() => {
        runs++;
        return fails();
      });
      await clock.runAll();
      await running;
      return runs;
    };
    expect([await runsWith(49), await runsWith(50), await runsWith(51)]).toEqual([2, 1, 1]);
  });

  it('R06: gives up with the hint if the service asks for a longer wait than allowed', async () => {
    const clock = virtualClock();
    const busy = Object.assign(new Error('429'), { headers: { 'retry-after': '2' } });
    let runs = 0;
    const seen = watched(
      clock,
      pipeline(retry({ clock, maxRetryAfter: 300 })).attempt(() => {
        runs++;
        throw busy;
      }),
    );
    await clock.runAll();
    expect(seen).toEqual({ atMs: 0, value: { ok: false, error: busy } });
    expect(runs).toBe(1);
    expect(attemptsOf(busy)).toMatchObject({ stoppedBy: 'pushback', retryAfterMs: 2_000 });
  });

  it('R06: never retries earlier than the service asked for', async () => {
    const seed = 306;
    const random = seededRandom(seed);
    const clock = virtualClock();
    const secondAt: number[] = [];
    const steady = pipeline(retry({ clock, attempts: 2, backoff: constant(1), random }));
    const running = Array.from({ length: 100 }, () =>
      steady.attempt(({ attempt }) => {
        if (attempt === 2) secondAt.push(clock.now());
        throw Object.assign(new Error('429'), { headers: { 'retry-after': '2' } });
      }),
    );
    await clock.runAll();
    await Promise.all(running);
    expect(secondAt).toHaveLength(100);
    expect(Math.min(...secondAt), `seed ${seed}`).toBeGreaterThanOrEqual(2_000);
    expect(Math.max(...secondAt), `seed ${seed}`).toBeLessThanOrEqual(2_200);
  });

  it('R08: by default spreads the retries of clients that failed together', async () => {
    const gapsOf = async (seed: number) => {
      const random = seededRandom(seed);
      const clock = virtualClock();
      const gaps: number[] = [];
      const running = pipeline(
        retry({
          clock,
          random,
          on: (event) => event.type === 'retry' && gaps.push(event.delayMs),
        }),
      ).attempt(fails);
      await clock.runAll();
      await running;
      return gaps;
    };
    const all = (await Promise.all([1, 2, 3].map(gapsOf))).flat();
    expect(all).toHaveLength(6);
    expect(new Set(all).size, 'seeds 1, 2, 3').toBe(6);
  });

  it('R10: follows handles for every class of error', async () => {
    const clock = virtualClock();
    const classes = [TypeError, RangeError, SyntaxError, Error];
    const runs = classes.map(() => 0);
    const steady = pipeline(retry({ clock, attempts: 3, backoff: constant(1), handles: () => true }));
    const running = classes.map((ErrorClass, index) =>
      steady.attempt(() => {
        runs[index]!++;
        throw new ErrorClass('as asked');
      }),
    );
    await clock.runAll();
    await Promise.all(running);
    expect(runs).toEqual([3, 3, 3, 3]);
  });

  it('R20: makes no further attempt once a timeout around it has ended the call', async () => {
    const clock = virtualClock();
    let runs = 0;
    const seen = watched(
      clock,
      pipeline(timeout({ after: 120, clock }), retry({ attempts: 20, backoff: constant(10) })).attempt(async () => {
        runs++;
        await clock.sleep(40);
        throw down;
      }),
    );
    await clock.advance(120);
    expect(seen.atMs).toBe(120);
    expect(errorOf(seen.value)).toBeInstanceOf(TimeoutError);
    const runsAtTimeout = runs;
    await clock.advance(600);
    expect([runsAtTimeout, runs]).toEqual([3, 3]);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('timeout', () => {
  it('B09: neither changes nor shares its options', async () => {
    const clock = virtualClock();
    const options = Object.freeze({ after: 50, clock });
    const policies = [pipeline(timeout(options)), pipeline(timeout(options)), pipeline(deadline(options))];
    const running = policies.map((policy, index) =>
      policy.attempt(() => (index === 0 ? hangs() : clock.sleep(40).then(() => `user ${index}`))),
    );
    await clock.runAll();
    const [first, ...others] = await Promise.all(running);
    expect(errorOf(first)).toBeInstanceOf(TimeoutError);
    expect(others).toEqual([
      { ok: true, value: 'user 1' },
      { ok: true, value: 'user 2' },
    ]);
    expect(options).toEqual({ after: 50, clock });
  });

  it('B10: aborts only the signal of the one late call, with its TimeoutError', async () => {
    const clock = virtualClock();
    const quick = pipeline(timeout({ after: 100, clock }));
    const signals: AbortSignal[] = [];
    const note = (takesMs: number) =>
      quick.attempt(({ signal }) => {
        signals.push(signal);
        return clock.sleep(takesMs).then(() => 'done');
      });
    const late = note(500);
    await clock.advance(60);
    const inFlight = note(90);
    await clock.advance(50);
    const after = note(1);
    await clock.runAll();
    expect(errorOf(await late)).toBeInstanceOf(TimeoutError);
    expect([await inFlight, await after]).toEqual([
      { ok: true, value: 'done' },
      { ok: true, value: 'done' },
    ]);
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, false, false]);
    expect(signals[0]?.reason).toBe(errorOf(await late));
  });

  it('B13: ends the call with its own error when its hook throws or rejects', async () => {
    const clock = virtualClock();
    const hooks: ((event: HoldfastEvent) => void)[] = [
      () => {
        throw new Error('hook');
      },
      () => Promise.reject(new Error('hook')),
    ];
    const running = hooks.flatMap((on) => [
      pipeline(timeout({ after: 5, clock, on })).attempt(hangs),
      pipeline(deadline({ after: 5, clock, on })).attempt(hangs),
    ]);
    await clock.runAll();
    const codes = (await Promise.all(running)).map((outcome) => (errorOf(outcome) as { code: string }).code);
    expect(codes).toEqual(['ERR_TIMEOUT', 'ERR_DEADLINE_EXCEEDED', 'ERR_TIMEOUT', 'ERR_DEADLINE_EXCEEDED']);
  });

  it('B15: ends a call on time when the wall clock is set back or forward an hour meanwhile', async () => {
    for (const jumpMs of [-3_600_000, 3_600_000]) {
      const clock = virtualClock();
      const seen = [timeout, deadline].map((policy) =>
        watched(clock, pipeline(policy({ after: '2s', clock })).attempt(hangs)),
      );
      await clock.advance('1s');
      clock.jumpWallClock(jumpMs);
      await clock.advance(999);
      expect(seen.map(({ atMs }) => atMs)).toEqual([undefined, undefined]);
      await clock.advance(1);
      expect(seen.map(({ atMs }) => atMs)).toEqual([2_000, 2_000]);
    }
  });

  it("R12: rejects with the caller's reason when it aborts first, and reports no timeout", async () => {
    const clock = virtualClock();
    const events: HoldfastEvent[] = [];
    const on = (event: HoldfastEvent) => void events.push(event);
    const controller = new AbortController();
    const reason = new Error('the user has left');
    let inner: AbortSignal | undefined;
    const seen = watched(
      clock,
      pipeline(deadline({ after: '9s', clock, on }), timeout({ after: '5s', clock, on })).attempt(
        ({ signal }) => {
          inner = signal;
          return hangs();
        },
        { signal: controller.signal },
      ),
    );
    await clock.advance(30);
    controller.abort(reason);
    await clock.runAll();
    expect(seen).toEqual({ atMs: 30, value: { ok: false, error: reason } });
    expect(inner?.reason).toBe(reason);
    expect([events, clock.now()]).toEqual([[], 30]);
  });

  it("R14: does not touch the signal of a call that succeeded, even at the time of its timeout or of the caller's abort", async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    const policies = [
      pipeline(timeout({ after: 50, clock })),
      pipeline(deadline({ after: 90, clock }), retry({ attempts: 2 }), timeout(50)),
      pipeline(
        fallback(() => undefined, { clock }),
        timeout(50),
      ),
    ];
    const signals = await Promise.all(
      policies.map((policy) => policy.execute(({ signal }) => signal, { signal: controller.signal })),
    );
    await clock.advance(100);
    controller.abort('gone');
    expect(signals.map((signal) => signal?.aborted)).toEqual([false, false, false]);
  });
});

describe('fallback', () => {
  it('B12: rejects with a HandlesError that keeps the error of the call when handles throws', async () => {
    const broken = new TypeError('a classifier with a mistake');
    let answers = 0;
    const outcome = await pipeline(
      fallback(() => ++answers, {
        handles() {
          throw broken;
        },
      }),
    ).attempt(fails);
    expect(errorOf(outcome)).toBeInstanceOf(HandlesError);
    expect(errorOf(outcome)).toMatchObject({ cause: down, thrown: broken });
    expect(answers).toBe(0);
  });

  it('B13: answers even if its hook throws', async () => {
    const on = () => {
      throw new Error('hook');
    };
    expect(await pipeline(fallback(() => 'instead', { on })).execute(fails)).toBe('instead');
  });
});

describe('retryBudget', () => {
  it('B15: grants its floor by monotonic time when the wall clock is set back', async () => {
    const clock = virtualClock();
    const budget = retryBudget({ initial: 0, minPerSecond: 1, clock });
    expect([budget.tryWithdraw(), budget.tryWithdraw()]).toEqual([true, false]);
    clock.jumpWallClock(-3_600_000);
    await clock.advance('1s');
    expect([budget.tryWithdraw(), budget.tryWithdraw()]).toEqual([true, false]);
  });
});

describe('pipeline', () => {
  it('B29: owns no timer when none of its calls runs, however they ended', async () => {
    const clock = virtualClock();
    const all = pipeline(
      fallback(() => 'instead', { clock }),
      deadline('1m'),
      retry({ attempts: 2, backoff: constant('1s') }),
      timeout('10s'),
    );
    expect(clock.pendingTimers).toBe(0);
    const controller = new AbortController();
    await all.execute(() => 1);
    expect(clock.pendingTimers).toBe(0);
    const running = [all.attempt(fails), all.attempt(hangs), all.attempt(hangs, { signal: controller.signal })];
    await clock.advance('5s');
    controller.abort();
    await clock.advance('16s');
    expect(await Promise.all(running)).toMatchObject([{ ok: true }, { ok: true }, { ok: false }]);
    expect(clock.pendingTimers).toBe(0);
  });
});
