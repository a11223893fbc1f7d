/**
 * holdfast: composable resilience primitives. This file only names what is public.
 */

export {
  type Cache,
  type CacheGetOptions,
  type CacheLifetime,
  type CacheOptions,
  type CacheSource,
  cache,
  type LoadContext,
  type Loader,
  type ManyLoader,
  type Serializer,
  type SerializerName,
} from './coordination/cache/cache.js';
export { type Memoized, type MemoizeOptions, memoize } from './coordination/cache/memoize.js';
export {
  type Idempotency,
  type IdempotencyCounts,
  type IdempotencyEncryption,
  type IdempotencyHandle,
  type IdempotencyOptions,
  type IdempotencyResolution,
  type IdempotencyRunOptions,
  type IdempotencyScope,
  idempotency,
  type ResultSerializer,
  type TransactionHandle,
} from './coordination/idempotency/idempotency.js';
export {
  type FencedGuardOptions,
  type FencedUpdateOptions,
  type FenceGate,
  type FenceGateOptions,
  fencedGuard,
  fencedUpdate,
  fenceGate,
  type SqlPlaceholders,
  type SqlStatement,
} from './coordination/mutex/fence.js';
export { type Leader, type LeaderOptions, type LeaderRunOptions, leader } from './coordination/mutex/leader.js';
export type { Lease, LeaseRelease } from './coordination/mutex/lease-handle.js';
export type { LockHolder, LockMode } from './coordination/mutex/line.js';
export type { AcquireOptions, LockContext, LockInspection, LockKeys } from './coordination/mutex/locks.js';
export { type Mutex, type MutexOptions, mutex } from './coordination/mutex/mutex.js';
export type { LeaseOptions, LockOptions } from './coordination/mutex/options.js';
export { type Semaphore, type SemaphoreOptions, semaphore } from './coordination/mutex/semaphore.js';
export { Call, type CallOptions, type Task } from './core/call.js';
export { type Clock, callbackTimer, systemClock, Timer } from './core/clock.js';
export type { CompositionWarning } from './core/composition.js';
export type { Duration } from './core/duration.js';
export {
  AbandonedError,
  BulkheadFullError,
  CircuitOpenError,
  DeadlineExceededError,
  DeadlineTooShortError,
  HandlesError,
  HoldfastError,
  type HoldfastErrorCode,
  InDoubtError,
  InFlightError,
  isAbandoned,
  isHoldfastError,
  isRejected,
  KeyMissingError,
  KeyReusedError,
  LoadBackoffError,
  LockLostError,
  LockUnavailableError,
  OptionsError,
  RateLimitedError,
  RejectedError,
  ShedError,
  StaleFenceError,
  StoreError,
  type StoreFailure,
  TimeoutError,
} from './core/errors.js';
export type {
  BulkheadFullEvent,
  CacheGetEvent,
  CacheLoadEvent,
  CacheWarning,
  CacheWarningEvent,
  CircuitChangedEvent,
  CircuitKeptClosedEvent,
  CircuitNotRestoredEvent,
  CircuitRefusedEvent,
  DeadlineExceededEvent,
  DeadlineTooShortEvent,
  FallbackEvent,
  FlightSharedEvent,
  HedgeEvent,
  HedgeFailedEvent,
  HedgeSkippedEvent,
  HedgeWonEvent,
  HoldfastEvent,
  HookFailedEvent,
  IdempotencyEvent,
  IdempotencyOutcome,
  LimitChangedEvent,
  LockAcquiredEvent,
  LockForceReleasedEvent,
  LockLostEvent,
  LockReleasedEvent,
  LockUnavailableEvent,
  PacedEvent,
  RateLimitedEvent,
  ReconnectedEvent,
  RetryEvent,
  RetryStop,
  RetryStoppedEvent,
  RetrySucceededEvent,
  ShedEvent,
  ThrottledEvent,
  TimeoutEvent,
} from './core/events.js';
export type { CommonOptions, RefusalOptions } from './core/options.js';
export type { Handles, Outcome } from './core/outcome.js';
export {
  type AddedBy,
  type AnyPolicy,
  type ExecuteOptions,
  type Explanation,
  type Pipeline,
  pipeline,
} from './core/pipeline.js';
export {
  type Guard,
  isRefusal,
  type Permit,
  type Policy,
  type PolicyTraits,
  type Refusal,
  refuse,
  type Strategy,
} from './core/policy.js';
export {
  type AdaptiveLimitGuard,
  type AdaptiveLimitOptions,
  adaptiveLimit,
} from './policies/adaptive-limit/adaptive-limit.js';
export { type BulkheadGuard, type BulkheadOptions, bulkhead } from './policies/bulkhead.js';
export {
  type CircuitBreaker,
  type CircuitBreakerOptions,
  circuitBreaker,
  type HalfOpenOptions,
} from './policies/circuit-breaker/circuit-breaker.js';
export type { CircuitSnapshot, CircuitState } from './policies/circuit-breaker/snapshot.js';
export { type DeadlineGuard, type DeadlineOptions, deadline } from './policies/deadline.js';
export { type FallbackOptions, fallback } from './policies/fallback.js';
export { type HedgeOptions, type HedgeQuantile, hedge } from './policies/hedge.js';
export { type Keyed, type KeyedOptions, keyed } from './policies/keyed.js';
export { type LoadShedGuard, type LoadShedOptions, loadShed, type Priority } from './policies/load-shed.js';
export { type RateLimitGuard, type RateLimitOptions, rateLimit } from './policies/rate-limit.js';
export {
  type Backoff,
  type BackoffState,
  constant,
  type DecorrelatedOptions,
  decorrelated,
  type ExponentialOptions,
  exponential,
} from './policies/retry/backoff.js';
export { type AttemptsReport, attemptsOf, type RetryOptions, retry } from './policies/retry/retry.js';
export { type RetryBudget, type RetryBudgetOptions, retryBudget } from './policies/retry/retry-budget.js';
export { type SingleFlightOptions, singleFlight } from './policies/single-flight.js';
export { type StandardOptions, standard } from './policies/standard.js';
export { type ThrottleGuard, type ThrottleOptions, throttle } from './policies/throttle.js';
export { type TimeoutGuard, type TimeoutOptions, timeout } from './policies/timeout.js';
export { type MemoryStore, type MemoryStoreOptions, memoryStore } from './stores/memory.js';
export type {
  ClosableStore,
  Consumed,
  ConsumeOptions,
  Entry,
  GuardOptions,
  GuardRefused,
  NativeCapabilities,
  QueueEnterOptions,
  QueueRefused,
  QueueTurn,
  Refused,
  Store,
  StoreCallOptions,
  StoreChange,
  StoreQueue,
  StoreRemoveOptions,
  StoreTransaction,
  StoreView,
  StoreWatch,
  StoreWriteOptions,
  Written,
} from './stores/store.js';
