/** Table: which contenders a benchmark compares, what it measures of each, and the expected result. */
import type { OnceMeasure, RoundMeasure } from './measures.ts';

/** One call of a contender. It receives the caller's signal if a measure has one. */
export type Operation = (signal?: AbortSignal) => unknown;

export interface Contender {
  readonly name: string;
  /** Called once, in the contender's own process. Imports belong inside it, so that each process loads only its own. */
  readonly prepare: () => Operation | Promise<Operation>;
}

/** One round: the measurement of each contender by name; one-time measurements are named `name: measure`. */
export type Round = Readonly<Record<string, number>>;

export interface Target {
  readonly text: string;
  readonly value: (round: Round) => number;
  readonly limit: number;
  readonly bound: 'at most' | 'at least';
}

export interface Table {
  readonly name: string;
  readonly title: string;
  readonly note?: string;
  readonly measure: RoundMeasure;
  readonly once?: readonly OnceMeasure[];
  /** The contender that ratios refer to. */
  readonly baseline: string;
  /** The contender that added time refers to. */
  readonly floor?: string;
  readonly contenders: readonly Contender[];
  readonly targets: readonly Target[];
}

export function atMost(limit: number, text: string, value: (round: Round) => number): Target {
  return { text, value, limit, bound: 'at most' };
}

export function atLeast(limit: number, text: string, value: (round: Round) => number): Target {
  return { text, value, limit, bound: 'at least' };
}

/** The operation that all contenders wrap. */
export const userTask = async () => 1;

/** The minimum cost of a call: awaiting the user's async function. */
export const bare: Contender = { name: 'bare', prepare: () => userTask };

/** The minimum cost of any `run(fn)` with one asynchronous layer. */
export const emptyWrapper: Contender = {
  name: 'empty async wrapper',
  prepare: () => {
    const run = async (task: () => Promise<unknown>) => {
      try {
        return await task();
      } catch (error) {
        // biome-ignore lint/complexity/noUselessCatch: the layer that every policy needs is what this floor measures.
        throw error;
      }
    };
    return () => run(userTask);
  },
};
