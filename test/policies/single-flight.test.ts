import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Call } from '../../src/core/call.js';
import {
  constant,
  deadline,
  type Guard,
  HandlesError,
  type HoldfastEvent,
  isAbandoned,
  keyed,
  OptionsError,
  pipeline,
  retry,
  type SingleFlightOptions,
  type Strategy,
  singleFlight,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';
import { bytesLeftBy } from '../support/young-garbage.js';

const byCallKey = (call: { readonly key: string | undefined }) => call.key;

/** A pipeline with a single flight, and an operation that takes 100 ms and counts how often it runs. */
function shared(options: Partial<SingleFlightOptions> = {}) {
  const clock = virtualClock();
  const events: HoldfastEvent[] = [];
  const signals: AbortSignal[] = [];
  const flights = pipeline(singleFlight({ key: byCallKey, ...options, clock, on: (event) => events.push(event) }));
  const call = (key: string | undefined, execute: object = {}) =>
    flights.attempt(
      async ({ signal }) => {
        signals.push(signal);
        const run = signals.length;
        await clock.sleep(100);
        return { run };
      },
      { key, ...execute },
    );
  return { clock, events, signals, call, flights };
}

describe('singleFlight', () => {
  it('runs one operation for overlapping calls with the same key, and gives all of them the same object', async () => {
    const { clock, events, signals, call } = shared();
    const running = [call('a'), call('a'), call('b'), call('a')];
    await clock.runAll();
    const [first, second, other, third] = await Promise.all(running);
    expect(signals).toHaveLength(2);
    expect(first).toEqual({ ok: true, value: { run: 1 } });
    expect(other).toEqual({ ok: true, value: { run: 2 } });
    for (const outcome of [second, third]) expect(outcome?.ok && outcome.value).toBe(first?.ok && first.value);
    expect(events).toEqual([
      { type: 'flight-shared', name: 'singleFlight', key: 'a', waiting: 2 },
      { type: 'flight-shared', name: 'singleFlight', key: 'a', waiting: 3 },
    ]);
    expect(clock.pendingTimers).toBe(0);
  });

  it('runs again when the previous execution has ended, immediately after it', async () => {
    const { clock, signals, call, flights } = shared();
    const first = call('a');
    await clock.advance(100);
    await first;
    const second = call('a');
    await clock.runAll();
    expect(await second).toEqual({ ok: true, value: { run: 2 } });
    expect(signals).toHaveLength(2);
    const chained = flights.execute(() => 1, { key: 'a' }).then(() => flights.execute(() => 2, { key: 'a' }));
    expect(await chained).toBe(2);
  });

  it('gives all callers the same error', async () => {
    const { clock, flights } = shared();
    const error = new Error('down');
    const fail = () => flights.attempt(() => clock.sleep(5).then(() => Promise.reject(error)), { key: 'a' });
    const running = [fail(), fail()];
    await clock.runAll();
    for (const outcome of await Promise.all(running)) expect(!outcome.ok && outcome.error).toBe(error);
  });

  it('lets calls without a key, and unsafe ones, run alone', async () => {
    const { clock, signals, call } = shared();
    const unsafe = { unsafe: true, idempotencyKey: 'k' };
    const running = [call(undefined), call(undefined), call('a', unsafe), call('a', unsafe)];
    await clock.runAll();
    await Promise.all(running);
    expect(signals).toHaveLength(4);
  });

  it('takes the key from the given function', async () => {
    const { clock, signals, call } = shared({ key: ({ key, attributes }) => `${key}:${attributes.user}` });
    const running = [
      call('host', { attributes: { user: 1 } }),
      call('host', { attributes: { user: 2 } }),
      call('host', { attributes: { user: 1 } }),
    ];
    await clock.runAll();
    await Promise.all(running);
    expect(signals).toHaveLength(2);
  });

  it.each<[string, NonNullable<SingleFlightOptions['key']>]>([
    [
      'throws',
      () => {
        throw new Error('no key');
      },
    ],
    ['answers no string', () => 5 as never],
  ])('rejects with a HandlesError when key %s', async (_, key) => {
    const { call, signals } = shared({ key });
    const outcome = await call('a');
    expect(!outcome.ok && outcome.error).toBeInstanceOf(HandlesError);
    expect(signals).toHaveLength(0);
  });

  describe('when callers leave', () => {
    it('lets one caller abort alone, even the first, and continues for the others', async () => {
      const { clock, signals, call } = shared();
      const controller = new AbortController();
      const first = call('a', { signal: controller.signal });
      const second = call('a');
      await clock.advance(50);
      controller.abort('gone');
      expect(await first).toEqual({ ok: false, error: 'gone' });
      expect(signals[0]?.aborted).toBe(false);
      await clock.advance(50);
      expect(await second).toEqual({ ok: true, value: { run: 1 } });
    });

    it('aborts the work when the last one has left, and starts anew for the next, even in the same tick', async () => {
      const { clock, signals, call } = shared();
      const controllers = [new AbortController(), new AbortController()] as const;
      const running = controllers.map(({ signal }) => call('a', { signal }));
      await clock.advance(50);
      controllers[0].abort('one');
      expect(signals[0]?.aborted).toBe(false);
      controllers[1].abort('other');
      expect(signals[0]?.reason).toBe('other');
      const next = call('a');
      await clock.runAll();
      expect(await Promise.all(running)).toEqual([
        { ok: false, error: 'one' },
        { ok: false, error: 'other' },
      ]);
      expect(await next).toEqual({ ok: true, value: { run: 2 } });
      expect(clock.pendingTimers).toBe(0);
    });

    it('does not let the end of abandoned work disturb the execution that took its key', async () => {
      const { clock, signals, call } = shared();
      const controller = new AbortController();
      const first = call('a', { signal: controller.signal });
      await clock.advance(50);
      controller.abort('gone');
      await first;
      const second = call('a');
      await clock.advance(60);
      // The abandoned work has ended, and a third call still joins the second.
      const third = call('a');
      await clock.runAll();
      expect(await second).toEqual(await third);
      expect(signals).toHaveLength(2);
    });

    it('does not let the deadline of the first caller end the work of the second', async () => {
      const { clock, signals, call } = shared();
      const first = call('a', { deadline: 30 });
      const second = call('a', { deadline: 1_000 });
      await clock.advance(30);
      const ended = await first;
      expect(isAbandoned(!ended.ok && ended.error)).toBe(true);
      expect(signals[0]?.aborted).toBe(false);
      await clock.runAll();
      expect(await second).toEqual({ ok: true, value: { run: 1 } });
    });

    it('applies an inner timeout in full even if the first caller had less time', async () => {
      const clock = virtualClock();
      const flights = pipeline(singleFlight({ key: byCallKey, clock }), timeout({ after: 200, clock }));
      const hang = (deadlineMs: number) =>
        flights.attempt(() => new Promise(() => {}), { key: 'a', deadline: deadlineMs });
      const running = [hang(100), hang(10_000)];
      await clock.advance(200);
      expect((await Promise.all(running)).map((outcome) => !outcome.ok && (outcome.error as Error).name)).toEqual([
        'DeadlineExceededError',
        'TimeoutError',
      ]);
      expect(clock.pendingTimers).toBe(0);
    });

    it('ends a caller on time by an outer deadline', async () => {
      const clock = virtualClock();
      const flights = pipeline(deadline({ after: 50, clock }), singleFlight({ key: byCallKey, clock }));
      const running = flights.attempt(() => clock.sleep(500), { key: 'a' });
      await clock.advance(50);
      const outcome = await running;
      expect(isAbandoned(!outcome.ok && outcome.error)).toBe(true);
    });

    it('rejects a call that was already aborted, without running anything', async () => {
      const { call, signals, clock } = shared();
      expect(await call('a', { signal: AbortSignal.abort('early') })).toEqual({ ok: false, error: 'early' });
      expect(signals).toHaveLength(0);
      const next = call('a');
      await clock.runAll();
      expect(await next).toEqual({ ok: true, value: { run: 1 } });
    });
  });

  it('runs nothing for a call that ended while its key was computed', async () => {
    const controller = new AbortController();
    let runs = 0;
    const flights = pipeline(
      singleFlight({
        key: () => {
          controller.abort('gone');
          return 'a';
        },
      }),
    );
    const outcome = await flights.attempt(() => ++runs, { signal: controller.signal });
    expect(outcome).toEqual({ ok: false, error: 'gone' });
    expect(runs).toBe(0);
  });

  it('reports nothing as shared with a call that ended while its key was computed', async () => {
    const controller = new AbortController();
    const { clock, events, call } = shared({
      key: ({ attributes }) => {
        if (attributes.leaves) controller.abort('gone');
        return 'a';
      },
    });
    const first = call('a');
    const gone = call('a', { signal: controller.signal, attributes: { leaves: true } });
    await clock.runAll();
    expect(await gone).toEqual({ ok: false, error: 'gone' });
    expect(await first).toEqual({ ok: true, value: { run: 1 } });
    expect(events).toEqual([]);
  });

  it('keeps the slot of a bulkhead around the last caller until the work has really ended', async () => {
    const clock = virtualClock();
    const book: string[] = [];
    const guard: Guard = {
      name: 'book',
      admit: () => ({
        settle: () => book.push('settled'),
        release: () => book.push('released'),
        ended: () => book.push('ended'),
      }),
    };
    const controllers = [new AbortController(), new AbortController()] as const;
    const flights = pipeline(guard, singleFlight({ key: byCallKey, clock }));
    const running = controllers.map(({ signal }) => flights.attempt(() => clock.sleep(100), { key: 'a', signal }));
    await clock.flush();
    controllers[0].abort('one');
    await running[0];
    expect(book).toEqual(['released', 'ended']);
    controllers[1].abort('other');
    await running[1];
    expect(book).toEqual(['released', 'ended', 'released']);
    await clock.runAll();
    expect(book).toEqual(['released', 'ended', 'released', 'ended']);
  });

  it('keeps the slot while a timed-out inner attempt still runs', async () => {
    const clock = virtualClock();
    let running = 0;
    const slots: Guard = {
      name: 'slots',
      admit: () => {
        running++;
        return { settle() {}, release() {}, ended: () => running-- };
      },
    };
    const flights = pipeline(slots, singleFlight({ key: byCallKey, clock }), timeout({ after: 10, clock }));
    const call = flights.attempt(() => clock.sleep(100), { key: 'a' });
    await clock.advance(10);
    await call;
    expect(running).toBe(1);
    await clock.runAll();
    expect(running).toBe(0);
  });

  it('gives every caller one answer, its own abort or that of the work, in any interleaving', async () => {
    const step = fc.record({
      key: fc.constantFrom('a', 'b'),
      atMs: fc.integer({ min: 0, max: 300 }),
      abortAfterMs: fc.option(fc.integer({ min: 0, max: 150 }), { nil: undefined }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (script) => {
        const { clock, call, signals } = shared();
        const outcomes = script.map(async ({ key, atMs, abortAfterMs }) => {
          await clock.sleep(atMs);
          const controller = new AbortController();
          const running = call(key, { signal: controller.signal });
          if (abortAfterMs !== undefined) void clock.sleep(abortAfterMs).then(() => controller.abort('gone'));
          return running;
        });
        await clock.runAll();
        for (const [index, outcome] of (await Promise.all(outcomes)).entries()) {
          if (outcome.ok) continue;
          expect(outcome.error).toBe('gone');
          expect(script[index]!.abortAfterMs).toBeLessThanOrEqual(100);
        }
        expect(signals.length).toBeLessThanOrEqual(script.length);
        expect(clock.pendingTimers).toBe(0);
      }),
      { numRuns: 200 },
    );
  });

  it('runs the operation as the call of the first caller, except for its deadline', async () => {
    const { clock, flights } = shared();
    const options = { key: 'a', idempotencyKey: 'once', attributes: { user: 1 }, deadline: 1_000 };
    const seen = (value: unknown) =>
      flights.execute(
        async ({ key, idempotencyKey, attributes, attempt, deadline }) => {
          await clock.sleep(10);
          return { key, idempotencyKey, attributes, attempt, deadline, value };
        },
        { ...options, attributes: { user: value } },
      );
    const running = [seen(1), seen(2)];
    await clock.runAll();
    const [first, second] = await Promise.all(running);
    expect(first).toEqual({
      key: 'a',
      idempotencyKey: 'once',
      attributes: { user: 1 },
      attempt: 1,
      deadline: Number.POSITIVE_INFINITY,
      value: 1,
    });
    expect(second).toBe(first);
  });

  it('passes the attempt number of its first caller to the operation', async () => {
    const attempts: number[] = [];
    const flights = pipeline(retry({ attempts: 3, backoff: constant(0) }), singleFlight({ key: byCallKey }));
    await flights.attempt(({ attempt }) => Promise.reject(attempts.push(attempt)), { key: 'a' });
    expect(attempts).toEqual([1, 2, 3]);
  });

  it('makes one attempt of a retry inside it if its first caller is retried, and all of them otherwise', async () => {
    const runs = async (...outside: Strategy[]) => {
      let count = 0;
      const inside = keyed(() => retry({ attempts: 2, backoff: constant(0) }));
      const flights = pipeline(...outside, singleFlight({ key: byCallKey }), inside);
      await flights.attempt(() => Promise.reject(++count), { key: 'a' });
      return count;
    };
    expect(await runs(retry({ attempts: 3, backoff: constant(0) }))).toBe(3);
    expect(await runs()).toBe(2);
  });

  it('is not affected by a caller that ends its call after the answer', async () => {
    const call = new Call(virtualClock(), () => new Promise(() => {}), { key: 'a' });
    const flights = singleFlight({ key: byCallKey });
    expect(await flights.handle(call, async () => 'answer')).toBe('answer');
    let signal: AbortSignal | undefined;
    const next = new Call(virtualClock(), () => new Promise(() => {}), { key: 'a' });
    void flights.handle(next, (work) => {
      signal = work.signal;
      return new Promise(() => {});
    });
    call.abort('late');
    expect([call.isIdle, signal?.aborted]).toEqual([true, false]);
  });

  it('leaves nothing of what its flights have answered to full collections', async () => {
    const flights = pipeline(singleFlight({ key: byCallKey }));
    const answer = async () => {
      await new Promise(setImmediate);
      return new Array<number>(1_000).fill(1);
    };
    const churn = async (from: number, to: number) => {
      for (let first = from; first < to; first += 32) {
        await Promise.all(
          Array.from({ length: 32 }, (_, index) => flights.execute(answer, { key: `${first + index}` })),
        );
      }
    };
    await bytesLeftBy(() => churn(0, 64));
    // The answers take eight megabytes in all, of which 32 answers are held at a time.
    expect(await bytesLeftBy(() => churn(64, 1_088))).toBeLessThan(2e6);
  });

  it('describes what is wrong with a key', async () => {
    const { call } = shared({ key: () => 5 as never, name: 'users' });
    const outcome = await call('a');
    expect(!outcome.ok && outcome.error).toMatchObject({
      message: '"users": its "key" function failed: it must answer a string or undefined, got 5',
    });
  });

  it('describes what it does', () => {
    expect(singleFlight({ key: byCallKey }).traits).toMatchObject({
      kind: 'single-flight',
      summary: 'lets calls with the same key share one execution',
    });
  });

  it('refuses wrong options', () => {
    expect(() => singleFlight(undefined as never)).toThrow(OptionsError);
    expect(() => singleFlight({ key: 'a' as never })).toThrow(OptionsError);
    expect(() => singleFlight({ keys: () => 'a' } as never)).toThrow('did you mean "key"?');
  });
});
