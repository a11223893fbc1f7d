/**
 * Measures: what is measured of a contender, inside its own process. Times are processor time of the thread, which leaves out whatever else the
 * machine does.
 */
import { createHook } from 'node:async_hooks';
import { getEventListeners } from 'node:events';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { threadUs } from '../test/support/thread-time.ts';
import { quartilesOf } from './statistics.ts';
import type { Operation } from './table.ts';

/** Measured in each round; `repetitions` are chosen so that a sample takes long enough. */
export type RoundMeasure = keyof typeof roundMeasures;
/** Measured once, in a process whose young generation is so large that nothing is collected meanwhile. */
export type OnceMeasure = keyof typeof onceMeasures;

/** How many calls a burst begins at once. */
export const burstCalls = 10_000;
/** Few enough that their allocations fit into the young generation. */
const allocatingCalls = 5_000;
/** Enough calls to hide what the engine itself keeps, which varies by some ten thousand bytes. */
const leavingCalls = 200_000;
/** Checks allocate a tenth of what calls do. */
const allocatingChecks = 100_000;
/** How many circuits one run of an operation creates, in measures that count circuits. */
export const circuitsPerBatch = 10_000;
/** How many calls have waited when one run of an operation has ended, in measures that count waiters. */
export const waitersPerBatch = 10_000;

/** The times of one call through our code and one through the bare client. */
export interface TimesTaken {
  readonly ownMs: number;
  readonly bareMs: number;
}

export const roundMeasures = {
  /** One call after another, each awaited. */
  'ns per call': async (call: Operation, repetitions: number) => {
    const startedUs = threadUs();
    for (let left = repetitions; left > 0; left--) await call();
    return ((threadUs() - startedUs) * 1000) / repetitions;
  },

  /**
   * The time from call to answer of an operation that waits for another process, relative to the bare call. The two alternate, so whatever else the
   * machine does affects both alike. The operation makes both calls and returns how long each took.
   */
  'times the bare call': async (call: Operation, repetitions: number) => {
    const pairs: TimesTaken[] = [];
    for (let left = repetitions; left > 0; left--) pairs.push((await call()) as TimesTaken);
    const median = (ofOne: (pair: TimesTaken) => number) => quartilesOf(pairs.map(ofOne)).median;
    return median(({ ownMs }) => ownMs) / median(({ bareMs }) => bareMs);
  },

  /** For operations that are not asynchronous. */
  'ns per check': (call: Operation, repetitions: number) => {
    const startedUs = threadUs();
    for (let left = repetitions * 100; left > 0; left--) call();
    return ((threadUs() - startedUs) * 1000) / (repetitions * 100);
  },

  /** Like `ns per call`, for calls that fail; a result that is not a promise is not awaited. */
  'ns per failing call': async (call: Operation, repetitions: number) => {
    const startedUs = threadUs();
    for (let left = repetitions; left > 0; left--) {
      try {
        const answer = call();
        if (answer instanceof Promise) await answer;
      } catch {}
    }
    return ((threadUs() - startedUs) * 1000) / repetitions;
  },

  /** Creating circuits, each with its key. The operation returns a function that drops them. */
  'ns per circuit': async (call: Operation, repetitions: number) => {
    let spentUs = 0;
    for (let left = repetitions; left > 0; left--) {
      const startedUs = threadUs();
      const drop = (await call()) as Drop;
      spentUs += threadUs() - startedUs;
      drop();
    }
    return (spentUs * 1000) / (repetitions * circuitsPerBatch);
  },

  /** From start to end of a call that waits. */
  'ns per waiter': async (call: Operation, repetitions: number) => {
    const startedUs = threadUs();
    for (let left = repetitions; left > 0; left--) await call();
    return ((threadUs() - startedUs) * 1000) / (repetitions * waitersPerBatch);
  },

  /** How long 10,000 calls started at once block everything else. */
  'ms blocked': async (call: Operation, repetitions: number) => {
    const blocks: number[] = [];
    for (let left = repetitions; left > 0; left--) {
      const startedUs = threadUs();
      const turn = new Promise<number>((resolve) => setImmediate(() => resolve(threadUs() - startedUs)));
      const calls = Array.from({ length: burstCalls }, () => call());
      blocks.push((await turn) / 1000);
      await Promise.all(calls);
      await nextTurn();
    }
    return quartilesOf(blocks).median;
  },

  /** Start and expiry of 10,000 calls at once: some contenders prepare the error when a call starts. */
  'µs per expiry': (call: Operation, repetitions: number) => expire(call, repetitions, 'with beginning'),

  /** The same without the start. */
  'µs per expiry alone': (call: Operation, repetitions: number) => expire(call, repetitions, 'alone'),
} satisfies Record<string, (call: Operation, repetitions: number) => number | Promise<number>>;

export const onceMeasures = {
  'B per call': (call: Operation) =>
    grownBy(9, allocatingCalls, async () => {
      for (let left = allocatingCalls; left > 0; left--) await call();
    }),

  'B left': (call: Operation) =>
    grownBy(5, leavingCalls, async () => {
      for (let left = leavingCalls; left > 0; left--) await call();
      await settle();
    }),

  'timers left': async (call: Operation) => {
    const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    // Includes what existed before the calls: an idle policy should own no timer.
    for (let left = 100; left > 0; left--) await call();
    await nextTurn();
    return timers();
  },

  'listeners left': async (call: Operation) => {
    const { signal } = new AbortController();
    for (let left = 100; left > 0; left--) await call(signal);
    await nextTurn();
    return getEventListeners(signal, 'abort').length;
  },
  'B per check': (call: Operation) =>
    grownBy(9, allocatingChecks, () => {
      for (let left = allocatingChecks; left > 0; left--) call();
    }),

  'B per circuit': (call: Operation) =>
    grownBy(5, circuitsPerBatch, async () => {
      const drop = (await call()) as Drop;
      await settle();
      return drop;
    }),

  /** All timers created, including those that would not keep a process alive. */
  'timers per circuit': async (call: Operation) => {
    let timers = 0;
    const hook = createHook({
      init(_id, type) {
        if (type === 'Timeout') timers++;
      },
    });
    hook.enable();
    const drop = (await call()) as Drop;
    hook.disable();
    drop();
    return timers / circuitsPerBatch;
  },

  /**
   * Processor time used by circuits while none of them is called; a microsecond is a millionth of a core. The minimum over a few seconds, because the
   * collector continues for a while.
   */
  'µs idle per s': async (call: Operation) => {
    const drop = (await call()) as Drop;
    await settle();
    const samples: number[] = [];
    for (let second = 0; second < 5; second++) {
      const startedUs = threadUs();
      await sleep(1000);
      samples.push(threadUs() - startedUs);
    }
    drop();
    return Math.min(...samples);
  },
} satisfies Record<string, (call: Operation) => Promise<number>>;

type Drop = () => void;

async function expire(call: Operation, repetitions: number, counted: 'with beginning' | 'alone'): Promise<number> {
  let spentUs = 0;
  for (let left = repetitions; left > 0; left--) {
    let startedUs = threadUs();
    let pending = burstCalls;
    await new Promise<void>((allExpired, fail) => {
      const onExpired = () => {
        if (--pending === 0) allExpired();
      };
      const onValue = () => fail(new Error('a call that never ends must expire'));
      for (let index = 0; index < burstCalls; index++) (call() as Promise<unknown>).then(onValue, onExpired);
      if (counted === 'alone') startedUs = threadUs();
    });
    spentUs += threadUs() - startedUs;
    await nextTurn();
  }
  return spentUs / (repetitions * burstCalls);
}

/** By how much some work lets the heap grow, per call of it; the median of so many samples. It may answer what is to be done after each. */
async function grownBy(samples: number, calls: number, work: () => unknown): Promise<number> {
  const growths: number[] = [];
  for (let sample = 0; sample < samples; sample++) {
    await settle();
    const before = process.memoryUsage().heapUsed;
    const drop = (await work()) as Drop | undefined;
    growths.push((process.memoryUsage().heapUsed - before) / calls);
    drop?.();
  }
  return quartilesOf(growths).median;
}

async function settle(): Promise<void> {
  await nextTurn();
  globalThis.gc?.();
  await nextTurn();
  globalThis.gc?.();
}
