/** Options of the response cache, and the rules among them that a route may override. */
import type { CacheOptions } from '../../coordination/cache/cache.js';
import type { Duration } from '../../core/duration.js';
import {
  checkOptions,
  duration,
  type Field,
  func,
  integer,
  oneOf,
  optional,
  text,
  withDefault,
} from '../../core/options.js';
import type { ResponseLifetime } from './storability.js';

/** Rules for responses, of a route or of all routes. */
export interface ResponseCacheRules<Request> {
  /** How long a response stays fresh that does not state it. Default 0: it is not kept. */
  readonly ttl?: Duration | undefined;
  /** How long after that the stale response is served while a new one is made, unless the response states it. Default 0. */
  readonly staleWhileRevalidate?: Duration | undefined;
  /** How long after that the stale response is served instead of a 5xx or 429, unless the response states it. Default 0; an hour is a good choice. */
  readonly staleIfError?: Duration | undefined;
  /** The longest body that is kept. A longer one is sent as it is written. Default 960 KiB, which fits into every store. */
  readonly maxBodyBytes?: number | undefined;
  /**
   * Replaces path and query in the key, to ignore differences that do not matter. Protocol, host, credentials and `Vary` always count as well.
   * Default: path and query as they were sent.
   */
  readonly key?: ((request: Request) => string) | undefined;
  /** The tags of a response, by which `invalidateTag` finds it. Called once the handler has answered. At most 99, each of 1 to 200 characters. */
  readonly tags?: ((request: Request) => readonly string[]) | undefined;
}

/** Options of `responseCache`: those of the cache, and the rules for responses. */
export type ResponseCacheOptions<Request> = Pick<CacheOptions<unknown>, (typeof passedOn)[number]> &
  ResponseCacheRules<Request> & {
    /** In events, in `Cache-Status`, and as prefix of the keys: each response cache in a store needs its own. Default `'responses'`. */
    readonly name?: string | undefined;
    /**
     * What a POST, PUT, DELETE or the like answered 2xx or 3xx does to the cached responses of its URL. `'invalidate'`, the default: they are
     * invalidated. `'ignore'`: they stay until they expire, or a tag is invalidated.
     */
    readonly onUnsafe?: 'invalidate' | 'ignore' | undefined;
  };

/** The options of `cache` that have the same meaning here. */
const passedOn = [
  ...(['store', 'jitter', 'early', 'max', 'maxBytes', 'maxL1Ttl', 'lease', 'hardTimeout', 'waitTimeout'] as const),
  ...(['maxConcurrentLoads', 'failBackoff', 'l2Timeouts', 'onStoreDown', 'random', 'on', 'clock'] as const),
] as const;

/** The rules with their defaults. */
export interface CheckedRules<Request> {
  readonly lifetime: ResponseLifetime;
  readonly maxBodyBytes: number;
  readonly key: ((request: Request) => string) | undefined;
  readonly tags: ((request: Request) => readonly string[]) | undefined;
}

export const policy = 'responseCache';
const span = /* @__PURE__ */ duration({ min: 0 });
const lookedUp: Field<unknown> = { allowed: 'as for cache()', parse: (value) => value };

function ruleFields<Request>() {
  return {
    ttl: withDefault(span, 0),
    staleWhileRevalidate: withDefault(span, 0),
    staleIfError: withDefault(span, 0),
    maxBodyBytes: withDefault(integer({ min: 0 }), 983_040),
    key: optional(func<(request: Request) => string>()),
    tags: optional(func<(request: Request) => readonly string[]>()),
  };
}

/** Splits the options into those of the cache and those that the response cache uses itself. */
export function checkCacheOptions<Request>(options: ResponseCacheOptions<Request>) {
  const fields = Object.fromEntries(passedOn.map((name) => [name, optional(lookedUp)]));
  const checked = checkOptions(policy, options, {
    ...fields,
    ...ruleFields<Request>(),
    name: withDefault(text(), 'responses'),
    onUnsafe: withDefault<'invalidate' | 'ignore'>(oneOf(['invalidate', 'ignore']), 'invalidate'),
  }) as Readonly<Record<string, unknown>> & { readonly name: string; readonly onUnsafe: 'invalidate' | 'ignore' };
  const passed: Partial<CacheOptions<unknown>> = Object.fromEntries(passedOn.map((name) => [name, checked[name]]));
  return { name: checked.name, onUnsafe: checked.onUnsafe, passed };
}

/** The rules given in the options, overridden by those of a route. */
export function checkRules<Request>(
  options: ResponseCacheRules<Request>,
  own: ResponseCacheRules<Request> = {},
): CheckedRules<Request> {
  const fields = ruleFields<Request>();
  checkOptions(`${policy} of a route`, own, fields);
  const merged = Object.fromEntries(
    Object.keys(fields).map((name) => [
      name,
      (own as Record<string, unknown>)[name] ?? (options as Record<string, unknown>)[name],
    ]),
  );
  const { ttl, staleWhileRevalidate, staleIfError, maxBodyBytes, key, tags } = checkOptions(policy, merged, fields);
  return { lifetime: { ttl, staleWhileRevalidate, staleIfError }, maxBodyBytes, key, tags };
}
