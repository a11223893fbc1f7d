/**
 * Operation: the innermost step of a pipeline, which runs what the caller gave.
 *
 * Promise: whatever it throws or answers becomes a promise whose callbacks come once and later.
 */
import { type Ambient, ambient, type CallObserver, callObserver } from './ambient.js';
import type { Call } from './call.js';
import { rejectLater } from './outcome.js';

/** The rest of a pipeline: never throws, always answers a promise. */
export type Next = (call: Call) => Promise<unknown>;

/** The innermost step: the operation itself. */
export const runTask: Next = (call) => {
  const observer = callObserver();
  return observer === undefined ? runOperation(call) : runObserved(observer, call);
};

// Apart, because a function that makes a closure allocates for it also where it does not get that far.
function runObserved(observer: CallObserver, call: Call): Promise<unknown> {
  return observer.attempt(call, () => runOperation(call));
}

function runOperation(call: Call): Promise<unknown> {
  try {
    const around = ambient();
    const answer = around === undefined ? call.task(call) : runWithin(around, call);
    // Also a promise of another class becomes one whose callbacks come once and later.
    return Promise.resolve(answer);
  } catch (error) {
    return rejectLater(error);
  }
}

function runWithin(around: Ambient, call: Call): unknown {
  return around.run(call, () => call.task(call));
}
