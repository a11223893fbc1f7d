/**
 * Loader: the function that produces a value, and the context it receives.
 */
import type { Clock } from '../../core/clock.js';

/** What a loader receives. */
export interface LoadContext {
  /** Aborts when no caller waits for the value any more, at `hardTimeout`, and when the cache is closed. */
  readonly signal: AbortSignal;
  /** Milliseconds until `hardTimeout`. */
  readonly remainingMs: number;
  /** Whether no caller waits: the present value is served meanwhile. */
  readonly isBackground: boolean;
}

/** Loads the value of a key, or returns a promise of it. `context.signal` aborts when no caller waits for it any more, or after `hardTimeout`. */
export type Loader<V, K> = (key: K, context: LoadContext) => V | PromiseLike<V>;

/** Loads many keys: returns a value, or its own `Error`, for each key, in their order. */
export type ManyLoader<V, K> = (
  keys: readonly K[],
  context: LoadContext,
) => readonly (V | Error)[] | PromiseLike<readonly (V | Error)[]>;

export function loadContext(signal: AbortSignal, clock: Clock, endsMs: number, isBackground: boolean): LoadContext {
  return {
    signal,
    isBackground,
    get remainingMs() {
      return Math.max(0, endsMs - clock.now());
    },
  };
}

/** Async, so that a synchronous throw of the loader becomes a rejection. */
export async function callLoader<V, K>(load: Loader<V, K>, key: K, context: LoadContext): Promise<V> {
  return load(key, context);
}
