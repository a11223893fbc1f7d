/**
 * Policy: the two contracts for everything in a pipeline. A guard decides whether a call may start and learns how it ended; a strategy decides how
 * often it is made.
 */
import type { Call } from './call.js';
import type { Clock } from './clock.js';
import type { Outcome } from './outcome.js';

declare const added: unique symbol;

/** Anything that a pipeline is made of. `Added` is the type it may add to the result, such as a fallback's value. */
export interface Policy<Added = never> {
  readonly name: string;
  /** What `explain()` and the composition rules use. */
  readonly traits?: PolicyTraits;
  /** Only for the types; never there. */
  readonly [added]?: { readonly type: Added };
}

/** What a policy tells of itself. Policies of your own may leave it out; then no rule of composition concerns them. */
export interface PolicyTraits {
  /** What it is: `'retry'`, `'timeout'`, `'deadline'`, `'fallback'`, `'circuit-breaker'`, or a word of your own. */
  readonly kind: string;
  /** What it does with these options, in words: `'gives an attempt up after 1000 ms'`. */
  readonly summary: string;
  /** The clock it was given. A pipeline runs on one clock. */
  readonly clock?: Clock | undefined;
  /** When it gives a call up, in milliseconds. */
  readonly afterMs?: number;
  /** The most attempts that it makes. */
  readonly attempts?: number;
  /** The longest total wait between its attempts, in milliseconds, as far as it chooses the waits itself; undefined if that is not known. */
  readonly totalDelayMs?: number | undefined;
  /** The time that its window spans, in milliseconds. */
  readonly windowMs?: number | undefined;
  /** How long it waits before it sends a copy of the call, in milliseconds, if that is fixed. */
  readonly delayMs?: number | undefined;
  /** The most copies of the call that it sends, in addition to the first attempt. */
  readonly copies?: number;
  /** Whether its attempts are drawn from a budget. */
  readonly hasBudget?: boolean;
  /** The policies that a call passes through inside it, outermost first, for `explain()` to show. */
  readonly inside?: () => readonly Policy<unknown>[];
}

/** Decides whether a call may start, and learns how it ended. It returns a refusal; it does not throw one. */
export interface Guard extends Policy {
  /** Returns a permit or a refusal; a promise only if the call queues. Aborting `call` must take it out of the queue. */
  admit(call: Call): Permit | Refusal | Promise<Permit | Refusal>;
  /** @internal */
  readonly fused?: FusedAdmission;
}

/** A cheaper way for a layer to ask a guard. A layer uses each permit exactly once, so one permit may serve many calls. */
export interface FusedAdmission {
  /** The `admit` that this replaces. A guard derived from this one with a different `admit` is asked through that. */
  readonly of: Guard['admit'];
  readonly admit: (call: Call) => Permit | Refusal;
  /**
   * Whether the last call failed. Present only if the guard's permits never want `ended`, and set no end while all is well, and otherwise only by
   * `endsAt`. After a success the layer uses the operation's own promise (see `loneGuard` of the layer), which makes a success cheaper and a failure
   * more expensive.
   */
  readonly lastFailed?: () => boolean;
}

/** The right to run one operation. Exactly one of `settle` and `release` is called, once. */
export interface Permit {
  /** When the layer gives the call up: an instant of the call's clock. */
  readonly endsAt?: number;
  /** @internal The same, counted from admission, so that one permit may serve many calls. */
  readonly endsAfterMs?: number;
  /** The error with which it gives up. Called once, then. Default: a `TimeoutError`. */
  endReason?(): unknown;
  /** @internal Whether `ended` passes a late value on, so that no strategy outside receives it as well. */
  readonly takesLateValues?: boolean;
  /** The call ended with this outcome; the guard learns from it. */
  settle(outcome: Outcome): void;
  /** The call ended without telling anything about the service: its caller aborted it, or a policy inside refused it. */
  release(): void;
  /**
   * The work has really ended: at once after `settle` or `release`, or, when the call was given up while its operation
   * ran on, when that ends. `late` is then how the operation ended.
   */
  ended?(late?: Outcome): void;
}

/** The refusal of a call by a guard. */
export interface Refusal {
  /** The error that the caller gets: usually a `RejectedError`. */
  readonly error: unknown;
}

/** Decides how often and for how long an operation is tried. */
export interface Strategy<Added = never> extends Policy<Added> {
  /** Calls `next` any number of times, also concurrently, with this call or a child of it. `next` never throws; it rejects. */
  handle<T>(call: Call, next: (call: Call) => Promise<T>): Promise<T | Added>;
  /** @internal A strategy whose first attempt a layer can make itself. */
  readonly resumable?: Resumable;
}

/** A retry as seen by a layer, which makes the first attempt itself because most calls need no other. */
export interface Resumable {
  /** Called before the first attempt of a call. */
  begin(call: Call): void;
  /** Whether the first attempt, with this outcome, is the last. If it throws, the call ends with that error. */
  accepts(outcome: Outcome, call: Call): boolean;
  /** Continues after a first attempt that was not accepted. */
  resume(call: Call, next: (call: Call) => Promise<unknown>, outcome: Outcome): Promise<unknown>;
}

/** Creates a refusal with this error. */
export function refuse(error: unknown): Refusal {
  return { error };
}

/** Whether a guard's answer is a refusal. */
export function isRefusal(answer: Permit | Refusal): answer is Refusal {
  return !isPermit(answer);
}

/** @internal */
export function isPermit(answer: Permit | Refusal | Promise<Permit | Refusal>): answer is Permit {
  return typeof (answer as Permit).settle === 'function';
}
