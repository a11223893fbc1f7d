/**
 * Pipelines in hostile company: hooks, guards, operations and signals that do what they should not. Each call still settles once, its permits are told once,
 * and nothing of it is left.
 */
import { getEventListeners } from 'node:events';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  attemptsOf,
  constant,
  deadline,
  fallback,
  type Guard,
  HandlesError,
  type Outcome,
  type Pipeline,
  pipeline,
  refuse,
  retry,
  type Strategy,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';
import { forbidUnhandledRejections } from '../support/unhandled-rejections.ts';

const hangs = () => new Promise<never>(() => {});

forbidUnhandledRejections();

/** A guard that records what its permits are told, and does something when it is asked. */
function recorder(name: string, whenAsked: () => unknown = () => {}) {
  const told: string[] = [];
  const guard: Guard & { readonly told: string[] } = {
    name,
    told,
    admit() {
      whenAsked();
      return { settle: ({ ok }) => void told.push(`settled ${ok}`), release: () => void told.push('released') };
    },
  };
  return guard;
}

describe('pipeline, with an abort from inside', () => {
  it('ends before it begins when a guard aborts the call while it is asked, and releases each permit once', async () => {
    const controller = new AbortController();
    const guards = [recorder('before'), recorder('aborts', () => controller.abort('gone')), recorder('after')];
    let runs = 0;
    const outcome = await pipeline(...guards).attempt(() => ++runs, { signal: controller.signal });
    expect(outcome).toEqual({ ok: false, error: 'gone' });
    expect(guards.map(({ told }) => told)).toEqual([['released'], ['released'], ['released']]);
    expect([runs, getEventListeners(controller.signal, 'abort').length]).toEqual([0, 0]);
  });

  it('keeps the outcome of a call whose permit aborts it while it is told of that outcome', async () => {
    const controller = new AbortController();
    const late: Guard = { name: 'late', admit: () => ({ settle: () => controller.abort('too late'), release() {} }) };
    const inner = recorder('inner');
    expect(await pipeline(late, inner).attempt(() => 'done', { signal: controller.signal })).toEqual({
      ok: true,
      value: 'done',
    });
    expect(inner.told).toEqual(['settled true']);
  });

  it('rejects with the first reason when the operation aborts again while it hears of the abort', async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    const quick = pipeline(timeout({ after: 50, clock }));
    let second: Promise<Outcome<string>> | undefined;
    const running = quick.attempt(
      ({ signal }) => {
        signal.addEventListener('abort', () => {
          controller.abort('second');
          second = quick.attempt(() => 'another call');
        });
        return hangs();
      },
      { signal: controller.signal },
    );
    controller.abort('first');
    expect(await running).toEqual({ ok: false, error: 'first' });
    expect(await second).toEqual({ ok: true, value: 'another call' });
    expect(clock.pendingTimers).toBe(0);
  });

  it('takes any reason for one: null, 0, an empty string', async () => {
    for (const reason of [null, 0, '', false]) {
      const clock = virtualClock();
      const controller = new AbortController();
      const running = pipeline(retry({ clock }), timeout(50)).attempt(hangs, { signal: controller.signal });
      controller.abort(reason);
      expect(await running).toEqual({ ok: false, error: reason });
      expect(clock.pendingTimers).toBe(0);
    }
  });

  it('takes an AbortError for the reason of a signal that has none', async () => {
    const imitation = Object.assign(new EventTarget(), { aborted: false, reason: undefined });
    const running = pipeline(timeout({ after: 50, clock: virtualClock() })).attempt(hangs, {
      signal: imitation as unknown as AbortSignal,
    });
    imitation.dispatchEvent(new Event('abort'));
    expect(await running).toMatchObject({ ok: false, error: { name: 'AbortError' } });
  });
});

describe('pipeline, used from inside itself', () => {
  it('runs calls that a guard, a hook, a fallback and an operation make', async () => {
    const clock = virtualClock();
    const answers: Promise<unknown>[] = [];
    let depth = 0;
    const again = () => {
      if (depth++ < 20) answers.push(all.attempt(() => 'from inside'));
    };
    const all: Pipeline<unknown> = pipeline(
      fallback(() => 'instead', { clock, on: again }),
      recorder('asks', again),
      retry({ attempts: 2, backoff: constant(1), on: again }),
      timeout(5),
    );
    answers.push(
      all.attempt(() => {
        again();
        throw new Error('down');
      }),
    );
    await clock.runAll();
    const outcomes = (await Promise.all(answers)) as Outcome[];
    expect(outcomes).toHaveLength(21);
    expect(outcomes.every(({ ok }) => ok)).toBe(true);
    expect(clock.pendingTimers).toBe(0);
  });

  it('answers through five hundred layers, and aborts the operation through all of them', async () => {
    const clock = virtualClock();
    const passes: Strategy = { name: 'passes', handle: (call, next) => next(call) };
    const layers = Array.from({ length: 500 }, (_, index) => [passes, timeout({ after: 1_000 + index, clock })]).flat();
    const deep = pipeline(...layers);
    expect(await deep.execute(() => 'through')).toBe('through');
    let signal: AbortSignal | undefined;
    const running = deep.attempt((call) => {
      signal = call.signal;
      return hangs();
    });
    await clock.advance(1_000);
    expect(await running).toMatchObject({ ok: false, error: expect.any(TimeoutError) });
    expect(signal?.aborted).toBe(true);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('pipeline, with a thenable that breaks the rules', () => {
  it('believes its first word, whatever it says after', async () => {
    type Word = (value: unknown) => void;
    const breaches: [(resolve: Word, reject: Word) => void, Outcome][] = [
      [(resolve) => ['one', 'two'].forEach(resolve), { ok: true, value: 'one' }],
      [
        (resolve, reject) => {
          resolve('one');
          reject('two');
          throw new Error('three');
        },
        { ok: true, value: 'one' },
      ],
      [
        (resolve, reject) => {
          reject('one');
          resolve('two');
        },
        { ok: false, error: 'one' },
      ],
      [
        () => {
          throw 'one';
        },
        { ok: false, error: 'one' },
      ],
      [
        (resolve) => {
          setImmediate(() => resolve('late two'));
          resolve('one');
        },
        { ok: true, value: 'one' },
      ],
    ];
    for (const [then, expected] of breaches) {
      const clock = virtualClock();
      const guard = recorder('guard');
      const outcome = await pipeline(guard, retry({ attempts: 1, clock }), timeout(5)).attempt(
        () => ({ then }) as unknown as PromiseLike<unknown>,
      );
      expect(outcome).toEqual(expected);
      expect(guard.told).toEqual([`settled ${expected.ok}`]);
      expect(clock.pendingTimers).toBe(0);
    }
  });

  it('rejects with what reading its "then" throws', async () => {
    const trap = {
      get then(): never {
        throw new Error('no then');
      },
    };
    expect(await pipeline(timeout({ after: 5, clock: virtualClock() })).attempt(() => trap)).toMatchObject({
      ok: false,
      error: { message: 'no then' },
    });
  });
});

describe('pipeline, with errors that are shared or cannot be changed', () => {
  it('rethrows a frozen error as it is, with a report beside it', async () => {
    const clock = virtualClock();
    const frozen = Object.freeze(new Error('frozen'));
    const running = pipeline(retry({ clock, attempts: 2, backoff: constant(1) })).attempt(() => Promise.reject(frozen));
    await clock.runAll();
    expect(await running).toEqual({ ok: false, error: frozen });
    expect(attemptsOf(frozen)?.attempts).toBe(2);
  });

  it('ends each of many calls by itself that fail with one error object', async () => {
    const clock = virtualClock();
    const shared = new Error('shared');
    const runs = [0, 0, 0];
    const running = runs.map((_, index) =>
      pipeline(retry({ clock, attempts: index + 1, backoff: constant(1) })).attempt(() => {
        runs[index]!++;
        throw shared;
      }),
    );
    await clock.runAll();
    await Promise.all(running);
    expect(runs).toEqual([1, 2, 3]);
    expect(attemptsOf(shared)?.attempts).toBe(3);
  });

  it('rejects with a HandlesError that keeps the error of the call, whatever is no number that backoff answers', async () => {
    for (const nonsense of [Promise.resolve(5), undefined, Number.NaN, -1, {}, 'soon']) {
      const clock = virtualClock();
      const down = new Error('down');
      const running = pipeline(retry({ clock, backoff: () => nonsense as number })).attempt(() => Promise.reject(down));
      await clock.runAll();
      const outcome = await running;
      expect(!outcome.ok && outcome.error).toBeInstanceOf(HandlesError);
      expect(outcome).toMatchObject({ error: { cause: down } });
      expect(clock.pendingTimers).toBe(0);
    }
  });
});

describe('pipeline, over many calls of one caller', () => {
  it('has neither a listener nor a timer left after five thousand calls under one signal', async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    const all = pipeline(
      fallback(() => 'instead', { clock }),
      deadline('1m'),
      retry({ attempts: 2, backoff: constant(0) }),
      timeout(5),
    );
    const ways = [
      ({ signal }: { signal: AbortSignal }) => signal.aborted,
      () => {
        throw new Error('down');
      },
      hangs,
    ];
    // The calls come in portions, because a platform's signal searches all its listeners to add or remove one.
    for (let portion = 0; portion < 25; portion++) {
      const running = Array.from({ length: 200 }, (_, index) =>
        all.attempt(ways[index % ways.length] as () => unknown, { signal: controller.signal }),
      );
      await clock.runAll();
      expect((await Promise.all(running)).every(({ ok }) => ok)).toBe(true);
    }
    expect(getEventListeners(controller.signal, 'abort')).toHaveLength(0);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('pipeline, when an end and an attempt meet in one tick', () => {
  it('settles once and leaves nothing, whichever comes first', async () => {
    const seed = 43;
    const tick = fc.integer({ min: 1, max: 6 });
    const shape = fc.record({
      outerMs: tick,
      innerMs: tick,
      takesMs: tick,
      delayMs: fc.integer({ min: 0, max: 3 }),
      abortAt: fc.option(tick),
      refuses: fc.boolean(),
      queueMs: fc.option(fc.integer({ min: 0, max: 3 })),
    });
    await fc.assert(
      fc.asyncProperty(shape, async ({ outerMs, innerMs, takesMs, delayMs, abortAt, refuses, queueMs }) => {
        const clock = virtualClock();
        const controller = new AbortController();
        const outer = recorder('outer');
        const inner = recorder('inner');
        let asked = 0;
        const line: Guard = {
          name: 'line',
          admit() {
            asked++;
            const answer = refuses && asked === 2 ? refuse(new Error('full')) : { settle() {}, release() {} };
            return queueMs === null ? answer : clock.sleep(queueMs).then(() => answer);
          },
        };
        const all = pipeline(
          outer,
          timeout({ after: outerMs, clock, name: 'whole' }),
          retry({ attempts: 3, backoff: constant(delayMs) }),
          line,
          inner,
          timeout(innerMs),
        );
        let settlements = 0;
        const running = all.attempt(
          ({ attempt }) =>
            clock.sleep(takesMs).then(() => {
              if (attempt < 3) throw new Error('down');
              return attempt;
            }),
          { signal: controller.signal },
        );
        void running.then(() => settlements++);
        if (abortAt !== null) {
          await clock.advance(abortAt);
          controller.abort('gone');
        }
        await clock.runAll();
        expect(settlements).toBe(1);
        expect(outer.told).toHaveLength(1);
        // Every permit that was admitted is told. A call that was still waiting was never asked.
        expect(inner.told.length).toBeLessThanOrEqual(asked);
        expect([clock.pendingTimers, getEventListeners(controller.signal, 'abort').length]).toEqual([0, 0]);
      }),
      { seed, numRuns: 250 },
    );
  });
});
