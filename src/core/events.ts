/**
 * Events: one typed union, published on the diagnostics channel `holdfast` and given to each policy's `on` hook.
 *
 * Promise: unheard, an event point costs one check; an exception in a hook changes nothing for the call and is reported
 * once per policy, as a process warning with the code `HOLDFAST_HOOK_FAILED` and as an event `hook-failed`.
 */

import { messageOf } from './errors.js';
import type { Outcome } from './outcome.js';

/** A retry is about to wait. */
export interface RetryEvent {
  readonly type: 'retry';
  readonly name: string;
  /** The attempt that failed, from 1. */
  readonly attempt: number;
  readonly delayMs: number;
  /** What it failed with; undefined when `handles` took a value for a failure. */
  readonly error: unknown;
  /** How it ended, with the value that was taken for a failure. */
  readonly outcome: Outcome;
}

/** A call succeeded after at least one retry. */
export interface RetrySucceededEvent {
  readonly type: 'retry-succeeded';
  readonly name: string;
  readonly attempts: number;
}

/** A retry gave up. */
export interface RetryStoppedEvent {
  readonly type: 'retry-stopped';
  readonly name: string;
  readonly attempts: number;
  readonly stoppedBy: RetryStop;
  readonly error: unknown;
}

/** Why a retry made no further attempt. */
export type RetryStop = 'attempts' | 'deadline' | 'budget' | 'classifier' | 'pushback' | 'abort' | 'unsafe' | 'nested';

/** An attempt took longer than its `timeout`. */
export interface TimeoutEvent {
  readonly type: 'timeout';
  readonly name: string;
  readonly afterMs: number;
}

/** A call took longer than its deadline. */
export interface DeadlineExceededEvent {
  readonly type: 'deadline-exceeded';
  readonly name: string;
  readonly afterMs: number;
}

/** An operation was not started, because no time was left for it. */
export interface DeadlineTooShortEvent {
  readonly type: 'deadline-too-short';
  readonly name: string;
  readonly remainingMs: number;
}

/** A fallback answered in place of an error. */
export interface FallbackEvent {
  readonly type: 'fallback';
  readonly name: string;
  readonly error: unknown;
}

/** A hook of yours threw; see `error`. Only on the diagnostics channel. */
export interface HookFailedEvent {
  readonly type: 'hook-failed';
  readonly name: string;
  readonly hook: string;
  readonly error: unknown;
}

/** Everything that holdfast tells. */
export type HoldfastEvent =
  | RetryEvent
  | RetrySucceededEvent
  | RetryStoppedEvent
  | TimeoutEvent
  | DeadlineExceededEvent
  | DeadlineTooShortEvent
  | FallbackEvent
  | HookFailedEvent;

interface EventChannel {
  readonly hasSubscribers: boolean;
  publish(event: HoldfastEvent): void;
}

const silence: EventChannel = { hasSubscribers: false, publish() {} };
const channel: EventChannel = findModule('node:diagnostics_channel')?.channel('holdfast') ?? silence;

/** The events of one policy. Ask `heard` before building an event: unheard, that is all it costs. */
export class Events {
  readonly #name: string;
  readonly #on: ((event: HoldfastEvent) => unknown) | undefined;
  #hookHasFailed = false;

  constructor(name: string, on: ((event: HoldfastEvent) => unknown) | undefined) {
    this.#name = name;
    this.#on = on;
  }

  get heard(): boolean {
    return this.#on !== undefined || channel.hasSubscribers;
  }

  emit(event: HoldfastEvent): void {
    if (this.#on !== undefined) this.contain('on', () => this.#on?.(event));
    if (channel.hasSubscribers) channel.publish(event);
  }

  /** Calls a hook of the user's such that neither an exception nor a rejected promise of it reaches the call. */
  contain(hook: string, task: () => unknown): void {
    try {
      const answer = task();
      if (answer instanceof Promise) answer.catch((error) => this.#report(hook, error));
    } catch (error) {
      this.#report(hook, error);
    }
  }

  #report(hook: string, error: unknown): void {
    if (channel.hasSubscribers) channel.publish({ type: 'hook-failed', name: this.#name, hook, error });
    if (this.#hookHasFailed) return;
    this.#hookHasFailed = true;
    const text = `"${this.#name}": its "${hook}" hook threw and was contained (said once): ${messageOf(error)}`;
    globalThis.process?.emitWarning?.(text, { code: 'HOLDFAST_HOOK_FAILED' });
  }
}

/** Node's own module where there is one; nothing is imported, so the core also runs where it is missing. */
function findModule(name: 'node:diagnostics_channel') {
  return globalThis.process?.getBuiltinModule?.(name);
}
