/**
 * Pipeline: policies composed into one function, once, when it is built. They are listed outermost first.
 *
 * Promise: an operation that throws, returns a plain value, a thenable or nothing, or rejects with anything at all is
 * treated as an `async` function would treat it; when the caller's signal aborts, `execute` rejects at once with its reason.
 */

import { ambient, type CallObserver, callObserver } from './ambient.js';
import { showBriefly } from './brief.js';
import { Call, type CallOptions, showCallsBriefly, type Task } from './call.js';
import { type Clock, systemClock } from './clock.js';
import { type CompositionWarning, commonClock, refuseImpossible, warningsOf } from './composition.js';
import { parseDuration } from './duration.js';
import { OptionsError } from './errors.js';
import { guardLayer, retryLayer } from './layer.js';
import { type Next, runTask } from './operation.js';
import { impossibleOption, show } from './options.js';
import { type Outcome, rejectLater } from './outcome.js';
import type { Guard, Policy, Strategy } from './policy.js';

/** Options of one execution. Only an operation with an `idempotencyKey` may be `unsafe`; without one it gets one attempt. */
export type ExecuteOptions = Omit<CallOptions, 'unsafe' | 'idempotencyKey'> &
  (
    | { readonly unsafe: true; readonly idempotencyKey: string }
    | { readonly unsafe?: false | undefined; readonly idempotencyKey?: string | undefined }
  );

/** Describes a pipeline and its doubtful parts. `String(explanation)` is the text. */
export interface Explanation {
  readonly warnings: readonly CompositionWarning[];
  toString(): string;
}

/** Policies composed into one. A pipeline is itself a policy: inside another pipeline, its policies take its place. */
export interface Pipeline<Added = never> extends Policy<Added> {
  /** The policies, outermost first, including those of inner pipelines. */
  readonly policies: readonly Policy<unknown>[];
  /**
   * Runs an operation.
   *
   * @param task - The operation. It receives its call: `({ signal }) => fetch(url, { signal })`.
   * @param options - Options of this execution: `signal`, `deadline`, `key`, `idempotencyKey`, `unsafe`, `attributes`.
   * @throws What the operation threw in its last attempt, or the error of the policy that ended the call; {@link OptionsError} `ERR_OPTIONS`
   * for a task that is not a function, and for invalid options.
   */
  execute<T>(task: Task<T>, options?: ExecuteOptions): Promise<T | Added>;
  /** Runs an operation and returns its outcome; never rejects. It is cheaper than `execute` where calls are often refused. */
  attempt<T>(task: Task<T>, options?: ExecuteOptions): Promise<Outcome<T | Added>>;
  /** Returns a function with the same name and parameters that runs through this pipeline. `this` is passed on. */
  wrap<This, Args extends unknown[], Result>(
    task: (this: This, ...args: Args) => Result,
  ): (this: This, ...args: Args) => Promise<Awaited<Result> | Added>;
  /** Describes the order in words, and reports what is doubtful about it. */
  explain(): Explanation;
}

/** What a pipeline can be composed of. */
export type AnyPolicy = Guard | Strategy<unknown> | Pipeline<unknown>;

/** What the policies of a list add to the result. */
export type AddedBy<Policies extends readonly AnyPolicy[]> = Policies[number] extends infer Each
  ? Each extends Policy<infer Added>
    ? Added
    : never
  : never;

/**
 * Composes policies, outermost first.
 *
 * @param policies - Guards, strategies and other pipelines, in any number. Without any, the operation just runs.
 * @throws {@link OptionsError} when an argument is not a policy, when two policies run on different clocks, and for the few
 * orders that cannot work: two retries, a fallback inside a breaker, a timeout that is not below its deadline.
 * @example
 * ```ts
 * import { deadline, exponential, pipeline, retry, timeout } from 'holdfast';
 *
 * const steady = pipeline(
 *   deadline('5s'),
 *   retry({ attempts: 3, backoff: exponential({ initial: 10, max: '1s' }) }),
 *   timeout('1s'),
 * );
 * const answer = await steady.execute(async ({ attempt }) => {
 *   if (attempt === 1) throw new Error('connection reset');
 *   return 42;
 * });
 * console.log(answer, String(steady.explain()));
 * ```
 */
export function pipeline<const Policies extends readonly AnyPolicy[]>(
  ...policies: Policies
): Pipeline<AddedBy<Policies>> {
  showBriefly(LinkedPipeline.prototype, figuresOfPipeline);
  showCallsBriefly();
  return new LinkedPipeline(policies) as Pipeline<AddedBy<Policies>>;
}

function figuresOfPipeline({ name, policies }: LinkedPipeline): object {
  return { name, policies: policies.map((policy) => policy.name) };
}

class LinkedPipeline implements Pipeline<unknown> {
  readonly name = 'pipeline';
  readonly policies: readonly Policy<unknown>[];
  readonly #clock: Clock;
  readonly #run: Next;
  /** The same chain behind a layer that watches the caller's signal and deadline. */
  readonly #runWatched: Next;

  constructor(given: readonly AnyPolicy[]) {
    this.policies = given.flatMap(flatten);
    refuseImpossible(this.policies);
    this.#clock = commonClock(this.policies) ?? systemClock;
    this.#run = link(this.policies);
    this.#runWatched = beginsWithLayer(this.policies) ? this.#run : guardLayer([], this.#run, true);
  }

  execute<T>(task: Task<T>, options?: ExecuteOptions): Promise<T> {
    try {
      const call = this.#callOf(task, options);
      const observer = callObserver();
      if (observer === undefined) return this.#runCall(call, options) as Promise<T>;
      return this.#runObserved(observer, call, options) as Promise<T>;
    } catch (error) {
      return rejectLater(error);
    }
  }

  attempt<T>(task: Task<T>, options?: ExecuteOptions): Promise<Outcome<T>> {
    let run: Promise<unknown>;
    try {
      if (callObserver() !== undefined) return outcomeOf<T>(this.execute(task, options));
      const call = this.#callOf(task, options);
      call.asOutcome = true;
      if (options !== undefined || call.parent !== undefined) {
        if (options?.signal !== undefined) call.followSignal(options.signal);
        return this.#runWatched(call) as Promise<Outcome<T>>;
      }
      run = this.#run(call);
    } catch (error) {
      return Promise.resolve({ ok: false, error });
    }
    if (this.#run === this.#runWatched) return run as Promise<Outcome<T>>;
    return outcomeOf<T>(run);
  }

  wrap<This, Args extends unknown[], Result>(
    task: (this: This, ...args: Args) => Result,
  ): (this: This, ...args: Args) => Promise<Awaited<Result>> {
    if (typeof task !== 'function') throw notAFunction('wrap', task);
    const wrapped = this;
    const run = function (this: This, ...args: Args) {
      return wrapped.execute(() => task.apply(this, args)) as Promise<Awaited<Result>>;
    };
    // Frameworks inspect the number of parameters: Express recognises an error handler by it.
    return Object.defineProperties(run, {
      name: { value: task.name, configurable: true },
      length: { value: task.length, configurable: true },
    });
  }

  explain(): Explanation {
    const steps = stepsOf(this.policies);
    const warnings = warningsOf(steps.map(({ policy }) => policy));
    const doubts = warnings.map(({ code, message }) => `Doubtful (${code}): ${message}.`);
    const lines = steps.map(({ place, policy: { name, traits } }) => {
      return `${place} ${name}: ${traits?.summary ?? 'a policy of your own'}`;
    });
    const text = ['From the outside in:', ...lines, `${this.policies.length + 1}. the operation`, ...doubts].join('\n');
    return { warnings, toString: () => text };
  }

  #callOf(task: Task<unknown>, options: ExecuteOptions | undefined): Call {
    if (typeof task !== 'function') throw notAFunction('execute', task);
    const around = ambient()?.current();
    if (options === undefined && around === undefined) return new Call(this.#clock, task, undefined);
    if (options !== undefined) checkCallOptions(options);
    const deadlineMs = Math.min(instantOf(options?.deadline, this.#clock), instantOfOuter(around, this.#clock));
    return new Call(this.#clock, task, options && copyOf(options), around, 1, deadlineMs);
  }

  // A separate method: a function that creates a closure allocates for it even when it returns earlier.
  #runObserved(observer: CallObserver, call: Call, options: ExecuteOptions | undefined): Promise<unknown> {
    return observer.call(call, this.policies, () => this.#runCall(call, options));
  }

  #runCall(call: Call, options: ExecuteOptions | undefined): Promise<unknown> {
    if (options?.signal !== undefined) call.followSignal(options.signal);
    else if (options?.deadline === undefined && call.parent === undefined) return this.#run(call);
    return this.#runWatched(call);
  }
}

/** A policy and its place, such as `3.`; the policies inside it are `3.1.`, `3.2.` and so on. */
interface Step {
  readonly place: string;
  readonly policy: Policy<unknown>;
}

function stepsOf(policies: readonly Policy<unknown>[], number = ''): readonly Step[] {
  return policies.flatMap((policy, index) => {
    const place = `${number}${index + 1}.`;
    return [{ place, policy }, ...stepsOf(policy.traits?.inside?.() ?? [], place)];
  });
}

/** Builds the chain from the inside out. Neighbouring guards become one layer, including a retry between them. */
export function link(policies: readonly Policy<unknown>[], innermost: Next = runTask, isWhole = true): Next {
  let next = innermost;
  let end = policies.length;
  while (end > 0) {
    const innerStart = startOfGuards(policies, end);
    const inner = policies.slice(innerStart, end) as Guard[];
    const strategy = policies[innerStart - 1] as Strategy<unknown> | undefined;
    const outerEnd = Math.max(innerStart - 1, 0);
    const outerStart = startOfGuards(policies, outerEnd);
    const outer = policies.slice(outerStart, outerEnd) as Guard[];
    if (strategy?.resumable !== undefined && inner.length + outer.length > 0) {
      next = retryLayer(outer, strategy.resumable, inner, next, isWhole && outerStart === 0);
      end = outerStart;
      continue;
    }
    if (inner.length > 0) next = guardLayer(inner, next, isWhole && innerStart === 0);
    if (strategy !== undefined) next = strategyStep(strategy, next);
    end = innerStart - 1;
  }
  return next;
}

/** The start of the run of guards that ends right before `end`. */
function startOfGuards(policies: readonly Policy<unknown>[], end: number): number {
  let start = end;
  while (isGuard(policies[start - 1])) start--;
  return start;
}

/** Whether the outermost step is a layer, which watches the caller's signal and deadline. */
function beginsWithLayer([first, second]: readonly Policy<unknown>[]): boolean {
  return isGuard(first) || ((first as Strategy | undefined)?.resumable !== undefined && isGuard(second));
}

/** A custom strategy may continue after its call was ended. A layer makes this check itself. */
const runUnlessOver: Next = (call) => (call.aborted ? rejectLater(call.reason) : runTask(call));

function strategyStep(strategy: Strategy<unknown>, inside: Next): Next {
  const next = inside === runTask ? runUnlessOver : inside;
  return (call) => {
    try {
      const answer = strategy.handle(call, next);
      return Promise.resolve(answer);
    } catch (error) {
      return rejectLater(error);
    }
  };
}

function flatten(policy: Policy<unknown>, index: number): readonly Policy<unknown>[] {
  if (isPolicy(policy)) return Array.isArray((policy as Pipeline).policies) ? (policy as Pipeline).policies : [policy];
  const advice = Array.isArray(policy)
    ? '; spread it, pipeline(...policies)'
    : typeof policy === 'function'
      ? '; call the factory, and give an operation to execute()'
      : '';
  throw new OptionsError(
    `pipeline: argument ${index + 1} must be a policy such as timeout('1s'), got ${show(policy)}${advice}`,
    {
      policy: 'pipeline',
      option: String(index),
      value: policy,
      allowed: 'a guard, a strategy or a pipeline',
    },
  );
}

/** Whether a value can be part of a pipeline. */
export function isPolicy(value: unknown): value is AnyPolicy {
  if (!isObject(value)) return false;
  const { admit, handle, policies } = value as Partial<Guard & Strategy & Pipeline>;
  return typeof admit === 'function' || typeof handle === 'function' || Array.isArray(policies);
}

function isGuard(policy: Policy<unknown> | undefined): policy is Guard {
  return typeof (policy as Guard | undefined)?.admit === 'function';
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null;
}

const callOptionChecks: Readonly<
  Record<string, { readonly allowed: string; readonly fits: (value: unknown) => boolean }>
> = {
  signal: {
    allowed: 'an AbortSignal',
    fits: isSignal,
  },
  deadline: {
    allowed: "an instant of the pipeline's clock in milliseconds or a duration literal such as '2s'",
    fits: (value) => (typeof value === 'number' ? !Number.isNaN(value) : parseDuration(value) !== undefined),
  },
  key: { allowed: 'a string', fits: isString },
  idempotencyKey: { allowed: 'a string that is not empty', fits: (value) => isString(value) && value !== '' },
  unsafe: { allowed: 'true or false', fits: (value) => typeof value === 'boolean' },
  attributes: { allowed: 'an object', fits: isObject },
};

function isSignal(value: unknown): boolean {
  if (!isObject(value)) return false;
  const { aborted, addEventListener, removeEventListener } = value as AbortSignal;
  return (
    typeof aborted === 'boolean' && typeof addEventListener === 'function' && typeof removeEventListener === 'function'
  );
}

function isString(value: unknown): boolean {
  return typeof value === 'string';
}

/** Runs on every call, so it visits only the keys that are present. */
function checkCallOptions(options: ExecuteOptions): void {
  if (!isObject(options)) {
    const allowed = 'an object';
    const message = `execute: options must be ${allowed}, got ${show(options)}`;
    throw new OptionsError(message, { policy: 'execute', option: 'options', value: options, allowed });
  }
  for (const name in options) {
    const value = options[name as keyof ExecuteOptions];
    const check = Object.hasOwn(callOptionChecks, name) ? callOptionChecks[name] : undefined;
    if (check === undefined) {
      const allowed = Object.keys(callOptionChecks).join(', ');
      const message = `execute: unknown option "${name}", the options are ${allowed}`;
      throw new OptionsError(message, { policy: 'execute', option: name, value, allowed });
    }
    if (value !== undefined && !check.fits(value)) throw impossibleOption('execute', name, value, check.allowed);
  }
}

/** A copy, because the options may be changed later. It holds what they inherit, too, as from shared defaults: an `unsafe` must not get lost. */
function copyOf(options: ExecuteOptions): ExecuteOptions {
  const prototype: unknown = Object.getPrototypeOf(options);
  if (prototype === Object.prototype || prototype === null) return { ...options };
  const copy: Record<string, unknown> = {};
  for (const name in callOptionChecks) copy[name] = options[name as keyof ExecuteOptions];
  // The accessors of a class cannot be enumerated, so they have not been checked yet.
  checkCallOptions(copy);
  return copy;
}

const tenYearsMs = 315_360_000_000;
/** The latest instant that a JavaScript `Date` can represent. */
const lastDateMs = 8.64e15;

function instantOf(deadline: ExecuteOptions['deadline'], clock: Clock): number {
  if (deadline === undefined) return Number.POSITIVE_INFINITY;
  if (typeof deadline !== 'number') return clock.now() + (parseDuration(deadline) ?? 0);
  // A clock counts from about the start of the process, so an instant that far ahead is a date and would never come.
  if (deadline > tenYearsMs && deadline <= lastDateMs && deadline - clock.now() > tenYearsMs) {
    const allowed = `an instant of the pipeline's clock, which says ${Math.round(clock.now())} and does not count from 1970, or a duration literal such as '2s'`;
    throw impossibleOption('execute', 'deadline', deadline, allowed);
  }
  return deadline;
}

/** The deadline of the call around this one, which may run on another clock. */
function instantOfOuter(around: Call | undefined, clock: Clock): number {
  if (around === undefined || around.clock === clock) return around?.deadlineMs ?? Number.POSITIVE_INFINITY;
  return clock.now() + around.remainingMs;
}

function outcomeOf<T>(run: Promise<unknown>): Promise<Outcome<T>> {
  return run.then(
    (value) => ({ ok: true, value: value as T }),
    (error) => ({ ok: false, error }),
  );
}

function notAFunction(method: string, value: unknown): OptionsError {
  // The operation has already begun, so nothing can repeat or end it.
  const got = value instanceof Promise ? 'a promise; give the function that makes it, () => ...' : show(value);
  return new OptionsError(`${method}: the operation must be a function, got ${got}`, {
    policy: method,
    option: 'task',
    value,
    allowed: 'a function',
  });
}
