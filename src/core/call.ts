/**
 * Call: what an operation and the policies around it know about one execution.
 *
 * Promise: an abort reaches everything below the call at once, in one synchronous pass. A call that ends normally aborts nothing and leaves no
 * listener behind. The signal costs nothing until it is read.
 */
import { addAbortListener, removeAbortListener } from './abort-listeners.js';
import { showBriefly } from './brief.js';
import type { Clock } from './clock.js';

/** An operation: it receives its call, and returns a value or a promise of one. */
export type Task<T> = (call: Call) => T | PromiseLike<T>;

/** Options of one execution. */
export interface CallOptions {
  /** Ends the call when it aborts: `execute` rejects with its reason at once, and the operation's signal aborts. */
  readonly signal?: AbortSignal | undefined;
  /**
   * When the call must be over: an instant of the pipeline's clock, such as `call.deadline` of an outer call,
   * or a duration literal such as `'2s'`, counted from now. A number is always an instant, and
   * never a date: those are refused, because the clock does not count from 1970.
   */
  readonly deadline?: number | `${number}${'ms' | 's' | 'm' | 'h' | 'd'}` | undefined;
  /** The partition: a host or tenant, for policies that keep one state per key. */
  readonly key?: string | undefined;
  /** Sent with each attempt, so that the service runs the operation once. */
  readonly idempotencyKey?: string | undefined;
  /** An operation that must not simply run twice. Without `idempotencyKey` it gets one attempt. */
  readonly unsafe?: boolean | undefined;
  /** Anything else that policies or the operation want to know. */
  readonly attributes?: Readonly<Record<string, unknown>> | undefined;
}

/** What a child call may override; it inherits the rest from its parent. */
export interface ChildOptions {
  readonly attempt?: number;
  readonly key?: string;
  readonly idempotencyKey?: string;
  readonly attributes?: Readonly<Record<string, unknown>>;
}

/** Something that must hear of a call's abort: an inner call, a layer of guards, a sleep. It is its own list node. */
export interface Dependent {
  owner: Call | undefined;
  previousDependent: Dependent | undefined;
  nextDependent: Dependent | undefined;
  onAbort(reason: unknown): void;
}

const noAttributes: Readonly<Record<string, unknown>> = /* @__PURE__ */ Object.freeze({});

/** State that only some calls need. Created on first use, because most calls end without it. */
class Aftermath {
  controller: AbortController | undefined = undefined;
  hasAborted = false;
  reason: unknown = undefined;
  callerSignal: AbortSignal | undefined = undefined;
  callerListener: (() => void) | undefined = undefined;
  /** Operations below the call that are still running although nobody waits for them. */
  abandonedWork = 0;
  receiveLate: ((value: unknown) => void) | undefined = undefined;
  whenIdle: (() => void)[] = [];
}

/** The root call. It counts all abandoned work, whichever layer gave the work up. */
export function outermostOf(call: Call): Call {
  let outermost = call;
  while (outermost.parent !== undefined) outermost = outermost.parent;
  return outermost;
}

/** A copy gets no slot once this share of all slots is taken. After Dean and Barroso, "The tail at scale" (2013): copies are for idle room. */
export const roomForCopies = 0.8;

/**
 * One execution, as its operation and its policies see it.
 *
 * @example
 * ```ts
 * import { pipeline, timeout } from 'holdfast';
 *
 * const quick = pipeline(timeout('1s'));
 * const left = await quick.execute(({ remainingMs }) => remainingMs);
 * console.log(left <= 1000);
 * ```
 */
export class Call {
  readonly clock: Clock;
  readonly parent: Call | undefined;
  /** The number of this attempt, from 1. */
  readonly attempt: number;

  /** @internal */ task: Task<unknown>;
  /**
   * @internal Time of admission. Null from when a layer starts to admit until a guard asks, so that the clock is read once; undefined while no layer
   * admits.
   */
  admittedAtMs: number | null | undefined = undefined;
  /** @internal The retry that makes the attempts of this call: the outermost one if several share the call. */
  retriedBy: object | undefined = undefined;
  /** @internal Whether this call is a copy of one still in progress. A copy must not take slots that other calls need. */
  isCopy = false;
  /** @internal Whether the outermost layer resolves with an `Outcome` instead of rejecting. */
  asOutcome = false;
  /** @internal */ owner: Call | undefined = undefined;
  /** @internal */ previousDependent: Dependent | undefined = undefined;
  /** @internal */ nextDependent: Dependent | undefined = undefined;
  private readonly options: CallOptions | undefined;
  /** Undefined if there is no deadline: a field that always holds a number takes another 16 bytes, even for `Infinity`. */
  private endMs: number | undefined;
  /** Whether the call is detached from everything that could end it. */
  private isOver = false;
  private firstDependent: Dependent | undefined = undefined;
  private aftermath: Aftermath | undefined = undefined;

  /** @internal Calls are made by `pipeline` and by {@link Call.child}. */
  constructor(
    clock: Clock,
    task: Task<unknown>,
    options: CallOptions | undefined,
    parent?: Call,
    attempt = 1,
    endMs?: number,
  ) {
    this.clock = clock;
    this.task = task;
    this.options = options;
    this.parent = parent;
    this.attempt = attempt;
    this.endMs = endMs;
  }

  /** The partition: a host or tenant. */
  get key(): string | undefined {
    return this.options?.key;
  }

  /** Sent with each attempt, so that the service runs the operation once. */
  get idempotencyKey(): string | undefined {
    return this.options?.idempotencyKey;
  }

  /** Whether the operation must not simply run twice. */
  get unsafe(): boolean {
    return this.options?.unsafe ?? false;
  }

  /** Any other attributes given for this execution. */
  get attributes(): Readonly<Record<string, unknown>> {
    return this.options?.attributes ?? noAttributes;
  }

  /** Aborts when nobody waits for the operation any more. Made when it is first read; pass it on to `fetch` and the like. */
  get signal(): AbortSignal {
    const state = this.state();
    if (state.controller === undefined) {
      state.controller = new AbortController();
      if (this.aborted) state.controller.abort(this.reason);
      else this.follow();
    }
    return state.controller.signal;
  }

  /** When the call will be given up: an instant of `clock`, in milliseconds; `Infinity` without a deadline. */
  get deadline(): number {
    return this.deadlineMs;
  }

  /** @internal Whether the call's own deadline was given as a number, which may have been meant as a duration. */
  get hasNumericDeadline(): boolean {
    return typeof this.options?.deadline === 'number';
  }

  /** @internal */
  get deadlineMs(): number {
    return this.endMs ?? Number.POSITIVE_INFINITY;
  }

  /** @internal */
  set deadlineMs(atMs: number) {
    this.endMs = atMs;
  }

  /** Milliseconds until the deadline, never below 0; `Infinity` without one. */
  get remainingMs(): number {
    return Math.max(0, this.deadlineMs - this.clock.now());
  }

  /** Whether the call was aborted. Cheaper than `signal.aborted`, which creates the signal. */
  get aborted(): boolean {
    if (this.aftermath?.hasAborted) return true;
    return this.parent === undefined ? false : this.parent.aborted;
  }

  /** Why the call was aborted; undefined while it is not. */
  get reason(): unknown {
    return this.aftermath?.hasAborted ? this.aftermath.reason : this.parent?.reason;
  }

  /** @internal Whether a retry makes the attempts of this call or of a call around it, not counting the given retry on this call. */
  isRetried(except?: object): boolean {
    if (this.retriedBy !== undefined && this.retriedBy !== except) return true;
    for (let call = this.parent; call !== undefined; call = call.parent) if (call.retriedBy !== undefined) return true;
    return false;
  }

  /** Creates a call below this one for a separate attempt. An abort of this call reaches the child; an abort of the child does not reach this call. */
  child(changes: ChildOptions = {}): Call {
    const { attempt = this.attempt, ...changed } = changes;
    const options = Object.keys(changed).length === 0 ? this.options : { ...this.options, ...changed };
    return this.childWith(options, attempt);
  }

  /** @internal Creates a child that shares the admission time, for a layer that may have to end it. The child does not read the clock again. */
  sameTimeChild(): Call {
    const child = this.childWith(this.options, this.attempt);
    child.admittedAtMs = this.admittedAtMs;
    return child;
  }

  /**
   * Ends this call and everything below it. Only the first abort counts.
   *
   * An operation that aborts its own call must end as well, for example by throwing the reason: its call may be that of one attempt, and what waits
   * for an attempt then goes on waiting until the operation ends or its time is over. It must also declare the call as a parameter. If it takes the
   * call through `...rest`, a lone circuit breaker around it hears of the abort only when the operation ends.
   *
   * @param reason - What the signal's `reason` becomes. Default: an `AbortError`.
   */
  abort(reason: unknown = new DOMException('This operation was aborted', 'AbortError')): void {
    const state = this.state();
    if (state.hasAborted) return;
    state.hasAborted = true;
    state.reason = reason;
    // A dependent may detach others while it is being notified, so the list is emptied from its head.
    for (let dependent = this.firstDependent; dependent !== undefined; dependent = this.firstDependent) {
      this.detach(dependent);
      dependent.onAbort(reason);
    }
    state.controller?.abort(reason);
  }

  /** @internal Lets the caller's signal end this call. */
  followSignal(signal: AbortSignal): void {
    const listener = () => {
      this.unfollow();
      this.abort(signal.reason);
    };
    const state = this.state();
    state.callerSignal = signal;
    state.callerListener = listener;
    addAbortListener(signal, listener);
    // The signal was already aborted, or aborts, as some do, while its first listener is being added.
    if (signal.aborted) listener();
  }

  /** @internal The call is over: aborts of its caller's signal and of the calls around it no longer concern it. */
  unfollow(): void {
    this.owner?.detach(this);
    this.isOver = true;
    const { aftermath } = this;
    if (aftermath?.callerSignal === undefined) return;
    removeAbortListener(aftermath.callerSignal, aftermath.callerListener!);
    aftermath.callerSignal = undefined;
  }

  /** @internal */
  onAbort(reason: unknown): void {
    this.abort(reason);
  }

  /** @internal Registers a dependent for an abort. One that is added after the abort is notified at once. */
  attach(dependent: Dependent): void {
    if (this.aborted) return dependent.onAbort(this.reason);
    const first = this.firstDependent;
    dependent.owner = this;
    this.firstDependent = dependent;
    if (first === undefined) return this.follow();
    dependent.nextDependent = first;
    first.previousDependent = dependent;
  }

  /** @internal */
  detach(dependent: Dependent): void {
    if (dependent.owner !== this) return;
    dependent.owner = undefined;
    const { previousDependent, nextDependent } = dependent;
    if (previousDependent === undefined) this.firstDependent = nextDependent;
    else previousDependent.nextDependent = nextDependent;
    if (nextDependent !== undefined) nextDependent.previousDependent = previousDependent;
    // Most dependents are alone in their list, and a write costs more than a read.
    if (previousDependent !== undefined) dependent.previousDependent = undefined;
    if (nextDependent !== undefined) dependent.nextDependent = undefined;
  }

  /** @internal The current time. While a layer admits, it is the time of admission, read once for all guards. */
  admissionMs(): number {
    // An operation or a custom policy may ask a guard directly, outside a layer, and again later.
    if (this.admittedAtMs === undefined) return this.clock.now();
    this.admittedAtMs ??= this.clock.now();
    return this.admittedAtMs;
  }

  /** @internal Counts work that nobody waits for, on this call and on every call around it. */
  beginAbandonedWork(): void {
    for (let call: Call | undefined = this; call !== undefined; call = call.parent) call.state().abandonedWork++;
  }

  /** @internal */
  endAbandonedWork(): void {
    for (let call: Call | undefined = this; call !== undefined; call = call.parent) {
      const state = call.state();
      if (--state.abandonedWork > 0) continue;
      const waiting = state.whenIdle;
      state.whenIdle = [];
      for (const then of waiting) then();
    }
  }

  /** @internal Names who receives the values that work below this call returns when nobody waits for it any more. */
  receiveLateValues(receive: (value: unknown) => void): void {
    this.state().receiveLate = receive;
  }

  /** @internal Passes on a value that nobody waits for to the nearest receiver, if there is one. */
  passOnLate(value: unknown): void {
    const receive = this.aftermath?.receiveLate;
    if (receive === undefined) this.parent?.passOnLate(value);
    else receive(value);
  }

  /**
   * @internal Whether nothing but the end of its operation can end the call: no caller signal, no parent, no deadline, and an operation that does not
   * take the call.
   */
  get isUnwatched(): boolean {
    const { parent, aftermath, deadlineMs, task } = this;
    return (
      parent === undefined && aftermath === undefined && deadlineMs === Number.POSITIVE_INFINITY && task.length === 0
    );
  }

  /** @internal Whether no abandoned work remains below this call. */
  get isIdle(): boolean {
    return this.aftermath === undefined || this.aftermath.abandonedWork === 0;
  }

  /** @internal Calls back when no abandoned work remains below this call: at once if there is none. */
  onIdle(then: () => void): void {
    if (this.isIdle) then();
    else this.state().whenIdle.push(then);
  }

  private childWith(options: CallOptions | undefined, attempt: number): Call {
    const child = new Call(this.clock, this.task, options, this, attempt, this.endMs);
    child.isCopy = this.isCopy;
    return child;
  }

  private state(): Aftermath {
    this.aftermath ??= new Aftermath();
    return this.aftermath;
  }

  /** Starts to follow the parent's abort. Done only for a call that has a signal or dependents. */
  private follow(): void {
    if (this.parent !== undefined && this.owner === undefined && !this.isOver) this.parent.attach(this);
  }
}

/** Defines what logs show of calls; invoked by the code that creates them. Keys and attributes are left out, and so is `remainingMs` without a deadline. */
export function showCallsBriefly(): void {
  showBriefly(Call.prototype, ({ attempt, unsafe, aborted, remainingMs }) => ({
    ...{ attempt, unsafe, aborted, ...(remainingMs < Number.POSITIVE_INFINITY && { remainingMs }) },
  }));
}
