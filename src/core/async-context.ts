/**
 * Async context: keeps the caller's `AsyncLocalStorage` state for work that continues later on its behalf. Timers expire without a context, so after
 * one, logs and spans would lose their request or get that of another.
 *
 * Promise: what runs in a kept context, and everything it starts, sees the state that was current when it was kept. On a platform without async
 * contexts everything runs as it is. Nothing is imported that the platform may lack.
 */

/** A kept context. Node's `AsyncResource` is one. */
export interface AsyncContext {
  runInAsyncScope<This, Given extends unknown[], Answer>(
    task: (this: This, ...given: Given) => Answer,
    self: This,
    ...given: Given
  ): Answer;
}

const none: AsyncContext = { runInAsyncScope: (task, self, ...given) => task.apply(self, given) };

/** Keeps the current context. Chaining on a promise would keep it as well, at five times the bytes and one turn later. */
export const keepAsyncContext: () => AsyncContext = /* @__PURE__ */ keeperOfPlatform();

/**
 * An empty context, wherever it is created. Node has no API for it, but there the kept state is a property that can be removed. On other platforms
 * the state that is there stays.
 */
export function emptyAsyncContext(): AsyncContext {
  const context = keepAsyncContext();
  for (const key of Object.getOwnPropertySymbols(context)) {
    // An assignment would throw if it were read-only, and with it the import of this package.
    if (keptAs.includes(key.description)) Reflect.set(context, key, undefined);
  }
  return context;
}

/** The property that holds the state: all of it on Node 24, one per store on Node 20 and 22. */
const keptAs: readonly unknown[] = ['context_frame', 'kResourceStore'];

function keeperOfPlatform(): () => AsyncContext {
  const AsyncResource = globalThis.process?.getBuiltinModule?.('node:async_hooks')?.AsyncResource;
  if (AsyncResource === undefined) return () => none;
  // The trigger id is passed as a number: with options, or with nothing, Node takes twice as long. In workerd no number is allowed there.
  const keep = (trigger?: number) => new AsyncResource('holdfast', trigger);
  try {
    keep(1);
    return () => keep(1);
  } catch {
    return keep;
  }
}
