/**
 * Ambient: where the core finds the call around the present one, if `holdfast/context` keeps it.
 *
 * Promise: nothing is kept unless that entry was imported; then a pipeline that runs inside an operation of another one
 * ends with it, knows its deadline, and does not multiply its retries. Found through `globalThis`, so that it holds
 * across copies of the package.
 */
import type { Call } from './call.js';

/** What `holdfast/context` puts there. */
export interface Ambient {
  /** The call whose operation is running, or undefined. */
  current(): Call | undefined;
  /** Runs a function with `call` as the current one; undefined: with none. */
  run<T>(call: Call | undefined, task: () => T): T;
}

const place = Symbol.for('holdfast.context');

/** One cell for all copies of the package, made by the first, so that looking into it costs each call next to nothing. */
interface Cell {
  ambient: Ambient | undefined;
}

const cell: Cell = /* @__PURE__ */ sharedCell();

function sharedCell(): Cell {
  const shared = globalThis as { [place]?: Cell };
  shared[place] ??= { ambient: undefined };
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
