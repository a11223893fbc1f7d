/**
 * Context: carries the current call through awaits, timers and callbacks with `AsyncLocalStorage`.
 *
 * Promise: importing this file starts nothing, because on Node 22 one `AsyncLocalStorage.run` makes every promise of the process more expensive. From
 * {@link enableContext} on, each operation of each pipeline knows the call it runs under. All copies of the package share one context.
 */
import { type Ambient, ambient, provideAmbient } from '../core/ambient.js';
import type { Call } from '../core/call.js';
import { HoldfastError } from '../core/errors.js';
import { checkArgument, func, having } from '../core/options.js';

/**
 * Starts propagation of the current call, for this process and permanently. A second call does nothing.
 *
 * From then on, a pipeline that runs inside an operation of another one has that call's deadline, ends when it ends, and
 * leaves further attempts to an outer retry. Call it once, when the program starts. On Node 22, every promise of the
 * process then costs about 60 ns more; on other versions, each call of a pipeline costs about 100 ns more.
 *
 * @throws {@link HoldfastError} `ERR_CONTEXT_UNAVAILABLE` on a runtime without `node:async_hooks`.
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

/** The call whose operation is running; undefined outside of one, and before {@link enableContext}. */
export function currentCall(): Call | undefined {
  return ambient()?.current();
}

/**
 * When the current call will be given up: an instant of its clock, in milliseconds; `Infinity` without a call or without
 * a deadline. `currentCall()?.remainingMs` is the time left until then.
 */
export function currentDeadline(): number {
  return currentCall()?.deadline ?? Number.POSITIVE_INFINITY;
}

/**
 * Runs a function with a call as the current one, and enables the context if necessary.
 *
 * Use it where the context gets lost: in a callback of a pool, an event emitter or a queue that was set up
 * elsewhere. Operations of a pipeline do not need it.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, when the arguments are not a call and a function.
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
  // Undefined, which a request without a call passes, runs the function without a current call.
  if (call !== undefined) checkArgument('runWithCall', 'call', call, callField);
  checkArgument('runWithCall', 'task', task, func());
  return keeper().run(call, task);
}

const callField = /* @__PURE__ */ having<Call>('the call that an operation is given', 'child', 'abort');

/**
 * Runs a function with no current call, so that the work it starts outlives the outer call: work that continues after the
 * response, or a background refresh.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, when the argument is not a function: the work of a promise has already begun under the call.
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
