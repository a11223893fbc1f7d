/**
 * Table: what a benchmark compares, what it measures of each contender, and what it is expected to show.
 */
import type { OnceMeasure, RoundMeasure } from './measures.ts';

/** One call of a contender. It is given the caller's signal where a measure has one. */
export type Operation = (signal?: AbortSignal) => unknown;

export interface Contender {
  readonly name: string;
  /** Called once, in the contender's own process. Imports belong in here, so that each process loads only its own. */
  readonly prepare: () => Operation | Promise<Operation>;
}

/** One round: what each contender measured, by name; a measure taken once is found as `name: measure`. */
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
  /** What ratios refer to. */
  readonly baseline: string;
  /** What added time refers to. */
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

/** The operation that everything wraps. */
export const userTask = async () => 1;

/** The least a call can cost: await of the user's async function. */
export const bare: Contender = { name: 'bare', prepare: () => userTask };

/** The least that any `run(fn)` of one asynchronous layer can cost. */
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
