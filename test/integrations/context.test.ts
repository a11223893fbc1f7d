/** The current call, and what the core does with it: deadlines inside deadlines, retries inside retries. */
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  attemptsOf,
  type Call,
  type Clock,
  circuitBreaker,
  constant,
  DeadlineExceededError,
  DeadlineTooShortError,
  deadline,
  fallback,
  HoldfastError,
  isAbandoned,
  pipeline,
  retry,
  TimeoutError,
  type Timer,
  timeout,
} from '../../src/index.js';
import {
  currentCall,
  currentDeadline,
  enableContext,
  runDetached,
  runWithCall,
} from '../../src/integrations/context.js';
import { type VirtualClock, virtualClock } from '../../src/testing/index.js';

const place = Symbol.for('holdfast.context');
const cell = (globalThis as unknown as { [place]: { ambient: object | undefined } })[place];
const down = new Error('down');

afterEach(() => {
  cell.ambient = undefined;
});

/** A retry whose waits take hardly any time. */
const threeAttempts = (clock: VirtualClock) => retry({ attempts: 3, backoff: constant(1), clock });

/** Nobody promises the order of timers that are due at the same instant. Here the timer that was set last fires first. */
function newestFirst(): { readonly clock: Clock; goTo(untilMs: number): Promise<void> } {
  let nowMs = 0;
  const waiting = new Map<Timer, number>();
  const clock: Clock = {
    now: () => nowMs,
    wallNow: () => nowMs,
    schedule(timer, atMs) {
      waiting.delete(timer);
      waiting.set(timer, atMs);
    },
    cancel: (timer) => void waiting.delete(timer),
  };
  return {
    clock,
    async goTo(untilMs) {
      for (;;) {
        const [next] = [...waiting].reverse().sort(([, one], [, other]) => one - other);
        if (next === undefined || next[1] > untilMs) break;
        const [timer, atMs] = next;
        waiting.delete(timer);
        nowMs = atMs;
        timer.expire();
        await turn();
      }
      nowMs = untilMs;
    },
  };
}

/** How many dependents a call has. The number would grow if an inner call left something behind. */
function dependentsOf(call: Call): number {
  let count = 0;
  type Node = { nextDependent: Node | undefined };
  let node = (call as unknown as { firstDependent: Node | undefined }).firstDependent;
  for (; node !== undefined; node = node.nextDependent) count++;
  return count;
}

describe('the context', () => {
  it('is not started by its import, nor by asking for the current call, nor by a pipeline', async () => {
    await pipeline(timeout('1s')).execute(() => {
      expect(currentCall()).toBe(undefined);
      expect(currentDeadline()).toBe(Number.POSITIVE_INFINITY);
      expect(runDetached(() => 5)).toBe(5);
    });
    expect(cell.ambient).toBe(undefined);
  });

  it('knows the call of an operation, through awaits and timers, and none outside', async () => {
    enableContext();
    const seen = await pipeline(timeout('10s')).execute(async (call) => {
      const before = currentCall();
      await turn();
      const inTimer = await new Promise((resolve) => setTimeout(() => resolve(currentCall()), 1));
      return [before === call, inTimer === call, currentCall() === call, currentDeadline() === call.deadline];
    });
    expect(seen).toEqual([true, true, true, true]);
    expect(currentCall()).toBe(undefined);
    expect(currentDeadline()).toBe(Number.POSITIVE_INFINITY);
  });

  it('lets an operation end its call that does not take it', async () => {
    enableContext();
    const running = pipeline(circuitBreaker()).execute(() => {
      currentCall()?.abort(down);
      return new Promise<never>(() => {});
    });
    await expect(running).rejects.toBe(down);
  });

  it('knows the call of each attempt', async () => {
    enableContext();
    const clock = virtualClock();
    const attempts: unknown[] = [];
    const running = pipeline(threeAttempts(clock)).attempt(() => {
      attempts.push(currentCall()?.attempt);
      throw down;
    });
    await clock.runAll();
    await running;
    expect(attempts).toEqual([1, 2, 3]);
  });

  it('keeps calls that run at the same time apart', async () => {
    enableContext();
    const plain = pipeline();
    const keys = ['a', 'b', 'c'];
    const seen = await Promise.all(
      keys.map((key) =>
        plain.execute(
          async () => {
            await turn();
            return currentCall()?.key;
          },
          { key },
        ),
      ),
    );
    expect(seen).toEqual(keys);
  });

  it('is brought by runWithCall to where it does not find by itself, which starts it if need be', async () => {
    const [callOf, call] = await pipeline().execute(async (given) => {
      await turn();
      return [runWithCall(given, () => currentCall()), given] as const;
    });
    expect(callOf).toBe(call);
    expect(cell.ambient).not.toBe(undefined);
    expect(() =>
      runWithCall(call, () => {
        throw down;
      }),
    ).toThrow(down);
    expect(currentCall()).toBe(undefined);
  });

  it('refuses what is no call, such as the request that has one', () => {
    expect(() => runWithCall({ headers: {} } as never, () => 1)).toThrow(
      /^runWithCall: option "call" must be the call that an operation is given/,
    );
    expect(runWithCall(undefined as never, () => currentCall())).toBeUndefined();
    expect(() => runWithCall(undefined as never, undefined as never)).toThrow(
      /^runWithCall: option "task" is required/,
    );
    expect(() => runDetached(Promise.resolve() as never)).toThrow(
      'runDetached: option "task" must be a function, got an object of class Promise',
    );
  });

  it('says so where the platform has no AsyncLocalStorage', () => {
    const platform = vi.spyOn(process, 'getBuiltinModule').mockReturnValue(undefined as never);
    try {
      expect(enableContext).toThrow(HoldfastError);
      expect(enableContext).toThrow(expect.objectContaining({ code: 'ERR_CONTEXT_UNAVAILABLE' }));
    } finally {
      platform.mockRestore();
    }
    expect(cell.ambient).toBe(undefined);
  });
});

describe('a pipeline inside an operation of another one', () => {
  it('has the nearest deadline', async () => {
    enableContext();
    const clock = virtualClock();
    const inner = (after: number) => pipeline(deadline({ after, clock })).execute((call) => call.deadline);
    const seen = await pipeline(deadline({ after: 1_000, clock })).execute(async () => [
      await inner(5_000),
      await inner(200),
      await pipeline(timeout({ after: 300, clock })).execute((call) => call.remainingMs),
    ]);
    expect(seen).toEqual([1_000, 200, 300]);
  });

  it('has no deadline of the outer one when the context is not enabled', async () => {
    const clock = virtualClock();
    const seen = await pipeline(deadline({ after: 1_000, clock })).execute(() =>
      pipeline().execute((call) => call.deadline),
    );
    expect(seen).toBe(Number.POSITIVE_INFINITY);
  });

  it('ends with the outer one, for its reason', async () => {
    enableContext();
    const clock = virtualClock();
    let inner: Promise<unknown> | undefined;
    let signal: AbortSignal | undefined;
    const running = pipeline(timeout({ after: 50, clock })).attempt(() => {
      inner = pipeline(timeout({ after: 500, clock })).attempt((call) => {
        signal = call.signal;
        return new Promise(() => {});
      });
      return inner;
    });
    await clock.advance(50);
    const outcome = await running;
    expect(outcome).toEqual({ ok: false, error: expect.any(TimeoutError) });
    expect(signal?.aborted).toBe(true);
    expect(isAbandoned(signal?.reason)).toBe(true);
    expect(await inner).toEqual(outcome);
    expect(clock.pendingTimers).toBe(0);
  });

  it('is ended by the one that set its deadline, and in the words of that, whichever timer comes first', async () => {
    enableContext();
    const { clock, goTo } = newestFirst();
    let inner: Promise<unknown> | undefined;
    const own = pipeline(timeout({ after: '1m', clock }));
    const running = pipeline(deadline({ after: 100, clock, name: 'outer' })).attempt(() => {
      inner = own.attempt(() => new Promise(() => {}));
      return inner;
    });
    await goTo(100);
    const outcome = await running;
    expect(outcome).toMatchObject({ ok: false, error: { code: 'ERR_DEADLINE_EXCEEDED', policy: 'outer' } });
    expect(await inner).toEqual(outcome);
  });

  it('ends at its own time where that is nearer, to the millisecond', async () => {
    enableContext();
    const { clock, goTo } = newestFirst();
    const ended: Record<string, number> = {};
    const hangs = () => new Promise(() => {});
    void pipeline(deadline({ after: 100, clock })).attempt(async () => {
      const own = pipeline(timeout({ after: 70, clock }));
      const all = { 'its own deadline': own.attempt(hangs, { deadline: 60 }), 'its own timeout': own.attempt(hangs) };
      for (const [name, one] of Object.entries(all)) void one.then(() => (ended[name] = clock.now()));
      await hangs();
    });
    await goTo(99);
    expect(ended).toEqual({ 'its own deadline': 60, 'its own timeout': 70 });
  });

  it.each([
    ['execute', false],
    ['attempt', true],
  ])('ends when the caller of the outer one aborts, by %s, also without a policy of its own', async (_, asAttempt) => {
    enableContext();
    const controller = new AbortController();
    let inner: Promise<unknown> | undefined;
    const running = pipeline().attempt(
      () => {
        const hangs = () => new Promise(() => {});
        const own = pipeline();
        inner = asAttempt
          ? own.attempt(hangs)
          : own.execute(hangs).then(
              () => 'ended well',
              (error) => ({ ok: false, error }),
            );
        return inner;
      },
      { signal: controller.signal },
    );
    controller.abort('gone');
    expect(await inner).toEqual({ ok: false, error: 'gone' });
    expect(await running).toEqual({ ok: false, error: 'gone' });
  });

  it('is not started when the outer one has ended', async () => {
    enableContext();
    const clock = virtualClock();
    let hasStarted = false;
    let inner: unknown;
    const running = pipeline(timeout({ after: 50, clock })).attempt(async () => {
      await clock.sleep(60);
      inner = await pipeline().attempt(() => {
        hasStarted = true;
      });
    });
    await clock.advance(60);
    await running;
    expect(inner).toEqual({ ok: false, error: expect.any(TimeoutError) });
    expect(hasStarted).toBe(false);
  });

  it('is refused when the deadline of an outer one that ended well has passed', async () => {
    enableContext();
    const clock = virtualClock();
    let late: Promise<unknown> | undefined;
    await pipeline(deadline({ after: 50, clock })).execute(() => {
      late = clock.sleep(60).then(() => pipeline(timeout({ after: 5, clock })).attempt(() => 'ran'));
    });
    await clock.advance(60);
    const error = expect.any(DeadlineTooShortError);
    expect(await late).toEqual({ ok: false, error });
    expect(await late).toMatchObject({ error: { remainingMs: -10 } });
  });

  it('outlives the outer one when it runs detached', async () => {
    enableContext();
    const clock = virtualClock();
    let refresh: Promise<unknown> | undefined;
    const running = pipeline(deadline({ after: 50, clock })).attempt(() => {
      refresh = runDetached(() =>
        pipeline(timeout({ after: 500, clock })).attempt(async (call) => {
          await clock.sleep(100);
          return [call.aborted, call.deadline];
        }),
      );
      return new Promise(() => {});
    });
    await clock.advance(100);
    expect(await running).toEqual({ ok: false, error: expect.any(DeadlineExceededError) });
    expect(await refresh).toEqual({ ok: true, value: [false, 500] });
  });

  it('takes what is left over to a clock of its own', async () => {
    enableContext();
    const outerClock = virtualClock();
    const innerClock = virtualClock({ now: 1_000_000 });
    await outerClock.advance(500);
    const inner = pipeline(timeout({ after: '1m', clock: innerClock }));
    const running = pipeline(deadline({ after: 1_000, clock: outerClock })).execute(async () => {
      await outerClock.sleep(400);
      return inner.attempt((call) => {
        expect([call.deadline, call.remainingMs]).toEqual([1_000_600, 600]);
        return new Promise(() => {});
      });
    });
    await outerClock.advance(400);
    await innerClock.advance(600);
    expect(await running).toEqual({ ok: false, error: expect.any(DeadlineExceededError) });
    expect([outerClock.pendingTimers, innerClock.pendingTimers]).toEqual([0, 0]);
  });

  it('leaves nothing behind in the outer call, however it ends', async () => {
    enableContext();
    const clock = virtualClock();
    const controller = new AbortController();
    const left: number[] = [];
    const running = pipeline(deadline({ after: '1h', clock })).execute(async (call) => {
      const before = dependentsOf(call);
      const note = () => left.push(dependentsOf(call) - before);
      const policies = [
        pipeline(),
        pipeline(timeout({ after: 20, clock })),
        pipeline(retry({ attempts: 2, backoff: constant(1), clock }), timeout({ after: 20, clock })),
        pipeline(fallback(() => 'instead')),
      ];
      for (const own of policies) {
        await own.execute(() => 1);
        await own.attempt(() => Promise.reject(down));
        await own.attempt(({ signal }) => signal.aborted);
        note();
      }
      await pipeline(timeout({ after: 20, clock })).attempt(() => clock.sleep(30));
      note();
      const ended = pipeline().attempt(({ signal }) => clock.sleep(5, { signal }), { signal: controller.signal });
      controller.abort();
      await ended;
      await pipeline().attempt(({ signal }) => signal, { signal: controller.signal });
      note();
      await Promise.all([1, 2, 3].map((ms) => pipeline(timeout({ after: 20, clock })).execute(() => clock.sleep(ms))));
      note();
    });
    await clock.advance(1_000);
    await running;
    expect(left).toEqual([0, 0, 0, 0, 0, 0, 0]);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('a retry inside an operation of another one', () => {
  async function nested(options: { readonly outer: number; readonly together?: number }) {
    const clock = virtualClock();
    const inner = pipeline(threeAttempts(clock));
    let calls = 0;
    const reports: unknown[] = [];
    const ask = async () => {
      const outcome = await inner.attempt(() => {
        calls++;
        throw new Error('down');
      });
      if (outcome.ok) return;
      reports.push(attemptsOf(outcome.error)?.stoppedBy);
      throw outcome.error;
    };
    const outer = pipeline(retry({ attempts: options.outer, backoff: constant(1), clock }));
    const running = outer.attempt(() => Promise.all(Array.from({ length: options.together ?? 1 }, ask)));
    await clock.runAll();
    await running;
    return { calls, reports };
  }

  it('makes one attempt, so that attempts do not multiply, already in the first attempt of the outer one', async () => {
    enableContext();
    expect(await nested({ outer: 4 })).toEqual({ calls: 4, reports: ['nested', 'nested', 'nested', 'nested'] });
  });

  it('multiplies without the context', async () => {
    expect(await nested({ outer: 4 })).toMatchObject({ calls: 12 });
  });

  it('makes one attempt each where several run at the same time', async () => {
    enableContext();
    expect(await nested({ outer: 2, together: 3 })).toMatchObject({ calls: 6 });
  });

  it('makes one attempt, however many pipelines lie between', async () => {
    enableContext();
    const clock = virtualClock();
    let calls = 0;
    const innermost = pipeline(threeAttempts(clock));
    const between = pipeline(timeout({ after: 100, clock }));
    const running = pipeline(threeAttempts(clock)).attempt(() =>
      between.execute(() =>
        between.execute(() =>
          innermost.execute(() => {
            calls++;
            throw down;
          }),
        ),
      ),
    );
    await clock.runAll();
    await running;
    expect(calls).toBe(3);
  });

  it('makes all its attempts beside another one, before it, after it, and inside one that does not retry', async () => {
    enableContext();
    const clock = virtualClock();
    const counts = { beside: 0, before: 0, after: 0, inside: 0, detached: 0 };
    const fails = (place: keyof typeof counts) =>
      pipeline(threeAttempts(clock)).attempt(() => {
        counts[place]++;
        throw down;
      });
    const running = (async () => {
      await fails('before');
      await Promise.all([fails('beside'), pipeline(threeAttempts(clock)).execute(() => clock.sleep(5))]);
      await pipeline(timeout({ after: 100, clock })).execute(() => fails('inside'));
      await pipeline(threeAttempts(clock)).execute(() => runDetached(() => fails('detached')));
      await fails('after');
    })();
    await clock.runAll();
    await running;
    expect(counts).toEqual({ beside: 3, before: 3, after: 3, inside: 3, detached: 3 });
  });
});
