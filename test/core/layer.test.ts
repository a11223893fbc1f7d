import { channel } from 'node:diagnostics_channel';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type Call,
  type Clock,
  circuitBreaker,
  DeadlineTooShortError,
  deadline,
  fallback,
  type Guard,
  isRefusal,
  type Outcome,
  type Permit,
  type Pipeline,
  pipeline,
  type Refusal,
  RejectedError,
  rateLimit,
  refuse,
  retry,
  type Strategy,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';
import { deferred } from '../support/deferred.ts';

type Told = readonly [what: 'settle' | 'release' | 'ended', outcome?: Outcome];

/** A guard that records what its permits are told. */
function recorder(name: string, extra: Partial<Permit> = {}): Guard & { readonly told: Told[]; admitted: number } {
  const told: Told[] = [];
  return {
    name,
    told,
    admitted: 0,
    admit() {
      this.admitted++;
      return {
        ...extra,
        settle: (outcome) => told.push(['settle', outcome]),
        release: () => told.push(['release']),
        ended: (late) => told.push(late === undefined ? ['ended'] : ['ended', late]),
      };
    },
  };
}

const passOn: Strategy = { name: 'passOn', handle: (call, next) => next(call) };
const full = new RejectedError('ERR_FULL', 'full', { policy: 'full' });
const refusing: Guard = { name: 'refusing', admit: () => refuse(full) };
const settleError = new Error('broken settle');
const throwingAtSettle: Guard = {
  name: 'throwingAtSettle',
  admit: () => ({
    settle() {
      throw settleError;
    },
    release() {},
  }),
};

describe('a layer of guards', () => {
  it('settles each permit with the outcome, then reports that the work has ended', async () => {
    const [first, second] = [recorder('first'), recorder('second')];
    await pipeline(first, second).execute(() => 1);
    const error = new Error('x');
    await pipeline(first, second).attempt(() => Promise.reject(error));
    const expected: Told[] = [
      ['settle', { ok: true, value: 1 }],
      ['ended'],
      ['settle', { ok: false, error }],
      ['ended'],
    ];
    expect(first.told).toEqual(expected);
    expect(second.told).toEqual(expected);
  });

  it('gives permits back when an inner guard refuses, and does not start the operation', async () => {
    const [outer, inner] = [recorder('outer'), recorder('inner')];
    let calls = 0;
    await expect(pipeline(outer, refusing, inner).execute(() => calls++)).rejects.toBe(full);
    expect(outer.told).toEqual([['release'], ['ended']]);
    expect([inner.admitted, calls]).toEqual([0, 0]);
  });

  it('gives permits back when an inner guard throws or rejects', async () => {
    const error = new Error('broken guard');
    const throwing: Guard = {
      name: 'throwing',
      admit() {
        throw error;
      },
    };
    for (const broken of [throwing, { name: 'rejecting', admit: () => Promise.reject(error) }]) {
      const outer = recorder('outer');
      await expect(pipeline(outer, broken).execute(() => 1)).rejects.toBe(error);
      expect(outer.told).toEqual([['release'], ['ended']]);
    }
  });

  it('releases the outer permits on a refusal by an inner layer: it says nothing about the service', async () => {
    const outer = recorder('outer');
    await expect(pipeline(outer, passOn, refusing).execute(() => 1)).rejects.toBe(full);
    expect(outer.told).toEqual([['release'], ['ended']]);
  });

  it('releases the permits when the caller aborts', async () => {
    const guard = recorder('guard');
    const controller = new AbortController();
    const work = deferred<number>();
    const running = pipeline(guard).attempt(() => work.promise, { signal: controller.signal });
    controller.abort('gone');
    expect(await running).toEqual({ ok: false, error: 'gone' });
    expect(guard.told).toEqual([['release']]);
    work.resolve(1);
    await work.promise;
    expect(guard.told).toEqual([['release'], ['ended', { ok: true, value: 1 }]]);
  });

  it.each([
    ['in the same layer', (end: Guard, guard: Guard) => pipeline(end, guard)],
    ['in the same layer, further in', (end: Guard, guard: Guard) => pipeline(guard, end)],
    ['in a layer around it', (end: Guard, guard: Guard) => pipeline(end, passOn, guard)],
  ])('settles a permit with the error of a timeout %s, at once', async (_, build) => {
    const clock = virtualClock();
    const guard = recorder('guard');
    const work = deferred<number>();
    const running = build(timeout({ after: 10, clock }), guard).attempt(() => work.promise);
    await clock.advance(10);
    const outcome = await running;
    expect(outcome).toMatchObject({ ok: false, error: expect.any(TimeoutError) });
    expect(guard.told).toEqual([['settle', outcome]]);
    work.reject(new Error('late'));
    await work.promise.catch(() => {});
    await clock.flush();
    expect(guard.told).toHaveLength(2);
    expect(guard.told[1]).toMatchObject(['ended', { ok: false }]);
  });

  it('reports the end of the work to an outer permit only when the abandoned work of an inner layer has ended, too', async () => {
    const clock = virtualClock();
    const guard = recorder('guard');
    const works = [deferred<number>(), deferred<number>()];
    const backoff = () => 0;
    const running = pipeline(guard, retry({ attempts: 2, backoff, clock }), timeout({ after: 10 })).attempt(
      ({ attempt }) => works[attempt - 1]?.promise,
    );
    await clock.advance(30);
    expect(await running).toMatchObject({ ok: false, error: expect.any(TimeoutError) });
    expect(guard.told.map(([what]) => what)).toEqual(['settle']);
    works[0]?.resolve(1);
    await clock.flush();
    expect(guard.told.map(([what]) => what)).toEqual(['settle']);
    works[1]?.resolve(2);
    await clock.flush();
    expect(guard.told.map(([what]) => what)).toEqual(['settle', 'ended']);
  });

  it('rejects with the error of a permit that throws, and still settles the others', async () => {
    const [outer, inner] = [recorder('outer'), recorder('inner')];
    await expect(pipeline(outer, throwingAtSettle, inner).execute(() => 1)).rejects.toBe(settleError);
    expect([outer.told[0]?.[0], inner.told[0]?.[0]]).toEqual(['settle', 'settle']);
  });

  it('ends the call at the nearest end of all permits, with the reason of that permit', async () => {
    const clock = virtualClock();
    const mine: Guard = { name: 'mine', admit: () => ({ endsAt: 5, settle() {}, release() {} }) };
    const outcomes = [
      pipeline(timeout({ after: 20, clock }), mine, timeout({ after: 10, name: 'ten' })).attempt(
        () => new Promise(() => {}),
      ),
      pipeline(timeout({ after: 20, clock }), timeout({ after: 10, name: 'ten' })).attempt(() => new Promise(() => {})),
    ];
    await clock.advance(5);
    expect(await outcomes[0]).toMatchObject({ error: { code: 'ERR_TIMEOUT', policy: 'mine', afterMs: undefined } });
    await clock.advance(5);
    expect(await outcomes[1]).toMatchObject({ error: { code: 'ERR_TIMEOUT', policy: 'ten', afterMs: 10 } });
    expect(clock.pendingTimers).toBe(0);
  });

  it('ends the call with what endReason throws', async () => {
    const clock = virtualClock();
    const broken = new Error('broken endReason');
    const odd: Guard = {
      name: 'odd',
      admit: () => ({
        endsAt: 5,
        endReason() {
          throw broken;
        },
        settle() {},
        release() {},
      }),
    };
    const outcome = pipeline(timeout({ after: 20, clock }), odd).attempt(() => new Promise(() => {}));
    await clock.advance(5);
    expect(await outcome).toEqual({ ok: false, error: broken });
  });

  it.each<[string, (one: Guard, reads: Guard, other: Guard, clock: Clock) => Pipeline]>([
    ['inside a retry', (one, reads, other, clock) => pipeline(retry({ attempts: 1, clock }), one, reads, other)],
    ['inside a strategy', (one, reads, other) => pipeline(passOn, one, reads, other)],
    ['outermost', (one, reads, other) => pipeline(one, reads, other)],
  ])('aborts a signal that was read by a guard between two ends, %s', async (_, build) => {
    const clock = virtualClock();
    let signal: AbortSignal | undefined;
    const reads: Guard = {
      name: 'reads',
      admit(call) {
        signal = call.signal;
        return { settle() {}, release() {} };
      },
    };
    const outcome = build(timeout({ after: 20, clock }), reads, timeout({ after: 10, clock }), clock).attempt(
      () => new Promise(() => {}),
    );
    await clock.advance(10);
    expect(await outcome).toMatchObject({ ok: false, error: { code: 'ERR_TIMEOUT', afterMs: 10 } });
    expect(signal?.aborted).toBe(true);
  });

  it('ends a later attempt exactly at its end, too', async () => {
    const clock = virtualClock();
    const begun: number[] = [];
    const running = pipeline(retry({ attempts: 3, backoff: () => 0, clock }), timeout(10)).attempt(() => {
      begun.push(clock.now());
      return new Promise(() => {});
    });
    await clock.advance(30);
    expect(await running).toMatchObject({ ok: false, error: { code: 'ERR_TIMEOUT' } });
    expect(begun).toEqual([0, 10, 20]);
  });

  it('leaves no timer when a guard ends the call during admission', async () => {
    const clock = virtualClock();
    const ending: Guard = {
      name: 'ending',
      admit(call) {
        call.abort('enough');
        return { settle() {}, release() {} };
      },
    };
    const outer = recorder('outer');
    const outcome = await pipeline(outer, timeout({ after: 10, clock }), ending).attempt(() => 1);
    expect([outcome, clock.pendingTimers]).toEqual([{ ok: false, error: 'enough' }, 0]);
    expect(outer.told).toEqual([['release'], ['ended']]);
  });

  it('stops listening to the caller’s signal after refusing the call', async () => {
    const { signal } = new AbortController();
    let listeners = 0;
    const watched = Object.assign(signal, {
      addEventListener: () => listeners++,
      removeEventListener: () => listeners--,
    });
    await pipeline(refusing).attempt(() => 1, { signal: watched });
    await pipeline(recorder('outer'), refusing).attempt(() => 1, { signal: watched });
    expect(listeners).toBe(0);
  });

  it('reports a permit whose ended throws, and nothing of permits without ended', async () => {
    const events: unknown[] = [];
    const listen = (event: unknown) => events.push(event);
    channel('holdfast').subscribe(listen);
    const broken = new Error('broken ended');
    const odd = recorder('odd');
    const silent: Guard = { name: 'silent', admit: () => ({ settle() {}, release() {} }) };
    const throwing: Guard = {
      name: 'throwing',
      admit: () => ({
        settle() {},
        release() {},
        ended() {
          throw broken;
        },
      }),
    };
    try {
      expect(await pipeline(silent, odd, silent).attempt(() => 1)).toEqual({ ok: true, value: 1 });
      expect(events).toEqual([]);
      expect(await pipeline(silent, throwing, odd).attempt(() => 1)).toEqual({ ok: true, value: 1 });
    } finally {
      channel('holdfast').unsubscribe(listen);
    }
    expect(events).toEqual([{ type: 'hook-failed', name: 'pipeline', hook: 'ended', error: broken }]);
    expect(odd.told.map(([what]) => what)).toEqual(['settle', 'ended', 'settle', 'ended']);
  });

  it('uses the outermost of ends at the same instant', async () => {
    const clock = virtualClock();
    const outcome = pipeline(
      timeout({ after: 10, clock, name: 'outer' }),
      timeout({ after: 10, name: 'inner' }),
    ).attempt(() => new Promise(() => {}));
    await clock.advance(10);
    expect(await outcome).toMatchObject({ error: { code: 'ERR_TIMEOUT', policy: 'outer' } });
  });

  it('calls the own admit of a guard derived from a built-in one, instead of its fused one', async () => {
    const clock = virtualClock();
    const asked: string[] = [];
    const ours = timeout({ after: 10, clock });
    const breaker = circuitBreaker({ clock });
    const noted = (name: string, guard: Guard) => (call: Call) => {
      asked.push(name);
      return guard.admit(call);
    };
    const spread: Guard = { ...ours, admit: noted('spread', ours) };
    const inherited: Guard = Object.create(breaker, { admit: { value: noted('inherited', breaker) } });
    const both = pipeline(spread, inherited);
    for (let call = 0; call < 2; call++) await both.execute(() => 1);
    expect(asked).toEqual(['spread', 'inherited', 'spread', 'inherited']);
    const outcome = both.attempt(() => new Promise(() => {}));
    await clock.advance(10);
    expect(await outcome).toMatchObject({ error: { code: 'ERR_TIMEOUT', afterMs: 10 } });
  });

  it('shares the permit of a closed circuit between calls, none of which counts after the circuit has opened', async () => {
    const breaker = circuitBreaker({ clock: virtualClock(), window: { consecutive: 2 } });
    const guarded = pipeline(breaker);
    await guarded.execute(() => 1);
    const ends: ((answer: Promise<never>) => void)[] = [];
    const outcomes = Array.from({ length: 3 }, () => guarded.attempt(() => new Promise((end) => ends.push(end))));
    for (const end of ends) end(Promise.reject(new Error('down')));
    await Promise.all(outcomes);
    expect(breaker.snapshot()).toMatchObject({ state: 'open', generation: 1, staleResults: 1 });
  });

  it('reads the clock once, however many guards ask', async () => {
    const clock = virtualClock();
    let reads = 0;
    const counting = { ...clock, now: () => 0 * reads++, wallNow: () => 0, schedule() {}, cancel() {} };
    await pipeline(deadline({ after: 50, clock: counting }), timeout(20), timeout(10)).execute(() => 1);
    expect(reads).toBe(1);
  });

  it('ends only inner calls: a retry around it continues', async () => {
    const clock = virtualClock();
    const signals: AbortSignal[] = [];
    const running = pipeline(retry({ attempts: 2, backoff: () => 0, clock }), timeout(10)).execute((call) => {
      signals.push(call.signal);
      return call.attempt === 1 ? new Promise(() => {}) : 'second';
    });
    await clock.runAll();
    expect(await running).toBe('second');
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, false]);
  });

  describe('with a guard that queues', () => {
    /** Makes calls wait until `let(n)`. */
    function queue(): Guard & { readonly waiting: ((answer: Permit | Refusal) => void)[]; readonly calls: Call[] } {
      const waiting: ((answer: Permit | Refusal) => void)[] = [];
      const calls: Call[] = [];
      return {
        name: 'queue',
        waiting,
        calls,
        admit(call) {
          calls.push(call);
          return new Promise((resolve) => waiting.push(resolve));
        },
      };
    }

    it('starts once it is admitted, and continues with the inner guards', async () => {
      const [line, inner] = [queue(), recorder('inner')];
      const running = pipeline(line, inner).execute(() => 1);
      expect(inner.admitted).toBe(0);
      line.waiting[0]?.({ settle() {}, release() {} });
      expect(await running).toBe(1);
      expect(inner.admitted).toBe(1);
    });

    it('passes on a refusal after waiting', async () => {
      const [outer, line] = [recorder('outer'), queue()];
      const running = pipeline(outer, line).attempt(() => 1);
      line.waiting[0]?.(refuse(full));
      expect(await running).toEqual({ ok: false, error: full });
      expect(outer.told).toEqual([['release'], ['ended']]);
    });

    it('does not count the wait in an inner timeout, but in an outer deadline', async () => {
      const clock = virtualClock();
      const line = queue();
      const running = pipeline(deadline({ after: 100, clock }), line, timeout(50)).attempt(() => new Promise(() => {}));
      await clock.advance(40);
      line.waiting[0]?.({ settle() {}, release() {} });
      await clock.advance(49);
      expect(clock.nextTimerAt).toBe(90);
      await clock.advance(1);
      expect(await running).toMatchObject({ error: expect.any(TimeoutError) });

      const waiting = pipeline(deadline({ after: 100, clock }), line, timeout(50)).attempt(() => 1);
      await clock.advance(100);
      expect(await waiting).toMatchObject({ error: { code: 'ERR_DEADLINE_EXCEEDED' } });
      expect(clock.pendingTimers).toBe(0);
    });

    it('removes an aborted call from the queue, and gives a late permit back', async () => {
      const controller = new AbortController();
      const [outer, line] = [recorder('outer'), queue()];
      let calls = 0;
      const running = pipeline(outer, line).attempt(() => calls++, { signal: controller.signal });
      const { signal } = line.calls[0]!;
      controller.abort('gone');
      expect(signal.aborted).toBe(true);
      expect(await running).toEqual({ ok: false, error: 'gone' });
      const told: string[] = [];
      line.waiting[0]?.({
        settle: () => told.push('settle'),
        release: () => told.push('release'),
        ended: () => told.push('ended'),
      });
      await Promise.resolve();
      expect(told).toEqual(['release', 'ended']);
      expect(outer.told).toEqual([['release'], ['ended']]);
      expect(calls).toBe(0);
    });

    it.each<[string, (line: ReturnType<typeof queue>) => void]>([
      ['refuses', (line) => line.waiting[0]?.(refuse(full))],
      ['fails', (line) => line.waiting[0]?.(Promise.reject(new Error('broken line')) as never)],
    ])('settles no permit twice if the queue %s when the call is over', async (_, answer) => {
      const events: unknown[] = [];
      const listen = (event: unknown) => events.push(event);
      channel('holdfast').subscribe(listen);
      const controller = new AbortController();
      const [outer, line] = [recorder('outer'), queue()];
      const running = pipeline(outer, line).attempt(() => 1, { signal: controller.signal });
      controller.abort('gone');
      answer(line);
      expect(await running).toEqual({ ok: false, error: 'gone' });
      await new Promise(setImmediate);
      channel('holdfast').unsubscribe(listen);
      expect(outer.told).toEqual([['release'], ['ended']]);
      expect(events).toEqual([]);
    });

    it('gives the permits of an attempt that was given up in the queue back at once, and nobody learns from it', async () => {
      const clock = virtualClock();
      const [outer, inner, line] = [recorder('outer'), recorder('inner'), queue()];
      const running = pipeline(outer, retry({ attempts: 1, clock }), timeout(10), inner, line).attempt(() => 1);
      await clock.advance(10);
      const outcome = await running;
      expect(outcome).toMatchObject({ ok: false, error: { code: 'ERR_TIMEOUT' } });
      expect(inner.told).toEqual([['release'], ['ended']]);
      expect(outer.told).toEqual([['settle', outcome], ['ended']]);
    });

    it('learns nothing about the service from a call that times out in the queue', async () => {
      const clock = virtualClock();
      const [outer, line] = [recorder('outer'), queue()];
      const running = pipeline(deadline({ after: 10, clock }), outer, line).attempt(() => 1);
      await clock.runAll();
      await running;
      expect(outer.told).toEqual([['release'], ['ended']]);
    });
  });

  it('settles each permit of any call exactly once, then reports the end of its work; no timer is left', async () => {
    const chance = fc.constantFrom('value', 'error', 'hang', 'late value', 'late error');
    const shapes = fc.record({
      operation: chance,
      abortAt: fc.option(fc.integer({ min: 0, max: 60 })),
      outerMs: fc.integer({ min: 1, max: 60 }),
      innerMs: fc.integer({ min: 1, max: 60 }),
      waitMs: fc.option(fc.integer({ min: 0, max: 40 })),
      attempts: fc.integer({ min: 1, max: 3 }),
      refusesAt: fc.option(fc.integer({ min: 1, max: 3 })),
    });
    await fc.assert(
      fc.asyncProperty(shapes, async ({ operation, abortAt, outerMs, innerMs, waitMs, attempts, refusesAt }) => {
        const clock = virtualClock();
        const guards = [recorder('outer'), recorder('inner')] as const;
        let admissions = 0;
        const line: Guard = {
          name: 'line',
          admit() {
            if (++admissions === refusesAt) return refuse(full);
            const permit = { settle() {}, release() {} };
            return waitMs === null ? permit : clock.sleep(waitMs).then(() => permit);
          },
        };
        const controller = new AbortController();
        const all = pipeline(
          guards[0],
          timeout({ after: outerMs, clock }),
          retry({ attempts, backoff: () => 3 }),
          guards[1],
          line,
          timeout(innerMs),
        );
        const running = all.attempt(
          async () => {
            if (operation === 'hang') return await clock.sleep(500);
            if (operation.startsWith('late')) await clock.sleep(25);
            if (operation.endsWith('error')) throw new Error(operation);
            return undefined;
          },
          { signal: controller.signal },
        );
        if (abortAt !== null) {
          await clock.advance(abortAt);
          controller.abort('gone');
        }
        await clock.runAll();
        await running;
        for (const { told, admitted } of guards) {
          const ends = told.filter(([what]) => what !== 'ended').length;
          expect([ends, told.length - ends]).toEqual([admitted, admitted]);
        }
        expect(guards[0].admitted).toBe(1);
        expect(guards[0].told.at(-1)?.[0]).toBe('ended');
        expect(clock.pendingTimers).toBe(0);
      }),
      { seed: 5, numRuns: 300 },
    );
  });
});

describe('a retry in a layer', () => {
  it('ends the call with the error of handles, whichever way the attempt ended', async () => {
    const outer = recorder('outer');
    const handles = () => {
      throw new Error('broken handles');
    };
    const steady = pipeline(outer, retry({ handles, clock: virtualClock() }), recorder('inner'));
    for (const task of [() => 1, () => Promise.reject(new Error('down'))]) {
      expect(await steady.attempt(task)).toMatchObject({ ok: false, error: { code: 'ERR_HANDLES_FAILED' } });
    }
    expect(outer.told.map(([what, outcome]) => [what, outcome?.ok])).toEqual([
      ...[
        ['settle', false],
        ['ended', undefined],
        ['settle', false],
        ['ended', undefined],
      ],
    ]);
  });

  it('ends a timed-out call with the error that an inner permit throws then', async () => {
    const clock = virtualClock();
    const running = pipeline(timeout({ after: 10, clock }), retry(), throwingAtSettle).attempt(
      () => new Promise(() => {}),
    );
    await clock.advance(10);
    expect(await running).toEqual({ ok: false, error: settleError });
  });
});

describe('a guard that is asked directly with a running call', () => {
  const clock = virtualClock();
  const perSecond = () => rateLimit({ limit: 1, clock });
  /** Whether the guard admits at once, and whether it does so a second later. */
  async function twice(guard: Guard, call: Call): Promise<boolean[]> {
    const first = await guard.admit(call);
    await clock.sleep(1_000);
    return [!isRefusal(first), !isRefusal(await guard.admit(call))];
  }
  async function ended(attempt: Promise<Outcome>): Promise<Outcome> {
    await clock.runAll();
    return attempt;
  }

  it.each([
    ['the guard', (limit: Guard) => [limit]],
    ['a timeout and the guard', (limit: Guard) => [timeout({ after: 5_000, clock }), limit]],
    ['strategies and the guard', (limit: Guard) => [passOn, limit, passOn]],
  ])('uses the current time in an operation that has run for a while inside %s', async (_, around) => {
    const limit = perSecond();
    const operation = async (call: Call) => {
      await clock.sleep(1_000);
      return twice(limit, call);
    };
    const answer = await ended(pipeline(...around(limit)).attempt(operation));
    expect(answer).toEqual({ ok: true, value: [true, true] });
  });

  it('uses the current time in a custom guard that queues', async () => {
    const limit = perSecond();
    const asking: Guard = { name: 'asking', admit: async (call) => refuse(await twice(limit, call)) };
    const answer = await ended(pipeline(timeout({ after: 9_000, clock }), asking).attempt(() => 'never'));
    expect(answer).toEqual({ ok: false, error: [true, true] });
  });

  const queueing: Guard = { name: 'queueing', admit: async () => ({ settle() {}, release() {} }) };

  it.each([
    ['at once', [perSecond(), refusing]],
    ['after another one queued', [queueing, perSecond(), refusing]],
  ])('uses the current time in a fallback after a guard has refused %s', async (_, guards) => {
    const limit = perSecond();
    const around = fallback((_error, call) => twice(limit, call));
    const answer = await ended(pipeline(around, ...guards).attempt(() => 'never'));
    expect(answer).toEqual({ ok: true, value: [true, true] });
  });
});

describe('isRefusal', () => {
  it('distinguishes a refusal from a permit', () => {
    expect(isRefusal(refuse(full))).toBe(true);
    expect(isRefusal({ settle() {}, release() {} })).toBe(false);
    expect(isRefusal(timeout(5).admit())).toBe(false);
  });
});

describe('timeout and deadline', () => {
  it('capture a stack for a refusal only if asked', async () => {
    const clock = virtualClock({ now: 10 });
    const refusalOf = async (stack: boolean, guard: typeof timeout | typeof deadline) => {
      const past: Strategy = {
        name: 'past',
        handle(call, next) {
          call.deadlineMs = 5;
          return next(call);
        },
      };
      const outcome = await pipeline(past, guard({ after: 5, clock, stack })).attempt(() => 1);
      return (
        !outcome.ok && outcome.error instanceof DeadlineTooShortError && outcome.error.stack?.includes('\n    at ')
      );
    };
    for (const guard of [timeout, deadline]) {
      expect([await refusalOf(true, guard), await refusalOf(false, guard)]).toEqual([true, false]);
    }
  });

  it('refuse a call whose deadline has passed, so that nothing is started', async () => {
    const clock = virtualClock();
    for (const guard of [timeout({ after: 5, clock }), deadline({ after: 5, clock })]) {
      let calls = 0;
      const late: Strategy = {
        name: 'late',
        async handle(call, next) {
          call.deadlineMs = -1;
          return await next(call);
        },
      };
      const running = pipeline(late, guard).attempt(() => calls++);
      await clock.runAll();
      expect(await running).toMatchObject({ error: expect.any(DeadlineTooShortError) });
      expect(calls).toBe(0);
    }
  });
});

describe('a breaker alone around an operation', () => {
  const halfOpen = async (clock: ReturnType<typeof virtualClock>, timeoutMs: number) => {
    const breaker = circuitBreaker({
      ...{
        clock,
        window: { consecutive: 1 },
        openFor: 100,
        halfOpen: { permits: 1, successes: 1, timeout: timeoutMs },
      },
    });
    const guarded = pipeline(breaker);
    await guarded.attempt(() => Promise.reject(new Error('down')));
    await clock.advance(101);
    return { breaker, guarded };
  };

  it('hears of the end when the operation aborts its own call', async () => {
    const guarded = pipeline(circuitBreaker());
    const enough = new Error('enough');
    const hangs = new Promise<never>(() => {});
    const running = guarded.execute((call) => {
      call.abort(enough);
      return hangs;
    });
    await expect(running).rejects.toBe(enough);
  });

  it('hears of an abort only at the end if the operation gets its call through rest parameters, unless the last call failed', async () => {
    const clock = virtualClock();
    const guarded = pipeline(circuitBreaker({ clock }));
    const work = deferred<number>();
    const task = (...[call]: Call[]) => {
      call?.abort('enough');
      return work.promise;
    };
    const first = guarded.attempt(task);
    await guarded.attempt(() => Promise.reject(new Error('down')));
    expect(await guarded.attempt(task)).toEqual({ ok: false, error: 'enough' });
    work.resolve(1);
    expect(await first).toEqual({ ok: true, value: 1 });
  });

  it('ends a hanging probe, even if the operation does not take the call', async () => {
    const clock = virtualClock();
    const { breaker, guarded } = await halfOpen(clock, 50);
    const running = guarded.attempt(() => new Promise<never>(() => {}));
    await clock.advance(50);
    expect(await running).toMatchObject({ ok: false, error: expect.any(TimeoutError) });
    expect(breaker.state).toBe('open');
  });

  it('passes the outcome to the strategy around it, and the result of the strategy to the caller', async () => {
    const around = pipeline(
      fallback(() => 'instead'),
      circuitBreaker(),
    );
    const down = () => Promise.reject(new Error('down'));
    expect(await around.attempt(down)).toEqual({ ok: true, value: 'instead' });
    expect(await around.attempt(() => 1)).toEqual({ ok: true, value: 1 });
    expect(await around.execute(down)).toBe('instead');
  });

  it('is not alone with an inner guard or strategy', async () => {
    const inner = recorder('inner');
    await pipeline(circuitBreaker(), inner).execute(() => 1);
    let steps = 0;
    const counting: Strategy = {
      name: 'counting',
      handle(call, next) {
        steps++;
        return next(call);
      },
    };
    await pipeline(circuitBreaker(), counting).execute(() => 1);
    let attempts = 0;
    const flaky = () => (++attempts === 1 ? Promise.reject(new Error('reset')) : 'served');
    const clock = virtualClock();
    const running = pipeline(circuitBreaker({ clock }), retry({ attempts: 2, backoff: () => 0 })).execute(flaky);
    await clock.runAll();
    expect([inner.admitted, steps, await running]).toEqual([1, 1, 'served']);
  });

  it('counts and answers each call separately, even if operations call through it and use different methods', async () => {
    const breaker = circuitBreaker();
    const guarded = pipeline(breaker);
    const inner: Promise<unknown>[] = [];
    const outer = () => {
      inner.push(
        guarded.attempt(() => 'inner'),
        guarded.execute(() => 'innermost'),
      );
      return 'outer';
    };
    expect([await guarded.execute(outer), await guarded.attempt(outer)]).toEqual([
      'outer',
      { ok: true, value: 'outer' },
    ]);
    expect(await Promise.all(inner.slice(0, 2))).toEqual([{ ok: true, value: 'inner' }, 'innermost']);
    expect(breaker.snapshot().window.calls).toBe(6);
    expect(await Promise.all(inner.slice(2))).toEqual([{ ok: true, value: 'inner' }, 'innermost']);
  });

  it('refuses the same way in execute() and attempt()', async () => {
    const breaker = circuitBreaker();
    const guarded = pipeline(breaker);
    breaker.isolate();
    let calls = 0;
    await expect(guarded.execute(() => calls++)).rejects.toMatchObject({ code: 'ERR_CIRCUIT_OPEN' });
    expect(await guarded.attempt(() => calls++)).toMatchObject({ ok: false, error: { code: 'ERR_CIRCUIT_OPEN' } });
    expect(calls).toBe(0);
  });

  it('ends the call with the error of handles, in place of the outcome', async () => {
    const handles = () => {
      throw new Error('broken');
    };
    const guarded = pipeline(circuitBreaker({ handles }));
    await expect(guarded.execute(() => 1)).rejects.toMatchObject({ code: 'ERR_HANDLES_FAILED' });
    expect(await guarded.attempt(() => 1)).toMatchObject({ ok: false, error: { code: 'ERR_HANDLES_FAILED' } });
  });

  it('learns nothing from a refusal by an inner policy', async () => {
    const breaker = circuitBreaker({ window: { consecutive: 1 } });
    const refused = new RejectedError('ERR_OWN', 'no room', { policy: 'own' });
    const outcome = await pipeline(breaker).attempt(() => Promise.reject(refused));
    expect([outcome, breaker.state]).toEqual([{ ok: false, error: refused }, 'closed']);
  });

  it('starts and counts nothing for a call that was already ended', async () => {
    const breaker = circuitBreaker({ window: { consecutive: 1 } });
    const signal = AbortSignal.abort(new Error('gone'));
    let calls = 0;
    const running = pipeline(breaker).execute(() => calls++, { signal });
    await expect(running).rejects.toThrow('gone');
    expect([calls, breaker.state]).toEqual([0, 'closed']);
  });
});
