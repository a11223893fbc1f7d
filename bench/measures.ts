/**
 * Measures: what is taken of a contender, inside its own process. Times are processor time of the thread, so that what
 * else the machine does is left out.
 */
import { getEventListeners } from 'node:events';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { quartilesOf } from './statistics.ts';
import type { Operation } from './table.ts';

/** Taken in each round: `repetitions` are chosen such that a sample takes long enough. */
export type RoundMeasure = keyof typeof roundMeasures;
/** Taken once, in a process whose young generation is so large that nothing is collected meanwhile. */
export type OnceMeasure = keyof typeof onceMeasures;

/** How many calls a burst begins at once. */
export const burstCalls = 10_000;
/** Few enough that what they allocate fits in the young generation. */
const allocatingCalls = 5_000;
const leavingCalls = 20_000;

export const roundMeasures = {
  /** One call after another, each awaited. */
  'ns per call': async (call: Operation, repetitions: number) => {
    const startedUs = threadUs();
    for (let left = repetitions; left > 0; left--) await call();
    return ((threadUs() - startedUs) * 1000) / repetitions;
  },

  /** For operations that are not asynchronous. */
  'ns per check': (call: Operation, repetitions: number) => {
    const startedUs = threadUs();
    for (let left = repetitions * 100; left > 0; left--) call();
    return ((threadUs() - startedUs) * 1000) / (repetitions * 100);
  },

  /** How long 10,000 calls begun at once keep everything else from running. */
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

  /** Beginning and expiry of 10,000 calls at once: some contenders prepare the error when a call begins. */
  'µs per expiry': (call: Operation, repetitions: number) => expire(call, repetitions, 'with beginning'),

  /** The same without the beginning. */
  'µs per expiry alone': (call: Operation, repetitions: number) => expire(call, repetitions, 'alone'),
} satisfies Record<string, (call: Operation, repetitions: number) => number | Promise<number>>;

export const onceMeasures = {
  'B per call': async (call: Operation) => {
    const samples: number[] = [];
    for (let sample = 0; sample < 9; sample++) {
      await settle();
      const before = process.memoryUsage().heapUsed;
      for (let left = allocatingCalls; left > 0; left--) await call();
      samples.push((process.memoryUsage().heapUsed - before) / allocatingCalls);
    }
    return quartilesOf(samples).median;
  },

  'B left': async (call: Operation) => {
    const samples: number[] = [];
    for (let sample = 0; sample < 5; sample++) {
      await settle();
      const before = process.memoryUsage().heapUsed;
      for (let left = leavingCalls; left > 0; left--) await call();
      await settle();
      samples.push((process.memoryUsage().heapUsed - before) / leavingCalls);
    }
    return quartilesOf(samples).median;
  },

  'timers left': async (call: Operation) => {
    const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    // Counts what was there before the calls too: an idle policy should own no timer.
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
} satisfies Record<string, (call: Operation) => Promise<number>>;

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

export function threadUs(): number {
  const { user, system } = process.threadCpuUsage();
  return user + system;
}

async function settle(): Promise<void> {
  await nextTurn();
  globalThis.gc?.();
  await nextTurn();
  globalThis.gc?.();
}
