/**
 * Context: the call around the present one, carried through awaits, timers and callbacks by `AsyncLocalStorage`.
 *
 * Promise: importing this file starts nothing, because on Node 22 one `AsyncLocalStorage.run` makes every promise of the
 * process dearer; from {@link enableContext} on each operation of each pipeline knows the call it runs under. All copies
 * of the package share one context.
 */
import { type Ambient, ambient, provideAmbient } from '../core/ambient.js';
import type { Call } from '../core/call.js';
import { HoldfastError } from '../core/errors.js';
import { checkArgument, func, having } from '../core/options.js';

/**
 * Starts keeping the current call, for this process and for good. A second time it does nothing.
 *
 * From then on a pipeline that runs inside an operation of another one has that call's deadline, ends when it ends, and
 * leaves the further attempts to a retry around it. Call it once, when the program starts. On Node 22 every promise of the
 * process costs about 60 ns more from then on; on other versions the cost is about 100 ns per call of a pipeline.
 *
 * @throws {@link HoldfastError} `ERR_CONTEXT_UNAVAILABLE`, where there is no `node:async_hooks`.
 * @example
 * ```ts
 * import { deadline, pipeline } from 'holdfast';
 * import { currentCall, enableContext } from 'holdfast/context';
 *
 * enableContext();
 * const askDatabase = async () => currentCall()?.remainingMs;
 * const leftMs = await pipeline(deadline('1s')).execute(() => askDatabase());
 * console.log(leftMs !== undefined && leftMs <= 1000);
 * ```
 */
export function enableContext(): void {
  keeper();
}

/** The call whose operation is running, or undefined: outside of one, or before {@link enableContext}. */
export function currentCall(): Call | undefined {
  return ambient()?.current();
}

/**
 * When the current call will be given up: an instant of its clock, in milliseconds; `Infinity` without a call or without
 * a deadline. `currentCall()?.remainingMs` is what is left until then.
 */
export function currentDeadline(): number {
  return currentCall()?.deadline ?? Number.POSITIVE_INFINITY;
}

/**
 * Runs a function with a call as the current one, and starts the context if need be.
 *
 * For places to which the context does not find: a callback of a pool, an event emitter or a queue that was set up
 * elsewhere. The operations of a pipeline need it not.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, when it is given something else than a call and a function.
 * @example
 * ```ts
 * import { pipeline } from 'holdfast';
 * import { currentCall, runWithCall } from 'holdfast/context';
 *
 * const inside = await pipeline().execute((call) => runWithCall(call, () => currentCall() === call));
 * console.log(inside);
 * ```
 */
export function runWithCall<T>(call: Call, task: () => T): T {
  // Undefined, which a request may have in its place, runs it under none.
  if (call !== undefined) checkArgument('runWithCall', 'call', call, callField);
  checkArgument('runWithCall', 'task', task, func());
  return keeper().run(call, task);
}

const callField = /* @__PURE__ */ having<Call>('the call that an operation is given', 'child', 'abort');

/**
 * Runs a function with no current call, so that what it starts outlives the call around it: work that goes on after the
 * answer, a refresh in the background.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, when it is given no function: a promise's work has begun under the call already.
 * @example
 * ```ts
 * import { currentCall, runDetached } from 'holdfast/context';
 *
 * console.log(runDetached(() => currentCall() === undefined));
 * ```
 */
export function runDetached<T>(task: () => T): T {
  checkArgument('runDetached', 'task', task, func());
  const around = ambient();
  return around === undefined ? task() : around.run(undefined, task);
}

function keeper(): Ambient {
  return ambient() ?? provideAmbient(asyncAmbient());
}

function asyncAmbient(): Ambient {
  const AsyncLocalStorage = globalThis.process?.getBuiltinModule?.('node:async_hooks')?.AsyncLocalStorage;
  if (AsyncLocalStorage === undefined) {
    throw new HoldfastError(
      'ERR_CONTEXT_UNAVAILABLE',
      'the context needs AsyncLocalStorage of node:async_hooks, which this platform does not have; pass the call on by hand',
      { stack: true },
    );
  }
  const storage = new AsyncLocalStorage<Call | undefined>();
  return {
    current: () => storage.getStore(),
    run: (call, task) => storage.run(call, task),
  };
}
