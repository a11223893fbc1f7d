import { describe, expect, it } from 'vitest';
import {
  type Call,
  DeadlineExceededError,
  DeadlineTooShortError,
  deadline,
  fallback,
  type Guard,
  OptionsError,
  pipeline,
  retry,
  type Strategy,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';
import { unhandledRejectionsOf } from '../support/unhandled-rejections.ts';

const hangs = () => new Promise<never>(() => {});

/** A strategy that only passes calls on, so that the next guards become a layer of their own. */
const passOn: Strategy = { name: 'passOn', handle: (call, next) => next(call) };

describe('pipeline', () => {
  describe.each([
    ['empty', pipeline()],
    ['of a guard', pipeline(timeout('1m'))],
    ['of a strategy', pipeline(passOn)],
    ['of both', pipeline(timeout('2m'), passOn, timeout('1m'))],
  ])('%s', (_, policies) => {
    it('returns what the operation returns: a value, a promise, a thenable, nothing', async () => {
      expect(await policies.execute(() => 1)).toBe(1);
      expect(await policies.execute(async () => 2)).toBe(2);
      expect(
        await policies.execute(
          () => ({ then: (resolve: (value: number) => void) => resolve(3) }) as PromiseLike<number>,
        ),
      ).toBe(3);
      expect(await policies.execute(() => {})).toBeUndefined();
    });

    it.each([[new Error('x')], ['text'], [undefined], [null], [0]])(
      'rejects with what the operation threw or rejected with: %s',
      async (reason) => {
        const thrown = await policies
          .execute(() => {
            throw reason;
          })
          .catch((error) => ({ error }));
        expect(thrown).toEqual({ error: reason });
        expect(await policies.execute(() => Promise.reject(reason)).catch((error) => ({ error }))).toEqual({
          error: reason,
        });
      },
    );

    it('rejects, as a thenable does', async () => {
      const thenable = {
        then: (_resolve: unknown, reject: (error: unknown) => void) => reject('no'),
      } as PromiseLike<never>;
      await expect(policies.execute(() => thenable)).rejects.toBe('no');
    });

    it('resolves with an outcome from attempt and never rejects', async () => {
      expect(await policies.attempt(() => 1)).toEqual({ ok: true, value: 1 });
      const error = new Error('x');
      expect(await policies.attempt(() => Promise.reject(error))).toEqual({ ok: false, error });
      expect(await policies.attempt(() => 1, { key: 'k', signal: new AbortController().signal })).toEqual({
        ok: true,
        value: 1,
      });
      expect(await policies.attempt(5 as never)).toMatchObject({ ok: false, error: { code: 'ERR_OPTIONS' } });
    });

    it('rejects at once with the reason of an aborting signal, and leaves no listener behind', async () => {
      const controller = new AbortController();
      const reason = new Error('user left');
      let seen: Call | undefined;
      const running = policies.execute(
        (call) => {
          seen = call;
          return hangs();
        },
        { signal: controller.signal },
      );
      controller.abort(reason);
      await expect(running).rejects.toBe(reason);
      expect(seen?.signal.reason).toBe(reason);
      expect(seen?.aborted).toBe(true);
    });

    it('does not start if the signal has already aborted', async () => {
      let calls = 0;
      const reason = new Error('too late');
      await expect(policies.execute(() => calls++, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
      expect(calls).toBe(0);
    });

    it('listens to the caller’s signal only while it runs', async () => {
      const { signal } = new AbortController();
      const added: unknown[] = [];
      const removed: unknown[] = [];
      const watched = Object.assign(signal, {
        addEventListener: (_: string, listener: unknown) => added.push(listener),
        removeEventListener: (_: string, listener: unknown) => removed.push(listener),
      });
      await policies.execute(() => 1, { signal: watched });
      await policies.attempt(() => Promise.reject(new Error('x')), { signal: watched });
      expect(added).toHaveLength(2);
      expect(removed).toEqual(added);
    });

    it('does not abort the signal of an operation that succeeded', async () => {
      const signal = await policies.execute((call) => call.signal);
      expect(signal.aborted).toBe(false);
    });

    it('passes the options of the call to the operation', async () => {
      const told = await policies.execute(
        ({ key, idempotencyKey, unsafe, attributes, attempt }) => ({
          key,
          idempotencyKey,
          unsafe,
          attributes,
          attempt,
        }),
        {
          key: 'tenant',
          idempotencyKey: 'order-1',
          unsafe: true,
          attributes: { route: '/pay' },
        },
      );
      expect(told).toEqual({
        key: 'tenant',
        idempotencyKey: 'order-1',
        unsafe: true,
        attributes: { route: '/pay' },
        attempt: 1,
      });
    });

    it('wraps a function with its parameters and its this', async () => {
      const till = {
        factor: 2,
        charge: policies.wrap(async function (this: { factor: number }, cents: number, currency: string) {
          return `${cents * this.factor} ${currency}`;
        }),
      };
      expect(await till.charge(21, 'EUR')).toBe('42 EUR');
    });

    it('keeps the name of the wrapped function and its number of parameters, which frameworks inspect', () => {
      const { name, length } = policies.wrap(function onError(_error: unknown, _request: unknown) {});
      expect([name, length]).toEqual(['onError', 2]);
    });
  });

  it('runs the policies outermost first', async () => {
    const order: string[] = [];
    const watching = (name: string): Strategy => ({
      name,
      async handle(call, next) {
        order.push(`${name} in`);
        const value = await next(call);
        order.push(`${name} out`);
        return value;
      },
    });
    const guarding = (name: string): Guard => ({
      name,
      admit() {
        order.push(`${name} in`);
        return { settle: () => order.push(`${name} out`), release() {} };
      },
    });
    await pipeline(guarding('a'), guarding('b'), watching('c'), guarding('d')).execute(() => order.push('operation'));
    expect(order.slice(0, 5)).toEqual(['a in', 'b in', 'c in', 'd in', 'operation']);
    expect(order.slice(5)).toEqual(['d out', 'c out', 'a out', 'b out']);
  });

  it('flattens another pipeline into its policies', () => {
    const inner = pipeline(retry(), timeout('1s'));
    expect(pipeline(deadline('5s'), inner).policies.map(({ name }) => name)).toEqual(['deadline', 'retry', 'timeout']);
    expect(() => pipeline(retry(), inner)).toThrow(OptionsError);
  });

  it('contains a strategy that throws instead of rejecting, or returns no promise', async () => {
    const broken: Strategy = {
      name: 'broken',
      handle() {
        throw new Error('broken');
      },
    };
    await expect(pipeline(broken).execute(() => 1)).rejects.toThrow('broken');
    const direct: Strategy<string> = { name: 'direct', handle: () => 'direct' as never };
    expect(await pipeline(direct).execute(() => 1)).toBe('direct');
  });

  it.each([
    [
      { signl: 1 },
      'execute: unknown option "signl", the options are signal, deadline, key, idempotencyKey, unsafe, attributes',
    ],
    [{ signal: 5 }, 'execute: option "signal" must be an AbortSignal, got 5'],
    [{ signal: null }, 'execute: option "signal" must be an AbortSignal, got null'],
    [{ signal: { aborted: false } }, 'execute: option "signal" must be an AbortSignal, got an object'],
    [
      { signal: { aborted: false, addEventListener() {} } },
      'execute: option "signal" must be an AbortSignal, got an object',
    ],
    [
      { signal: { aborted: false, removeEventListener() {} } },
      'execute: option "signal" must be an AbortSignal, got an object',
    ],
    [
      { signal: { addEventListener() {}, removeEventListener() {} } },
      'execute: option "signal" must be an AbortSignal, got an object',
    ],
    [
      { deadline: '5 sec' },
      "execute: option \"deadline\" must be an instant of the pipeline's clock in milliseconds or a duration literal such as '2s', got '5 sec'",
    ],
    [
      { deadline: Number.NaN },
      "execute: option \"deadline\" must be an instant of the pipeline's clock in milliseconds or a duration literal such as '2s', got NaN",
    ],
    [{ key: 5 }, 'execute: option "key" must be a string, got 5'],
    [{ unsafe: 'yes', idempotencyKey: 'k' }, 'execute: option "unsafe" must be true or false, got \'yes\''],
    [5, 'execute: options must be an object, got 5'],
    [null, 'execute: options must be an object, got null'],
    [{ idempotencyKey: '' }, 'execute: option "idempotencyKey" must be a string that is not empty, got \'\''],
    [{ idempotencyKey: 5 }, 'execute: option "idempotencyKey" must be a string that is not empty, got 5'],
    [{ attributes: null }, 'execute: option "attributes" must be an object, got null'],
    [{ attributes: 'a' }, 'execute: option "attributes" must be an object, got \'a\''],
    [
      { toString: 1 },
      'execute: unknown option "toString", the options are signal, deadline, key, idempotencyKey, unsafe, attributes',
    ],
  ])('refuses call options such as %j before the operation runs', async (options, message) => {
    let calls = 0;
    await expect(pipeline().execute(() => calls++, options as never)).rejects.toThrow(message);
    expect(calls).toBe(0);
  });

  it('names the invalid option of a call in the error', async () => {
    const error = await pipeline()
      .execute(() => 1, { key: 5 } as never)
      .catch((thrown) => thrown);
    expect(error).toMatchObject({ policy: 'execute', option: 'key', value: 5, allowed: 'a string' });
  });

  it('treats an undefined option of a call as absent', async () => {
    const absent = { signal: undefined, deadline: undefined, key: undefined, unsafe: undefined, attributes: undefined };
    const seen = await pipeline().execute(
      ({ key, unsafe, attributes, deadline: end }) => [key, unsafe, attributes, end],
      absent,
    );
    expect(seen).toEqual([undefined, false, {}, Number.POSITIVE_INFINITY]);
  });

  it('does not keep the options of a call, which may be changed after its start', async () => {
    const options = { key: 'before' };
    const running = pipeline(passOn).execute(async (call) => {
      await Promise.resolve();
      return call.key;
    }, options);
    options.key = 'after';
    expect(await running).toBe('before');
  });

  it('reads and checks options of a call that come from a prototype: of shared defaults or of a class', async () => {
    const seenWith = (options: object) =>
      pipeline().execute((call) => [call.unsafe, call.key, call.idempotencyKey, call.attributes], options);
    const defaults = { unsafe: true, key: 'k', idempotencyKey: 'i', attributes: { a: 1 } };
    expect(await seenWith(Object.create(defaults))).toEqual([true, 'k', 'i', { a: 1 }]);
    class Options {
      readonly key: string;
      constructor(key: string) {
        this.key = key;
      }
      get unsafe(): unknown {
        return this.key === 'k' ? true : 'yes';
      }
    }
    expect(await seenWith(new Options('k'))).toEqual([true, 'k', undefined, {}]);
    const message = 'execute: option "unsafe" must be true or false, got \'yes\'';
    await expect(seenWith(new Options('other'))).rejects.toThrow(message);
  });

  it('refuses an operation that is not a function', async () => {
    const error = await pipeline()
      .execute(undefined as never)
      .catch((thrown) => thrown);
    expect(error).toMatchObject({
      message: 'execute: the operation must be a function, got undefined',
      policy: 'execute',
      option: 'task',
      value: undefined,
      allowed: 'a function',
    });
    expect(() => pipeline().wrap(5 as never)).toThrow('wrap: the operation must be a function, got 5');
    await expect(pipeline().execute(Promise.resolve(1) as never)).rejects.toThrow(
      'got a promise; give the function that makes it, () => ...',
    );
  });

  it.each([[undefined], [null], [5], ['timeout'], [{}], [{ name: 'x', admit: 1, handle: 2, policies: 3 }]])(
    'refuses %j as a policy',
    (value) => {
      expect(() => pipeline(value as never)).toThrow(
        expect.objectContaining({
          message: expect.stringMatching(/^pipeline: argument 1 must be a policy such as timeout\('1s'\)/),
          policy: 'pipeline',
          option: '0',
          value,
          allowed: 'a guard, a strategy or a pipeline',
        }),
      );
    },
  );

  it('lets an unhandled error be reported as unhandled', async () => {
    const error = new Error('nobody cares');
    const reported = await unhandledRejectionsOf(() => {
      void pipeline(timeout('1m')).execute(() => Promise.reject(error), { signal: new AbortController().signal });
      void pipeline().execute(() => {
        throw error;
      });
    });
    expect(reported).toEqual([error, error]);
  });

  describe('with a deadline of the call', () => {
    it('ends the call at the given instant, on the clock of its policies', async () => {
      const clock = virtualClock({ now: 1_000 });
      const running = pipeline(timeout({ after: '1m', clock })).attempt(hangs, { deadline: 1_500 });
      await clock.advance(499);
      expect(clock.pendingTimers).toBe(1);
      await clock.advance(1);
      expect(await running).toMatchObject({
        ok: false,
        error: { code: 'ERR_DEADLINE_EXCEEDED', policy: 'pipeline', afterMs: undefined },
      });
    });

    it('accepts a literal as a duration, and needs no policy for it', async () => {
      const clock = virtualClock();
      const running = pipeline(retry({ attempts: 1, clock })).attempt((call) => [call.deadline, hangs()][1], {
        deadline: '2s',
      });
      const executed = pipeline(retry({ attempts: 1, clock })).execute(hangs, { deadline: '2s' });
      const rejected = expect(executed).rejects.toThrow(DeadlineExceededError);
      await clock.advance('2s');
      expect(await running).toMatchObject({ ok: false, error: expect.any(DeadlineExceededError) });
      await rejected;
    });

    it('refuses a date, which the clock would never reach', async () => {
      const clock = virtualClock({ now: 1_000 });
      const calls = pipeline(timeout({ after: '1m', clock }));
      const date = Date.UTC(2026, 10, 30);
      await expect(calls.execute(() => 1, { deadline: date })).rejects.toThrow(
        `execute: option "deadline" must be an instant of the pipeline's clock, which says 1000 and does not count from 1970, or a duration literal such as '2s', got ${date}`,
      );
      const countsFrom1970 = virtualClock({ now: date - 1 });
      expect(await pipeline(timeout({ after: '1m', clock: countsFrom1970 })).execute(() => 1, { deadline: date })).toBe(
        1,
      );
    });

    it('takes what is no date for a deadline, up to infinity', async () => {
      const clock = virtualClock({ now: 1_000 });
      const calls = pipeline(timeout({ after: '1m', clock }));
      for (const deadline of [315_360_001_000, 8.64e15 + 2, Number.POSITIVE_INFINITY]) {
        expect(await calls.execute(() => 1, { deadline })).toBe(1);
      }
      for (const deadline of [315_360_001_001, 8.64e15]) {
        const refused = { code: 'ERR_OPTIONS', policy: 'execute', option: 'deadline', value: deadline };
        await expect(calls.execute(() => 1, { deadline })).rejects.toMatchObject(refused);
      }
    });

    it('explains a number as deadline if that instant has passed', async () => {
      const late = pipeline(timeout({ after: '1m', clock: virtualClock({ now: 10_000 }) }));
      const passed = '"pipeline" did not start the operation: its deadline passed';
      const hint = "; a number is an instant of the clock, a duration is '5s'";
      await expect(late.execute(() => 1, { deadline: 5_000 })).rejects.toThrow(
        expect.objectContaining({ message: `${passed} 5000 ms ago${hint}` }),
      );
      await expect(late.execute(() => 1, { deadline: '0ms' })).rejects.toThrow(
        expect.objectContaining({ message: `${passed} 0 ms ago` }),
      );
    });

    it('does not start if no time is left', async () => {
      const clock = virtualClock({ now: 1_000 });
      let calls = 0;
      const outcome = await pipeline(timeout({ after: '1m', clock })).attempt(() => calls++, { deadline: 990 });
      expect(outcome).toMatchObject({ ok: false, error: expect.any(DeadlineTooShortError) });
      expect(outcome).toMatchObject({ error: { remainingMs: -10 } });
      const permit = { settle() {}, release() {} };
      const plain: Guard = { name: 'plain', traits: { kind: 'plain', summary: '', clock }, admit: () => permit };
      for (const remainingMs of [-10, 0]) {
        const late = await pipeline(plain).attempt(() => calls++, { deadline: 1_000 + remainingMs });
        expect(late).toMatchObject({
          ok: false,
          error: { code: 'ERR_DEADLINE_TOO_SHORT', policy: 'pipeline', remainingMs },
        });
      }
      expect(calls).toBe(0);
    });
  });

  describe('explain', () => {
    it('describes the order in words', () => {
      const text = String(pipeline(deadline('3s'), retry({ attempts: 3 }), passOn, timeout('1s')).explain());
      expect(text).toBe(
        [
          'From the outside in:',
          '1. deadline: ends the whole call after 3000 ms',
          '2. retry: makes up to 3 attempts, waiting 0 to 5000 ms with full jitter',
          '3. passOn: a policy of your own',
          '4. timeout: gives an attempt up after 1000 ms and aborts its signal',
          '5. the operation',
          'Doubtful (retry-without-budget): "retry" may send 3 times the load to a service that is down; give it a budget: retryBudget().',
          'Doubtful (attempts-exceed-deadline): 3 attempts of 1000 ms with waits of 300 ms in all take up to 3300 ms; the call ends after 3000 ms, so the last ones may never be made.',
        ].join('\n'),
      );
    });

    it('has no warning about an empty pipeline', () => {
      expect(pipeline().explain().warnings).toEqual([]);
    });
  });
});

describe('composition', () => {
  const breaker: Guard = {
    name: 'breaker',
    traits: { kind: 'circuit-breaker', summary: '' },
    admit: () => ({ settle() {}, release() {} }),
  };

  it.each<[string, () => unknown]>([
    [
      'pipeline: two retries in one pipeline multiply their attempts; leave out "second"',
      () => pipeline(retry(), timeout('1s'), retry({ name: 'second' })),
    ],
    [
      'pipeline: "fallback" inside "breaker" hides every failure from it; put the fallback first',
      () =>
        pipeline(
          breaker,
          fallback(() => 1),
        ),
    ],
    [
      'pipeline: "timeout" (5000 ms) must be below the deadline around it (5000 ms)',
      () => pipeline(deadline('5s'), retry(), timeout('5s')),
    ],
    [
      'pipeline: "retry" runs on another clock than a policy before it; give all of them the same one',
      () => pipeline(timeout({ after: 1, clock: virtualClock() }), retry({ clock: virtualClock() })),
    ],
  ])('refuses: %s', (message, build) => {
    expect(build).toThrow(new OptionsError(message, { policy: 'pipeline', value: undefined, allowed: '' }).message);
  });

  it('accepts the same policies in a meaningful order', () => {
    const clock = virtualClock();
    pipeline(
      fallback(() => 1),
      deadline({ after: '5s', clock }),
      retry({ clock }),
      breaker,
      timeout({ after: '4999ms' }),
    );
    pipeline(timeout('5s'), deadline('5s'));
  });

  it.each<[string, (Guard | Strategy<unknown>)[]]>([
    ['retry-without-deadline', [retry()]],
    ['deadline-inside-retry', [retry(), deadline('1s')]],
    ['fallback-inside-retry', [retry(), fallback(() => 1)]],
    ['timeout-never-reached', [timeout('1s'), timeout('2s')]],
    ['attempts-exceed-deadline', [deadline('2s'), retry({ attempts: 3 }), timeout('1s')]],
  ])('warns: %s', (code, policies) => {
    expect(
      pipeline(...policies)
        .explain()
        .warnings.map((warning) => warning.code),
    ).toContain(code);
  });

  it('has no warning about the order it recommends', () => {
    const budget = { balance: 1, deposit() {}, tryWithdraw: () => true };
    const backoff = Object.assign(() => 10, { ceilingMs: () => 10 });
    expect(
      pipeline(
        fallback(() => 1),
        deadline('5s'),
        retry({ attempts: 3, backoff, budget }),
        breaker,
        timeout('1s'),
      ).explain().warnings,
    ).toEqual([]);
    expect(
      pipeline(timeout('3s'), retry({ budget }), timeout('3s'))
        .explain()
        .warnings.map(({ code }) => code),
    ).not.toContain('timeout-never-reached');
  });
});

describe('Call', () => {
  it('passes the abort of a parent on to its child, and not the other way round', async () => {
    await pipeline().execute((call) => {
      const child = call.child({ attempt: 2, key: 'k' });
      expect([child.attempt, child.key, child.parent]).toEqual([2, 'k', call]);
      const { signal } = child;
      child.child().abort('grandchild');
      expect(signal.aborted).toBe(false);
      call.abort('parent');
      expect([signal.aborted, signal.reason, child.reason]).toEqual([true, 'parent', 'parent']);
    });
  });

  it('knows of an abort from before its signal was read', async () => {
    await pipeline().execute((call) => {
      const child = call.child();
      call.abort('early');
      expect([child.aborted, child.signal.aborted, child.signal.reason]).toEqual([true, true, 'early']);
    });
  });

  it('keeps its first reason, which defaults to an AbortError', async () => {
    await pipeline().execute((call) => {
      call.abort();
      call.abort('second');
      expect(call.reason).toMatchObject({ name: 'AbortError' });
      expect(call.signal.reason).toBe(call.reason);
    });
  });

  it('reports the remaining time, never less than none', async () => {
    const clock = virtualClock();
    const bounded = pipeline(deadline({ after: 100, clock }));
    let call: Call | undefined;
    const running = bounded.attempt((given) => {
      call = given;
      return hangs();
    });
    await clock.advance(40);
    expect([call?.deadline, call?.remainingMs]).toEqual([100, 60]);
    await clock.advance(100);
    expect(call?.remainingMs).toBe(0);
    await running;
    expect(await pipeline().execute((free) => [free.deadline, free.remainingMs])).toEqual([
      Number.POSITIVE_INFINITY,
      Number.POSITIVE_INFINITY,
    ]);
  });

  it('reaches the operation of an inner pipeline with the reason of the outer one', async () => {
    const clock = virtualClock();
    const inner = pipeline(timeout({ after: '1m', clock }));
    let reason: unknown;
    const running = pipeline(timeout({ after: 10, clock, name: 'outer' })).attempt((call) =>
      inner.execute(
        (innermost) => {
          innermost.signal.addEventListener('abort', () => {
            reason = innermost.reason;
          });
          return hangs();
        },
        { signal: call.signal, deadline: call.deadline },
      ),
    );
    await clock.runAll();
    const outcome = await running;
    expect(outcome).toMatchObject({ ok: false, error: expect.any(TimeoutError) });
    expect(reason).toBe(!outcome.ok && outcome.error);
    expect(clock.pendingTimers).toBe(0);
  });
});
