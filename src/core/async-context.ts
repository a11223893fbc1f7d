/**
 * Async context: what the caller's `AsyncLocalStorage` holds, kept for what goes on for him later. Timers expire in no context of
 * their own, so that after one logs and spans would lose their request, or get another one's.
 *
 * Promise: what runs in a kept context, and all that it sets off, sees what was there when it was kept. Where the platform has no
 * such context everything runs as it is; nothing is imported that it may not have.
 */

/** What was kept. An `AsyncResource` of Node is one. */
export interface AsyncContext {
  runInAsyncScope<This, Given extends unknown[], Answer>(
    task: (this: This, ...given: Given) => Answer,
    self: This,
    ...given: Given
  ): Answer;
}

const none: AsyncContext = { runInAsyncScope: (task, self, ...given) => task.apply(self, given) };

/** Keeps the present context. What follows a promise runs in it as well, at five times the bytes and a turn later. */
export const keepAsyncContext: () => AsyncContext = /* @__PURE__ */ keeperOfPlatform();

/**
 * A context in which there is nothing, wherever it is made. No call of Node's makes one, but there a kept context is a property, and may be taken out;
 * where it is another, what is there stays.
 */
export function emptyAsyncContext(): AsyncContext {
  const context = keepAsyncContext();
  for (const key of Object.getOwnPropertySymbols(context)) {
    // An assignment would throw if it were read-only, and with it the import of this package.
    if (keptAs.includes(key.description)) Reflect.set(context, key, undefined);
  }
  return context;
}

/** What Node 24 calls all that is there, and Node 20 and 22 each of it. */
const keptAs: readonly unknown[] = ['context_frame', 'kResourceStore'];

function keeperOfPlatform(): () => AsyncContext {
  const AsyncResource = globalThis.process?.getBuiltinModule?.('node:async_hooks')?.AsyncResource;
  if (AsyncResource === undefined) return () => none;
  // What set it off, as a number: beside options, or none, Node takes twice as long. In workerd no number may stand there.
  const keep = (trigger?: number) => new AsyncResource('holdfast', trigger);
  try {
    keep(1);
    return () => keep(1);
  } catch {
    return keep;
  }
}
