/**
 * Ambient: where the core finds what was put around all calls of the process: the current call, if `holdfast/context`
 * keeps it, and who observes calls and attempts, if somebody does.
 *
 * Promise: nothing is kept unless somebody asked for it; with a current call, a pipeline that runs inside an operation of
 * another one ends with it, knows its deadline, and does not multiply its retries. Found through `globalThis`, so that it
 * holds across copies of the package.
 */
import type { Call } from './call.js';
import type { Policy } from './policy.js';

/** What `holdfast/context` puts there. */
export interface Ambient {
  /** The call whose operation is running, or undefined. */
  current(): Call | undefined;
  /** Runs a function with `call` as the current one; undefined: with none. */
  run<T>(call: Call | undefined, task: () => T): T;
}

/**
 * Stands around every call of a pipeline and around every attempt, to measure and to trace. It runs what it is given once,
 * at once, answers what that answers, and throws nothing of its own.
 */
export interface CallObserver {
  call(call: Call, policies: readonly Policy<unknown>[], run: () => Promise<unknown>): Promise<unknown>;
  /** An attempt is a run of the operation: what a policy refuses makes none. */
  attempt(call: Call, run: () => Promise<unknown>): Promise<unknown>;
  /** A call without a parent, whose attempts are those of another one that began it. */
  adopt(call: Call, by: Call): void;
}

const place = Symbol.for('holdfast.context');

/** One cell for all copies of the package, made by the first, so that looking into it costs each call next to nothing. */
interface Cell {
  ambient: Ambient | undefined;
  /** The observers as one; undefined while there is none, which is all that an unobserved call looks at. */
  observer: CallObserver | undefined;
  observers: readonly CallObserver[];
}

const cell: Cell = /* @__PURE__ */ sharedCell();

function sharedCell(): Cell {
  const shared = globalThis as { [place]?: Cell };
  shared[place] ??= { ambient: undefined, observer: undefined, observers: [] };
  return shared[place];
}

export function ambient(): Ambient | undefined {
  return cell.ambient;
}

/** Puts the keeper of the current call in place, unless another copy of the package has done so; answers the one in force. */
export function provideAmbient(provided: Ambient): Ambient {
  cell.ambient ??= provided;
  return cell.ambient;
}

export function callObserver(): CallObserver | undefined {
  return cell.observer;
}

/** Lets somebody observe all calls from now on; answers how to stop that. */
export function observeCalls(observer: CallObserver): () => void {
  setObservers([...cell.observers, observer]);
  return () => setObservers(cell.observers.filter((other) => other !== observer));
}

function setObservers(observers: readonly CallObserver[]): void {
  cell.observers = observers;
  const [first, ...others] = observers;
  cell.observer = others.length === 0 ? first : allOf(observers);
}

/** The first one stands outermost. */
function allOf(observers: readonly CallObserver[]): CallObserver {
  return {
    call: (call, policies, run) =>
      observers.reduceRight((next, observer) => () => observer.call(call, policies, next), run)(),
    adopt(call, by) {
      for (const observer of observers) observer.adopt(call, by);
    },
    attempt: (call, run) => observers.reduceRight((next, observer) => () => observer.attempt(call, next), run)(),
  };
}
