/**
 * Loader: what makes a value, and what it is told.
 */
import type { Clock } from '../../core/clock.js';

/** What a loader is told. */
export interface LoadContext {
  /** Aborts when nobody waits for the value any more, at `hardTimeout`, and when the cache is closed. */
  readonly signal: AbortSignal;
  /** Milliseconds until `hardTimeout`. */
  readonly remainingMs: number;
  /** Nobody waits: what is there is shown meanwhile. */
  readonly isBackground: boolean;
}

/** Makes the value of a key, or a promise of it. `context.signal` aborts when nobody waits for it any more, or after `hardTimeout`. */
export type Loader<V, K> = (key: K, context: LoadContext) => V | PromiseLike<V>;

/** Loads many keys: a value, or an `Error` of its own, for each key, in their order. */
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

/** Also what the loader throws at once rejects. */
export async function callLoader<V, K>(load: Loader<V, K>, key: K, context: LoadContext): Promise<V> {
  return load(key, context);
}
