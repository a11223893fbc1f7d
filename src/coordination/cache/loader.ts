/**
 * Loader: the function that produces a value, and the context it receives.
 *
 * Promise: a load belongs to all who wait for it. The call in which one of them asked does not end it.
 */
import { type Ambient, ambient } from '../../core/ambient.js';
import { Call } from '../../core/call.js';
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

/** One run of a loader: when it ends, and whom it is for. */
export interface LoadTerms {
  readonly signal: AbortSignal;
  readonly clock: Clock;
  readonly endsMs: number;
  readonly isBackground: boolean;
}

/** Async, so that a synchronous throw of the loader becomes a rejection. */
export async function callLoader<Keys, Loaded>(
  load: (keys: Keys, context: LoadContext) => Loaded | PromiseLike<Loaded>,
  keys: Keys,
  terms: LoadTerms,
): Promise<Loaded> {
  const around = ambient();
  return around === undefined ? load(keys, contextOf(terms)) : callWithin(around, load, keys, terms);
}

/** Calls the loader in a call without a parent, which ends with the load: pipelines inside end with it, and not with the caller that happened to begin it. */
async function callWithin<Keys, Loaded>(
  around: Ambient,
  load: (keys: Keys, context: LoadContext) => Loaded | PromiseLike<Loaded>,
  keys: Keys,
  terms: LoadTerms,
): Promise<Loaded> {
  const { clock, endsMs, signal } = terms;
  const task = () => load(keys, contextOf(terms));
  const work = new Call(clock, task, undefined, undefined, 1, endsMs);
  if (around.current()?.isRetried()) work.retriedBy = work;
  work.followSignal(signal);
  try {
    return await around.run(work, task);
  } finally {
    work.unfollow();
  }
}

function contextOf({ signal, clock, endsMs, isBackground }: LoadTerms): LoadContext {
  return {
    signal,
    isBackground,
    get remainingMs() {
      return Math.max(0, endsMs - clock.now());
    },
  };
}
