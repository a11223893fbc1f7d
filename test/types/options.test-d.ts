/** An option that is undefined counts as left out, in its type as at run time. */
import { describe, expectTypeOf, it } from 'vitest';
import type { CreateFetchOptions } from '../../src/client/fetch.js';
import type * as holdfast from '../../src/index.js';
import type { HealthOptions, IdempotencyMiddlewareOptions, ResponseCacheOptions } from '../../src/server/express.js';
import type { IdempotencyPluginOptions } from '../../src/server/fastify.js';
import type { PostgresStoreOptions } from '../../src/stores/postgres.js';
import type { RedisStoreOptions } from '../../src/stores/redis.js';
import type { SqliteStoreOptions } from '../../src/stores/sqlite.js';

/** The same options, with undefined allowed wherever one may be left out. */
type WithUndefined<T> = {
  [Key in keyof T]: object extends Pick<T, Key> ? T[Key] | undefined : T[Key];
};

interface Options {
  adaptiveLimit: holdfast.AdaptiveLimitOptions;
  bulkhead: holdfast.BulkheadOptions;
  cache: holdfast.CacheOptions<string>;
  circuitBreaker: holdfast.CircuitBreakerOptions;
  createFetch: CreateFetchOptions;
  deadline: holdfast.DeadlineOptions;
  exponential: holdfast.ExponentialOptions;
  fallback: holdfast.FallbackOptions;
  health: HealthOptions;
  hedge: holdfast.HedgeOptions;
  httpIdempotency: IdempotencyMiddlewareOptions<unknown>;
  idempotency: holdfast.IdempotencyOptions;
  idempotencyPlugin: IdempotencyPluginOptions;
  idempotencyRun: holdfast.IdempotencyRunOptions;
  keyed: holdfast.KeyedOptions;
  loadShed: holdfast.LoadShedOptions;
  memoryStore: holdfast.MemoryStoreOptions;
  mutex: holdfast.MutexOptions;
  postgresStore: PostgresStoreOptions;
  rateLimit: holdfast.RateLimitOptions;
  redisStore: RedisStoreOptions;
  responseCache: ResponseCacheOptions<unknown>;
  retry: holdfast.RetryOptions;
  retryBudget: holdfast.RetryBudgetOptions;
  sqliteStore: SqliteStoreOptions;
  standard: holdfast.StandardOptions;
  throttle: holdfast.ThrottleOptions;
  timeout: holdfast.TimeoutOptions;
}

/** The options that do not follow this rule. */
type Strict = {
  [Name in keyof Options]: WithUndefined<Options[Name]> extends Options[Name] ? never : Name;
}[keyof Options];

describe('options', () => {
  it('may be undefined where they may be left out', () => {
    expectTypeOf<Strict>().toBeNever();
  });
});
