/**
 * Ambient: process-wide state that the core consults: the current call, if `holdfast/context` keeps it, and the observers of calls and attempts, if
 * there are any.
 *
 * Promise: nothing is kept unless it is asked for. With a current call, a pipeline that runs inside an operation of another pipeline ends with it,
 * knows its deadline, and does not multiply its retries. The state is found through `globalThis`, so it is shared by all copies of the package.
 */
import type { Call } from './call.js';
import type { Policy } from './policy.js';

/** The interface that `holdfast/context` provides. */
export interface Ambient {
  /** The call whose operation is running, or undefined. */
  current(): Call | undefined;
  /** Runs a function with `call` as the current call; undefined: with none. */
  run<T>(call: Call | undefined, task: () => T): T;
}

/**
 * Wraps every call of a pipeline and every attempt, for metrics and traces. It runs the given function once and synchronously, returns its result,
 * and throws nothing itself.
 */
export interface CallObserver {
  call(call: Call, policies: readonly Policy<unknown>[], run: () => Promise<unknown>): Promise<unknown>;
  /** An attempt is one run of the operation. A call that a policy refuses makes none. */
  attempt(call: Call, run: () => Promise<unknown>): Promise<unknown>;
  /** A call without a parent, whose attempts are those of another one that began it. */
  adopt(call: Call, by: Call): void;
}

const place = Symbol.for('holdfast.context');

/** One cell for all copies of the package, created by the first copy, so that reading it costs a call next to nothing. */
interface Cell {
  ambient: Ambient | undefined;
  /** All observers combined; undefined while there are none. An unobserved call reads only this. */
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

/** Registers the keeper of the current call, unless another copy of the package has done so. Returns the keeper in force. */
export function provideAmbient(provided: Ambient): Ambient {
  cell.ambient ??= provided;
  return cell.ambient;
}

export function callObserver(): CallObserver | undefined {
  return cell.observer;
}

/** Registers an observer of all calls and returns a function that removes it. */
export function observeCalls(observer: CallObserver): () => void {
  setObservers([...cell.observers, observer]);
  return () => setObservers(cell.observers.filter((other) => other !== observer));
}

function setObservers(observers: readonly CallObserver[]): void {
  cell.observers = observers;
  const [first, ...others] = observers;
  cell.observer = others.length === 0 ? first : allOf(observers);
}

/** Combines observers; the first one is outermost. */
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
