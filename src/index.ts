/**
 * holdfast: composable resilience primitives. This file only names what is public.
 */
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
  isAbandoned,
  isHoldfastError,
  isRejected,
  OptionsError,
  RateLimitedError,
  RejectedError,
  ShedError,
  TimeoutError,
} from './core/errors.js';
export type {
  DeadlineExceededEvent,
  DeadlineTooShortEvent,
  FallbackEvent,
  HoldfastEvent,
  HookFailedEvent,
  RetryEvent,
  RetryStop,
  RetryStoppedEvent,
  RetrySucceededEvent,
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
export { type DeadlineGuard, type DeadlineOptions, deadline } from './policies/deadline.js';
export { type FallbackOptions, fallback } from './policies/fallback.js';
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
export { type TimeoutGuard, type TimeoutOptions, timeout } from './policies/timeout.js';
