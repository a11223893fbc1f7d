/** Faults that were found by attacking the code. Each one was a call that hung, a wrong result, or a timer left behind. */
import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import {
  type AnyPolicy,
  attemptsOf,
  bulkhead,
  callbackTimer,
  circuitBreaker,
  constant,
  type Guard,
  HandlesError,
  type HoldfastEvent,
  hedge,
  keyed,
  type Outcome,
  type Permit,
  pipeline,
  retry,
  type Strategy,
  singleFlight,
  systemClock,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const permit: Permit = { settle() {}, release() {} };
const broken = new Error('broken');
const throws = () => {
  throw broken;
};
/** What the clock itself holds. The test runner also uses timers of the platform, which come and go. */
const timersOfSystemClock = () => {
  const { platformTimer, far } = systemClock as unknown as { platformTimer: unknown; far: Map<unknown, unknown> };
  return (platformTimer === undefined ? 0 : 1) + far.size;
};
const told: string[] = [];
const given: Permit = {
  settle: () => told.push('settle'),
  release: () => told.push('release'),
  ended: () => told.push('ended'),
};
const nextTurn = () => new Promise(setImmediate);
const guardOf = (answer: unknown): Guard => ({ name: 'odd', admit: () => answer as Permit });

describe('systemClock', () => {
  it.each([['30d' as const], [systemClock.now() + 2 ** 32 + 5], [Number.MAX_VALUE], [Number.POSITIVE_INFINITY]])(
    'does not end a call before a deadline that lies further ahead than a platform timer reaches: %s',
    async (deadline) => {
      const outcome = await pipeline().attempt(() => new Promise((resolve) => setTimeout(resolve, 20, 'fine')), {
        deadline,
      });
      expect(outcome).toEqual({ ok: true, value: 'fine' });
      await nextTurn();
      expect(timersOfSystemClock()).toBe(0);
    },
  );

  it('moves a timer from far ahead to near, and back', async () => {
    const fired: string[] = [];
    await new Promise<void>((done) => {
      const near = callbackTimer(() => {
        fired.push('near');
        done();
      });
      const far = callbackTimer(() => fired.push('far'));
      systemClock.schedule(near, systemClock.now() + 2 ** 40);
      systemClock.schedule(near, systemClock.now() + 5);
      systemClock.schedule(far, systemClock.now() + 1);
      systemClock.schedule(far, systemClock.now() + 2 ** 40);
      systemClock.schedule(
        callbackTimer(() => systemClock.cancel(far)),
        systemClock.now() + 3,
      );
    });
    expect(fired).toEqual(['near']);
  });

  it('goes on with the other timers when one throws, which is reported as an exception of a callback is', async () => {
    const reported: unknown[] = [];
    const others = process.rawListeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    process.on('uncaughtException', (error) => reported.push(error));
    const at = systemClock.now() + 3;
    systemClock.schedule(callbackTimer(throws), at);
    const fired = await new Promise((resolve) =>
      systemClock.schedule(
        callbackTimer(() => resolve('fired')),
        at,
      ),
    );
    await nextTurn();
    process.removeAllListeners('uncaughtException');
    for (const other of others) process.on('uncaughtException', other as never);
    expect([fired, reported]).toEqual(['fired', [broken]]);
  });
});

describe('a guard that breaks the contract', () => {
  it.each<[string, unknown]>([
    ['nothing', undefined],
    ['an empty object', {}],
    ['a number', 5],
    ['null', null],
    ['a promise of nothing', Promise.resolve(undefined)],
    ['a promise of an empty object', Promise.resolve({})],
  ])('makes the call fail with an error that names it, when it answers %s', async (_, answer) => {
    const outcome = await pipeline(guardOf(answer)).attempt(() => 1);
    expect(outcome).toMatchObject({ ok: false, error: expect.any(TypeError) });
    expect(String(!outcome.ok && outcome.error)).toContain('guard "odd" must answer a permit or a refusal');
  });

  it.each<[string, Partial<Permit>, Outcome]>([
    ['ended throws', { ended: throws }, { ok: true, value: 1 }],
    ['release and ended throw', { release: throws, ended: throws }, { ok: true, value: 1 }],
    ['endsAt is not a number', { endsAt: Number.NaN }, { ok: true, value: 1 }],
  ])('changes nothing for a call that succeeds: %s', async (_, extra, expected) => {
    expect(await pipeline(guardOf({ ...permit, ...extra })).attempt(() => 1)).toEqual(expected);
    await nextTurn();
  });

  it.each<[string, (resolve: (answer: unknown) => void, reject: (error: unknown) => void) => void, readonly string[]]>([
    ['calls back twice', (resolve) => [resolve(given), resolve(given)], ['settle', 'ended']],
    ['both resolves and rejects', (resolve, reject) => [resolve(given), reject(broken)], ['settle', 'ended']],
    ['throws', throws, []],
  ])('uses its permit once, and leaves nothing, when it answers a thenable that %s', async (_, then, expected) => {
    told.length = 0;
    const { signal } = new AbortController();
    const outcome = await pipeline(timeout('1s'), guardOf({ then })).attempt(async () => 1, { signal });
    expect(outcome).toEqual(expected.length === 0 ? { ok: false, error: broken } : { ok: true, value: 1 });
    await nextTurn();
    expect([told, getEventListeners(signal, 'abort').length, timersOfSystemClock()]).toEqual([expected, 0, 0]);
  });

  it('gives the other permits back when one throws while a guard further in refuses', async () => {
    const told: string[] = [];
    const other = guardOf({ ...permit, release: () => told.push('release') });
    const refusing = guardOf({ error: broken });
    const bad = guardOf({ ...permit, release: throws, ended: throws });
    expect(await pipeline(other, bad, refusing).attempt(() => 1)).toEqual({ ok: false, error: broken });
    expect(await pipeline(other, bad, guardOf(Promise.resolve({ error: broken }))).attempt(() => 1)).toEqual({
      ok: false,
      error: broken,
    });
    expect(told).toEqual(['release', 'release']);
  });

  it('gives each permit back once when it ends the call while it admits, after another one queued', async () => {
    for (const inner of [permit, { error: broken }, Promise.resolve(permit)]) {
      const told: string[] = [];
      const counting = (name: string): Permit => ({
        settle: () => told.push(`${name} settle`),
        release: () => told.push(name),
      });
      const controller = new AbortController();
      const queued: Guard = { name: 'queued', admit: async () => counting('queued') };
      const ending: Guard = {
        name: 'ending',
        admit() {
          controller.abort('gone');
          return inner === permit ? counting('ending') : inner;
        },
      };
      const outcome = await pipeline(queued, ending).attempt(() => 1, { signal: controller.signal });
      await nextTurn();
      expect(outcome).toEqual({ ok: false, error: 'gone' });
      expect(told).toEqual(inner === permit ? ['queued', 'ending'] : ['queued']);
    }
  });
});

describe('an error or a promise that cannot be looked at', () => {
  const revoked = () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    return proxy;
  };

  it('is passed on as it is', async () => {
    const error = revoked();
    for (const each of [pipeline(timeout(20)), pipeline(retry({ attempts: 2, backoff: constant(0) })), pipeline()]) {
      const outcome = await each.attempt(() => Promise.reject(error));
      expect(!outcome.ok && outcome.error === error).toBe(true);
    }
  });

  it('is passed on as the reason of an abort', async () => {
    const [controller, reason] = [new AbortController(), revoked()];
    const running = pipeline(timeout('1m')).attempt(() => new Promise(() => {}), { signal: controller.signal });
    controller.abort(reason);
    const outcome = await running;
    expect(!outcome.ok && outcome.error === reason).toBe(true);
  });

  it('settles its permits once, also when a promise of another class calls back twice or throws', async () => {
    class Twice<T> extends Promise<T> {
      override then(onValue?: unknown): never {
        (onValue as (value: number) => void)(1);
        (onValue as (value: number) => void)(2);
        return undefined as never;
      }
    }
    class Throwing<T> extends Promise<T> {
      override then(): never {
        throw broken;
      }
    }
    const told: string[] = [];
    const guard = guardOf({ settle: () => told.push('settle'), release: () => told.push('release') });
    expect(await pipeline(guard).attempt(() => Twice.resolve(0))).toEqual({ ok: true, value: 1 });
    expect(await pipeline(guard).attempt(() => new Throwing(() => {}))).toEqual({ ok: false, error: broken });
    expect((await pipeline(guard).attempt(() => new Proxy(Promise.resolve(1), {}))).ok).toBe(false);
    expect(told).toEqual(['settle', 'settle', 'settle']);
  });
});

describe('retry', () => {
  it('does not repeat an operation that succeeded because its budget throws', async () => {
    let calls = 0;
    const budget = { balance: 1, deposit: throws, tryWithdraw: () => true };
    expect(await pipeline(retry({ budget })).attempt(() => ++calls)).toEqual({ ok: true, value: 1 });
    expect(calls).toBe(1);
  });

  it.each([
    ['budget', { budget: { balance: 1, deposit() {}, tryWithdraw: throws } }],
    ['backoff', { backoff: throws }],
  ])(
    'keeps the error of the call as the cause when its %s throws, and tells why it stopped',
    async (option, options) => {
      const cause = new Error('down');
      const events: HoldfastEvent[] = [];
      const outcome = await pipeline(retry({ ...options, on: (event) => events.push(event) })).attempt(() =>
        Promise.reject(cause),
      );
      expect(outcome).toMatchObject({ error: expect.any(HandlesError) });
      expect(outcome).toMatchObject({
        error: { cause, thrown: broken, message: expect.stringContaining(`"${option}"`) },
      });
      expect(attemptsOf(!outcome.ok && outcome.error)).toMatchObject({ attempts: 1, stoppedBy: 'classifier' });
      expect(events.at(-1)?.type).toBe('retry-stopped');
    },
  );

  it('grants no attempt, nor a hedge a copy, by a budget that answers a promise', async () => {
    const budget = { balance: 1, deposit() {}, tryWithdraw: async () => throws() } as never;
    let attempts = 0;
    const failing = () => {
      attempts++;
      throws();
    };
    const outcome = await pipeline(retry({ backoff: constant(0), budget })).attempt(failing);
    expect([attempts, String(!outcome.ok && outcome.error)]).toEqual([
      1,
      expect.stringContaining('"budget" function failed: it must answer true or false at once, not a promise'),
    ]);
    expect(await pipeline(hedge({ delay: 1, budget })).attempt(failing)).toEqual({ ok: false, error: broken });
    expect(attempts).toBe(2);
    await nextTurn();
  });

  it('leaves no timer when the call is ended while it is told of the retry', async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    const on = ({ type }: HoldfastEvent) => {
      if (type === 'retry') controller.abort('gone');
    };
    expect(
      await pipeline(retry({ clock, backoff: constant('1h'), on })).attempt(throws, { signal: controller.signal }),
    ).toEqual({
      ok: false,
      error: 'gone',
    });
    await nextTurn();
    expect(clock.pendingTimers).toBe(0);
  });

  it.each([
    ['a promise', async () => false],
    ['a string', () => 'no'],
    ['nothing', () => undefined],
  ])('refuses handles that answers %s instead of taking it for true', async (_, handles) => {
    let calls = 0;
    const outcome = await pipeline(retry({ handles: handles as unknown as () => boolean })).attempt(() => ++calls);
    expect(outcome).toMatchObject({ ok: false, error: { code: 'ERR_HANDLES_FAILED' } });
    expect(calls).toBe(1);
  });

  it.each([['5'], [null], [true], [[5]], [5n]])('refuses a delay that is no number: %s', async (delay) => {
    const outcome = await pipeline(retry({ backoff: () => delay as never })).attempt(throws);
    expect(outcome).toMatchObject({ error: { code: 'ERR_HANDLES_FAILED', cause: broken } });
  });

  it.each([[-7], [Number.NaN], [3]])(
    'comes back no earlier than asked and no more than a tenth later when random answers %s',
    async (drawn) => {
      const clock = virtualClock();
      const at: number[] = [];
      const running = pipeline(retry({ attempts: 2, backoff: constant(0), random: () => drawn, clock })).attempt(() => {
        at.push(clock.now());
        throw Object.assign(new Error('busy'), { retryAfterMs: 100 });
      });
      await clock.runAll();
      await running;
      expect(at).toEqual([0, 100]);
    },
  );
});

describe('the options of a call', () => {
  it('refuse a signal that cannot be listened to, and a key that every object has', async () => {
    expect(await pipeline().attempt(() => 1, { signal: { aborted: false } as AbortSignal })).toMatchObject({
      error: { code: 'ERR_OPTIONS' },
    });
    expect(await pipeline().attempt(() => 1, { toString: 1 } as never)).toMatchObject({
      error: { code: 'ERR_OPTIONS' },
    });
  });

  it('accept a signal of another make, also one that aborts as soon as it is listened to', async () => {
    const signal = {
      aborted: false,
      reason: undefined as unknown,
      addEventListener(_type: string, listener: () => void) {
        if (typeof listener !== 'function') return;
        this.aborted = true;
        this.reason = 'at once';
      },
      removeEventListener() {},
    };
    expect(await pipeline().attempt(() => new Promise(() => {}), { signal: signal as unknown as AbortSignal })).toEqual(
      { ok: false, error: 'at once' },
    );
  });
});

it('a hook that throws an error whose message is no string is contained', async () => {
  const clock = virtualClock();
  const on = () => {
    throw Object.assign(new Error(), { message: Symbol('odd') });
  };
  const running = pipeline(timeout({ after: 5, clock, on })).attempt(() => new Promise(() => {}));
  await clock.runAll();
  expect(await running).toMatchObject({ error: { code: 'ERR_TIMEOUT' } });
});

describe('a hook that ends the call that it hears of', () => {
  const counting = (told: string[], extra: Partial<Permit> = {}) =>
    guardOf({ settle: () => told.push('settle'), release: () => told.push('release'), ...extra });

  it.each([['by itself'], ['inside a retry']])('leaves each permit told once and no slot taken: %s', async (place) => {
    const [clock, controller, told] = [virtualClock(), new AbortController(), [] as string[]];
    const slots = bulkhead({ limit: 1, clock });
    const quick = timeout({ after: 5, clock, on: () => controller.abort('gone') });
    const around = place === 'by itself' ? [] : [retry({ attempts: 2, backoff: constant(1), clock })];
    const running = pipeline(...around, slots, counting(told), quick).attempt(() => clock.sleep(20), {
      signal: controller.signal,
    });
    await clock.runAll();
    expect(await running).toEqual({ ok: false, error: 'gone' });
    expect(told).toEqual(['release']);
    expect([slots.running, slots.abandoned, clock.pendingTimers]).toEqual([0, 0, 0]);
  });

  it.each([
    ['fails', () => Promise.reject(broken)],
    ['times out', () => new Promise(() => {})],
  ])('is contained when a breaker inside a retry opens because the first attempt %s', async (_, task) => {
    const [clock, controller] = [virtualClock(), new AbortController()];
    const [outside, inside]: [string[], string[]] = [[], []];
    const events: string[] = [];
    const breaker = circuitBreaker({
      window: { consecutive: 1 },
      clock,
      on: ({ type }) => type === 'circuit-changed' && controller.abort('gone'),
    });
    const running = pipeline(
      counting(outside),
      retry({ attempts: 2, backoff: constant(1), clock, on: ({ type }) => events.push(type) }),
      breaker,
      counting(inside),
      timeout(5),
    ).attempt(task, { signal: controller.signal });
    await clock.runAll();
    expect(await running).toEqual({ ok: false, error: 'gone' });
    expect([outside, inside, events]).toEqual([['release'], ['settle'], ['retry-stopped']]);
  });

  it('is contained in handles and onDiscard of a retry, after which no further attempt begins', async () => {
    for (const option of ['handles', 'onDiscard']) {
      const [clock, controller, told] = [virtualClock(), new AbortController(), [] as string[]];
      const ends = () => {
        controller.abort('gone');
        return true;
      };
      let calls = 0;
      const running = pipeline(
        counting(told),
        retry({ attempts: 2, backoff: constant(1), handles: () => true, [option]: ends, clock }),
      ).attempt(() => ++calls, { signal: controller.signal });
      await clock.runAll();
      expect(await running).toEqual({ ok: false, error: 'gone' });
      expect([told, calls]).toEqual([['release'], 1]);
    }
  });

  it('is given each value once that a hedge discards', async () => {
    const [clock, controller, discarded] = [virtualClock(), new AbortController(), [] as unknown[]];
    const onDiscard = (value: unknown) => {
      discarded.push(value);
      controller.abort('gone');
    };
    let calls = 0;
    const running = pipeline(hedge({ delay: 5, handles: () => true, onDiscard, clock })).attempt(() => ++calls, {
      signal: controller.signal,
    });
    await clock.runAll();
    expect(await running).toEqual({ ok: false, error: 'gone' });
    expect(discarded).toEqual([1, 2]);
  });
});

describe('a retry with guards inside', () => {
  it('takes a call that is aborted out of the line inside, when a timeout stands around that line', async () => {
    const [clock, controller] = [virtualClock(), new AbortController()];
    const slots = bulkhead({ limit: 1, queue: 1, clock });
    const all = pipeline(retry({ clock }), timeout(50), slots);
    const first = all.attempt(() => clock.sleep(20));
    const second = all.attempt(() => 1, { signal: controller.signal });
    expect(slots.waiting).toBe(1);
    controller.abort('gone');
    expect(slots.waiting).toBe(0);
    expect(await second).toEqual({ ok: false, error: 'gone' });
    await clock.runAll();
    expect((await first).ok).toBe(true);
  });

  it('aborts the signal that a guard inside has read', async () => {
    const [clock, controller] = [virtualClock(), new AbortController()];
    let signal: AbortSignal | undefined;
    const reads: Guard = {
      name: 'reads',
      admit(call) {
        signal = call.signal;
        return permit;
      },
    };
    const running = pipeline(retry({ clock }), timeout(50), reads).attempt(() => new Promise(() => {}), {
      signal: controller.signal,
    });
    controller.abort('gone');
    expect(await running).toEqual({ ok: false, error: 'gone' });
    expect(signal?.aborted).toBe(true);
  });

  it('gives the slot of the first attempt back when its own operation has ended, whatever later ones do', async () => {
    const clock = virtualClock();
    const slots = bulkhead({ limit: 2, clock });
    const running = pipeline(retry({ attempts: 2, backoff: constant(0), clock }), timeout(5), slots).attempt(
      ({ attempt }) => clock.sleep(attempt === 1 ? 20 : 90),
    );
    await clock.advance(12);
    expect((await running).ok).toBe(false);
    expect([slots.running, slots.abandoned]).toEqual([2, 2]);
    await clock.advance(20);
    expect([slots.running, slots.abandoned]).toEqual([1, 1]);
    await clock.runAll();
    expect([slots.running, slots.abandoned]).toEqual([0, 0]);
  });

  it('tells of no success after it has told that the call was ended', async () => {
    const [clock, controller, events] = [virtualClock(), new AbortController(), [] as string[]];
    const running = pipeline(
      retry({ attempts: 2, backoff: constant(1), clock, on: ({ type }) => events.push(type) }),
    ).attempt(({ attempt }) => (attempt === 1 ? throws() : clock.sleep(20)), { signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    expect((await running).ok).toBe(false);
    await clock.runAll();
    expect(events).toEqual(['retry', 'retry-stopped']);
  });
});

describe('a guard that queues although it has just ended the call', () => {
  it('gets the permit back that it answers later, and its later error is consumed', async () => {
    for (const isGiven of [true, false]) {
      const [controller, told] = [new AbortController(), [] as string[]];
      const late: Permit = { settle: () => told.push('settle'), release: () => told.push('release') };
      const first: Guard = { name: 'first', admit: async () => permit };
      const ending: Guard = {
        name: 'ending',
        async admit() {
          controller.abort('gone');
          await nextTurn();
          if (!isGiven) throw broken;
          return late;
        },
      };
      const outcome = await pipeline(first, ending).attempt(() => 1, { signal: controller.signal });
      await nextTurn();
      await nextTurn();
      expect([outcome, told]).toEqual([{ ok: false, error: 'gone' }, isGiven ? ['release'] : []]);
    }
  });
});

describe('a retry inside another one of the same call', () => {
  const three = (on?: (event: HoldfastEvent) => void) =>
    retry({ attempts: 3, backoff: constant(0), ...(on === undefined ? {} : { on }) });

  it.each<[string, (inner: Strategy) => AnyPolicy[]]>([
    ['kept per key', (inner) => [keyed(() => inner)]],
    ['kept per key in a pipeline', (inner) => [keyed(() => pipeline(inner, timeout('1s')))]],
    ['kept per key behind a guard', (inner) => [bulkhead({ limit: 1 }), keyed(() => pipeline(timeout('1s'), inner))]],
    ['in a shared flight', (inner) => [singleFlight({ key: () => 'a' }), keyed(() => inner)]],
  ])('makes one attempt: %s', async (_, around) => {
    const stops: string[] = [];
    const inner = three((event) => event.type === 'retry-stopped' && stops.push(event.stoppedBy));
    let attempts = 0;
    const outcome = await pipeline(three(), ...around(inner)).attempt(
      () => {
        attempts++;
        throws();
      },
      { key: 'a' },
    );
    expect([attempts, stops, !outcome.ok && outcome.error]).toEqual([3, ['nested', 'nested', 'nested'], broken]);
  });

  it('makes all of its own where the one around it makes none, and each time that a strategy asks', async () => {
    const twice: Strategy = {
      name: 'twice',
      handle: (call, next) => next(call).catch(() => next(call)),
    };
    let attempts = 0;
    const failing = () => {
      attempts++;
      throws();
    };
    await pipeline(
      retry({ attempts: 1 }),
      keyed(() => three()),
    ).attempt(failing, { key: 'a' });
    expect(attempts).toBe(3);
    await pipeline(twice, three()).attempt(failing);
    expect(attempts).toBe(9);
  });
});

describe('a strategy of one’s own', () => {
  it('begins no operation that it left behind in a queue, once the caller has gone', async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    const racing: Strategy = {
      name: 'racing',
      handle: (call, next) => Promise.race([next(call.child({ attempt: 10 })), next(call.child({ attempt: 20 }))]),
    };
    const runs: number[] = [];
    const slow: Guard = {
      name: 'slow',
      admit: async ({ attempt }) => {
        await clock.sleep(attempt === 20 ? 50 : 1);
        return permit;
      },
    };
    let failures = 0;
    const on = ({ type }: HoldfastEvent) => {
      if (type === 'retry' && ++failures === 2) controller.abort(broken);
    };
    const outcome = pipeline(retry({ attempts: 5, backoff: constant(0), clock, on }), racing, slow).attempt(
      ({ attempt }) => {
        runs.push(attempt);
        throws();
      },
      { signal: controller.signal },
    );
    await clock.runAll();
    expect(await outcome).toEqual({ ok: false, error: broken });
    expect(runs).toEqual([10, 10]);
  });

  it('begins no operation once its call was ended', async () => {
    const clock = virtualClock();
    const heard: unknown[] = [];
    const patient: Strategy = {
      name: 'patient',
      async handle(call, next) {
        await clock.sleep('1s');
        return next(call).catch((error) => {
          heard.push(error);
          throw error;
        });
      },
    };
    let runs = 0;
    const outcome = pipeline(timeout({ after: '10ms', clock }), patient).attempt(() => ++runs);
    await clock.runAll();
    expect([(await outcome).ok, runs, heard]).toEqual([false, 0, [expect.objectContaining({ code: 'ERR_TIMEOUT' })]]);
  });
});
