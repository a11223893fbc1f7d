/**
 * Every order of retry, timeout, deadline and fallback that `pipeline` accepts, with every kind of operation, abort and broken hook. Each call settles once and
 * on time, and nothing of it is left.
 */
import { getEventListeners } from 'node:events';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type AnyPolicy,
  constant,
  deadline,
  fallback,
  type HoldfastEvent,
  OptionsError,
  type Outcome,
  type Pipeline,
  pipeline,
  retry,
  timeout,
} from '../../src/index.js';
import { type VirtualClock, virtualClock } from '../../src/testing/index.js';
import { forbidUnhandledRejections } from '../support/unhandled-rejections.ts';

type Kind = 'retry' | 'timeout' | 'deadline' | 'fallback';
const kinds: readonly Kind[] = ['retry', 'timeout', 'deadline', 'fallback'];

const seed = 41;
const ms = (max: number) => fc.integer({ min: 1, max });

/** What one attempt does: how it ends, after which time, and whether it obeys its signal. */
const behaviour = fc.record({
  ends: fc.constantFrom('value', 'error', 'never', 'throws at once', 'value at once', 'thenable'),
  afterMs: ms(30),
  mindsSignal: fc.boolean(),
});

const scenario = fc.record({
  order: fc.shuffledSubarray([...kinds], { minLength: 1 }),
  timeoutMs: ms(40),
  deadlineMs: ms(80),
  attempts: fc.integer({ min: 1, max: 4 }),
  delayMs: fc.integer({ min: 0, max: 20 }),
  behaviours: fc.array(behaviour, { minLength: 1, maxLength: 4 }),
  abortAt: fc.option(fc.integer({ min: 0, max: 60 })),
  callDeadlineAt: fc.option(fc.integer({ min: -1, max: 80 })),
  hookThrows: fc.boolean(),
});

type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never;

class Failure extends Error {}

function build(shape: Scenario, clock: VirtualClock, answer: () => unknown = () => 'instead') {
  const { order, timeoutMs, deadlineMs, attempts, delayMs, hookThrows } = shape;
  const on = (_: HoldfastEvent) => {
    if (hookThrows) throw new Error('hook');
  };
  const make: Record<Kind, () => AnyPolicy> = {
    retry: () => retry({ attempts, backoff: constant(delayMs), on, clock }),
    timeout: () => timeout({ after: timeoutMs, on, clock }),
    deadline: () => deadline({ after: deadlineMs, on, clock }),
    fallback: () => fallback(answer, { on, clock }),
  };
  return pipeline(...order.map((kind) => make[kind]()));
}

/** Runs one call to its end on its own clock, and returns everything that can be observed. */
async function play(shape: Scenario, way: 'attempt' | 'execute') {
  const clock = virtualClock();
  let fallbacks = 0;
  const policies = build(shape, clock, () => {
    fallbacks++;
    return 'instead';
  }) as Pipeline<unknown>;
  const controller = new AbortController();
  const startsAt: number[] = [];
  const signals: AbortSignal[] = [];
  /** The signals of operations that have not ended. */
  const pending = new Set<AbortSignal>();
  const task = async (attempt: number, signal: AbortSignal) => {
    const { ends, afterMs, mindsSignal } = shape.behaviours[(attempt - 1) % shape.behaviours.length]!;
    pending.add(signal);
    try {
      await clock.sleep(ends === 'never' ? 500 : afterMs, mindsSignal ? { signal } : {});
    } finally {
      pending.delete(signal);
    }
    if (ends === 'value') return attempt;
    throw new Failure(`attempt ${attempt}`);
  };
  const begin = ({ attempt, signal }: { attempt: number; signal: AbortSignal }) => {
    startsAt.push(clock.now());
    signals.push(signal);
    const { ends } = shape.behaviours[(attempt - 1) % shape.behaviours.length]!;
    if (ends === 'throws at once') throw new Failure(`attempt ${attempt}`);
    if (ends === 'value at once') return attempt;
    if (ends !== 'thenable') return task(attempt, signal);
    return {
      then(resolve: (value: number) => void, reject: (error: unknown) => void) {
        resolve(attempt);
        resolve(-1);
        reject(new Error('too late'));
      },
    };
  };
  const options = {
    signal: controller.signal,
    ...(shape.callDeadlineAt === null ? {} : { deadline: shape.callDeadlineAt }),
  };
  const settledAt: number[] = [];
  let outcome: Outcome | undefined;
  let unattended = 0;
  const settle = (seen: Outcome) => {
    for (const signal of pending) if (!signal.aborted) unattended++;
    settledAt.push(clock.now());
    outcome = seen;
  };
  if (way === 'attempt') {
    // A rejection of `attempt` is left unhandled, so that it fails the test.
    void policies.attempt(begin as () => unknown, options).then(settle);
  } else {
    void policies.execute(begin as () => unknown, options).then(
      (value) => settle({ ok: true, value }),
      (error) => settle({ ok: false, error }),
    );
  }
  const abortedAt = shape.abortAt;
  if (abortedAt !== null) {
    await clock.advance(abortedAt);
    controller.abort('gone');
    await clock.flush();
  }
  await clock.runAll();
  return {
    settledAt,
    outcome,
    startsAt,
    signals,
    unattended,
    fallbacks,
    timersLeft: clock.pendingTimers,
    listenersLeft: getEventListeners(controller.signal, 'abort').length,
  };
}

function isAccepted(shape: Scenario): boolean {
  try {
    build(shape, virtualClock());
    return true;
  } catch (error) {
    expect(error).toBeInstanceOf(OptionsError);
    return false;
  }
}

forbidUnhandledRejections();

async function holds(check: (shape: Scenario) => Promise<void>, numRuns = 400) {
  await fc.assert(
    fc.asyncProperty(scenario, async (shape) => {
      fc.pre(isAccepted(shape));
      await check(shape);
    }),
    { seed, numRuns },
  );
}

describe('pipeline, in every order of retry, timeout, deadline and fallback that it accepts', () => {
  it('settles each call exactly once and leaves neither a timer nor a listener', async () => {
    await holds(async (shape) => {
      const { settledAt, timersLeft, listenersLeft } = await play(shape, 'attempt');
      expect({ settlements: settledAt.length, timersLeft, listenersLeft }).toEqual({
        settlements: 1,
        timersLeft: 0,
        listenersLeft: 0,
      });
    });
  });

  it('begins no attempt after the call has settled, and none beyond the number allowed', async () => {
    await holds(async (shape) => {
      const { settledAt, startsAt } = await play(shape, 'attempt');
      expect(Math.max(...startsAt, 0)).toBeLessThanOrEqual(settledAt[0]!);
      expect(startsAt.length).toBeLessThanOrEqual(shape.order.includes('retry') ? shape.attempts : 1);
    });
  });

  it('settles no later than the abort of its caller, the deadline of the call and each end around everything that waits', async () => {
    await holds(async (shape) => {
      const { settledAt } = await play(shape, 'attempt');
      const { order } = shape;
      const around = (kind: Kind) =>
        order.includes(kind) && (!order.includes('retry') || order.indexOf(kind) < order.indexOf('retry'));
      const latestMs = Math.min(
        shape.abortAt ?? Number.POSITIVE_INFINITY,
        shape.callDeadlineAt === null ? Number.POSITIVE_INFINITY : Math.max(0, shape.callDeadlineAt),
        around('deadline') ? shape.deadlineMs : Number.POSITIVE_INFINITY,
        around('timeout') ? shape.timeoutMs : Number.POSITIVE_INFINITY,
      );
      expect(settledAt[0]).toBeLessThanOrEqual(latestMs);
    });
  });

  it('leaves the signal of the attempt that a call succeeded with unaborted', async () => {
    await holds(async (shape) => {
      const { outcome, signals } = await play({ ...shape, abortAt: null }, 'attempt');
      if (outcome?.ok !== true || outcome.value === 'instead') return;
      expect(signals.at(-1)?.aborted).toBe(false);
    });
  });

  it('lets no operation go on with a signal that is not aborted when its call has settled', async () => {
    await holds(async (shape) => {
      expect((await play(shape, 'attempt')).unattended).toBe(0);
    });
  });

  it('asks no fallback for a caller who has gone', async () => {
    await holds(async (shape) => {
      const { outcome, fallbacks } = await play(shape, 'attempt');
      if (outcome?.ok === false && outcome.error === 'gone') expect(fallbacks).toBe(0);
    });
  });

  it('tells by execute what it tells by attempt, at the same instant and after the same attempts', async () => {
    const view = ({ outcome, settledAt, startsAt }: Awaited<ReturnType<typeof play>>) => ({
      settledAt,
      startsAt,
      ok: outcome?.ok,
      value: outcome?.ok ? outcome.value : String(outcome?.error),
    });
    await holds(async (shape) => {
      expect(view(await play(shape, 'execute'))).toEqual(view(await play(shape, 'attempt')));
    }, 200);
  });

  it('refuses only an order in which a timeout could never be reached within its deadline', async () => {
    await fc.assert(
      fc.property(scenario, (shape) => {
        const { order, timeoutMs, deadlineMs } = shape;
        const cannotBeMeant =
          order.includes('deadline') && order.indexOf('timeout') > order.indexOf('deadline') && timeoutMs >= deadlineMs;
        expect(isAccepted(shape)).toBe(!cannotBeMeant);
      }),
      { seed, numRuns: 500 },
    );
  });
});
