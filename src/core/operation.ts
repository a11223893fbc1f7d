/**
 * Operation: the innermost step of a pipeline, which runs the caller's task.
 *
 * Promise: whatever the task throws or returns becomes a promise whose callbacks run once and asynchronously.
 */
import { type Ambient, ambient, type CallObserver, callObserver } from './ambient.js';
import type { Call } from './call.js';
import { rejectLater } from './outcome.js';

/** The rest of a pipeline. It never throws and always returns a promise. */
export type Next = (call: Call) => Promise<unknown>;

/** The innermost step: the operation itself. */
export const runTask: Next = (call) => {
  const observer = callObserver();
  return observer === undefined ? runOperation(call) : runObserved(observer, call);
};

// A separate function: one that creates a closure allocates for it even when it returns earlier.
function runObserved(observer: CallObserver, call: Call): Promise<unknown> {
  return observer.attempt(call, () => runOperation(call));
}

function runOperation(call: Call): Promise<unknown> {
  try {
    const around = ambient();
    const answer = around === undefined ? call.task(call) : runWithin(around, call);
    // A promise of another class also becomes one whose callbacks run once and asynchronously.
    return Promise.resolve(answer);
  } catch (error) {
    return rejectLater(error);
  }
}

function runWithin(around: Ambient, call: Call): unknown {
  return around.run(call, () => call.task(call));
}
