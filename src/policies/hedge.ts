/**
 * Hedge: sends another copy of a call that takes longer than most, and answers with the first copy that succeeds.
 *
 * Promise: there are never more copies than allowed, than the budget grants, or than there is time for. A copy that is not granted, or that a policy
 * inside refuses, never fails the call. When one copy has won, the others are aborted with a reason that guards inside do not count as a failure, and
 * what they still return goes to `onDiscard`. An abort reaches all copies at once. At most one timer is pending, and none after the call.
 * After: Dean and Barroso, "The tail at scale" (CACM, 2013); gRPC proposal A6, for what failures do; Finagle's backup requests.
 */
import { type AsyncContext, keepAsyncContext } from '../core/async-context.js';
import type { Call, Dependent } from '../core/call.js';
import { Timer } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { isRejected } from '../core/errors.js';
import { Events } from '../core/events.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  type Field,
  func,
  having,
  integer,
  number,
  optional,
  withDefault,
} from '../core/options.js';
import { type Handles, handlesThrows, judge, type Outcome, yesOrNo } from '../core/outcome.js';
import type { Strategy } from '../core/policy.js';
import { QuantileEstimator } from '../structures/quantile.js';
import { discard } from './discard.js';
import { type RetryBudget, retryBudget } from './retry/retry-budget.js';

/** A delay that follows the latencies of the calls themselves. */
export interface HedgeQuantile {
  /** The share of calls that need no copy: 0.95 adds about 5 % load. From 0.5 to 0.999. */
  readonly quantile: number;
  /** Successful calls to observe before the first copy is sent for slowness. Default 100; from 10 to 10,000. */
  readonly minimumSamples?: number | undefined;
}

/** Options of {@link hedge}. */
export interface HedgeOptions extends CommonOptions {
  /**
   * How long to wait for an answer before the next copy is sent: a duration of at least 1 ms, or `{ quantile }` of the
   * latencies seen. Default: `{ quantile: 0.95 }`.
   */
  readonly delay?: Duration | HedgeQuantile | undefined;
  /** Copies in addition to the first attempt. Default 1, which removes most of the tail; from 1 to 4. */
  readonly max?: number | undefined;
  /** The budget that copies draw from, and successes pay into. Default: a `retryBudget()` of its own. */
  readonly budget?: RetryBudget | undefined;
  /**
   * Which outcomes are worth another copy at once. Any other error ends the call. Default: every throw. It is never
   * asked about refusals and aborts.
   */
  readonly handles?: Handles | undefined;
  /**
   * Receives each value that the caller does not get, because another copy has won or the call has ended, so that you can
   * close it: `(response) => response.body?.cancel()`. It also receives a value on which `handles` threw, its own or that of a
   * guard inside. The `onLateResult` of a timeout inside takes precedence for what an operation returns after the end of its copy.
   * An exception in it is contained.
   */
  readonly onDiscard?: ((value: unknown) => void) | undefined;
}

/**
 * Sends a second copy of a slow call, and returns the result of the first copy to succeed.
 *
 * Use it for reads and other operations that may run twice, where a few calls take much longer than most. An operation marked
 * `unsafe` gets one attempt unless it has an idempotency key. Do not combine it with {@link retry} around the same
 * call: when all copies so far have failed, the next one is sent at once.
 *
 * @param options - `delay`, `max`, `budget`, `handles`, `onDiscard`, `name`, `on`, `clock`.
 * @throws The error of the copy that failed last, unchanged, when no copy succeeds.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` when `handles` throws.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { hedge, pipeline } from 'holdfast';
 *
 * const steady = pipeline(hedge({ delay: '10ms' }));
 * const answer = await steady.execute(({ attempt }) =>
 *   attempt === 1 ? new Promise<string>(() => {}) : 'from the copy',
 * );
 * console.log(answer); // from the copy
 * ```
 */
export function hedge(options?: HedgeOptions): Strategy {
  const checked = checkOptions('hedge', options, {
    delay: withDefault<number | CheckedQuantile>(delayField(), { quantile: 0.95, minimumSamples: 100 }),
    max: withDefault(integer({ min: 1, max: 4 }), 1),
    budget: optional(having<RetryBudget>('a budget such as retryBudget()', 'deposit', 'tryWithdraw')),
    handles: withDefault(func<Handles>(), handlesThrows),
    onDiscard: optional(func<(value: unknown) => void>()),
    ...commonFields('hedge'),
  });
  const { delay, max, name, clock } = checked;
  const plan: HedgePlan = {
    name,
    max,
    fixedDelayMs: typeof delay === 'number' ? delay : undefined,
    latencies: typeof delay === 'number' ? undefined : new QuantileEstimator(delay.quantile, delay.minimumSamples),
    budget: checked.budget ?? retryBudget(clock === undefined ? {} : { clock }),
    handles: checked.handles,
    onDiscard: checked.onDiscard,
    events: new Events(name, checked.on),
  };
  const after = typeof delay === 'number' ? `${delay} ms` : `the ${delay.quantile} quantile of the latencies`;
  return {
    name,
    traits: {
      kind: 'hedge',
      summary: `sends up to ${max} more ${max === 1 ? 'copy' : 'copies'}, each after ${after}, drawn from a budget`,
      clock,
      copies: max,
      delayMs: plan.fixedDelayMs,
      hasBudget: true,
    },
    handle: (call, next) =>
      call.unsafe && call.idempotencyKey === undefined ? next(call) : new HedgeRun(plan, call, next).start(),
  };
}

type CheckedQuantile = { readonly [Key in keyof HedgeQuantile]-?: number };

const delayField = (): Field<number | CheckedQuantile> => {
  const wholeDelay = duration({});
  return {
    allowed: `${wholeDelay.allowed}, or { quantile: 0.95 }`,
    parse: (value) =>
      typeof value === 'object' && value !== null
        ? checkOptions('hedge', value, {
            quantile: number({ min: 0.5, max: 0.999 }),
            minimumSamples: withDefault(integer({ min: 10, max: 10_000 }), 100),
          })
        : wholeDelay.parse(value),
  };
};

interface HedgePlan {
  readonly name: string;
  readonly max: number;
  readonly fixedDelayMs: number | undefined;
  readonly latencies: QuantileEstimator | undefined;
  readonly budget: RetryBudget;
  readonly handles: Handles;
  readonly onDiscard: ((value: unknown) => void) | undefined;
  readonly events: Events;
}

/** The shortest delay: no service can answer in less time. */
const shortestDelayMs = 1;

/**
 * A timer that is later than this shows that this process is busy. The answer may have arrived and only be unread, and a process short of time must
 * not create more work. The tolerance is half the delay, within these bounds.
 */
const mostToleratedLagMs = 50;
const leastToleratedLagMs = 5;

/** One call and its copies. It is also the timer of the next copy and the listener for the call's abort. */
class HedgeRun<T> extends Timer implements Dependent {
  owner: Call | undefined = undefined;
  previousDependent: Dependent | undefined = undefined;
  nextDependent: Dependent | undefined = undefined;

  private readonly plan: HedgePlan;
  private readonly call: Call;
  private readonly next: (call: Call) => Promise<T>;
  /** The calls of the running copies. */
  private readonly running: Call[] = [];
  private sent = 0;
  private isOver = false;
  private startedMs = 0;
  /** Infinity while too few calls have been seen to choose a delay. */
  private delayMs = Number.POSITIVE_INFINITY;
  private dueMs = 0;
  /** The caller's async context, for the copies. */
  private readonly context: AsyncContext = keepAsyncContext();
  private errors: unknown[] | undefined = undefined;
  /** What the caller got. */
  private answer: Outcome<T> | undefined = undefined;
  /** The outcome of the call if no copy succeeds: the last failure, or a refusal if nothing was ever started. */
  private failure: Outcome<T> | undefined = undefined;
  private resolve!: (value: T) => void;
  private reject!: (error: unknown) => void;

  constructor(plan: HedgePlan, call: Call, next: (call: Call) => Promise<T>) {
    super();
    this.plan = plan;
    this.call = call;
    this.next = next;
  }

  start(): Promise<T> {
    const { call, plan } = this;
    const promise = new Promise<T>((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    call.attach(this);
    if (this.isOver) return promise;
    this.delayMs = Math.max(shortestDelayMs, plan.fixedDelayMs ?? plan.latencies?.value ?? Number.POSITIVE_INFINITY);
    this.startedMs = call.clock.now();
    this.send(this.startedMs);
    return promise;
  }

  override expire(): void {
    this.context.runInAsyncScope(this.due, this);
  }

  /** The delay has passed without an answer. */
  private due(): void {
    const { call } = this;
    const nowMs = call.clock.now();
    const lagMs = nowMs - this.dueMs;
    const toleratedMs = Math.min(mostToleratedLagMs, Math.max(leastToleratedLagMs, this.delayMs / 2));
    if (lagMs > toleratedMs) {
      this.tellSkipped('event-loop');
      this.arm(nowMs);
      // The timer that ends the call may be just as late, and come next.
    } else if (nowMs < call.deadlineMs && this.isGranted()) this.sendCopy('slow', nowMs);
  }

  /** The call was ended, so the caller gets the reason instead of any value. */
  onAbort(reason: unknown): void {
    const { failure } = this;
    this.failure = undefined;
    this.close(reason);
    this.discard(failure);
    this.reject(reason);
  }

  private sendCopy(because: 'slow' | 'failed', nowMs: number): void {
    const { events, name } = this.plan;
    if (events.heard) events.emit({ type: 'hedge', name, copy: this.sent, because, afterMs: nowMs - this.startedMs });
    // A listener of the event may have ended the call.
    if (!this.isOver) this.send(nowMs);
  }

  private send(nowMs: number): void {
    const { call } = this;
    const child = call.child({ attempt: call.attempt + this.sent });
    const copy = this.sent++;
    if (this.plan.onDiscard !== undefined) child.receiveLateValues((value) => this.discard({ ok: true, value }));
    child.isCopy = call.isCopy || this.running.length > 0;
    this.running.push(child);
    this.arm(nowMs);
    this.next(child).then(
      (value) => this.ended(copy, child, { ok: true, value }),
      (error) => this.ended(copy, child, { ok: false, error }),
    );
  }

  /** Schedules the next copy, if one is allowed and there will be time for it. */
  private arm(nowMs: number): void {
    const { call } = this;
    if (this.sent > this.plan.max || this.isOver) return;
    this.dueMs = nowMs + this.delayMs;
    if (this.dueMs >= call.deadlineMs) return;
    call.clock.schedule(this, this.dueMs);
  }

  private ended(copy: number, child: Call, outcome: Outcome<T>): void {
    const { call, running } = this;
    if (this.isOver) {
      call.endAbandonedWork();
      this.discard(outcome);
      return;
    }
    running.splice(running.indexOf(child), 1);
    call.detach(child);
    if (!outcome.ok) this.discard(outcome);
    try {
      this.judgeEnd(copy, outcome);
    } catch (error) {
      const failure: Outcome<T> = { ok: false, error };
      this.discard(failure);
      this.finish(failure);
    }
  }

  private judgeEnd(copy: number, outcome: Outcome<T>): void {
    const { handles, name } = this.plan;
    if (!outcome.ok && isRejected(outcome.error)) {
      // Another copy would be refused too, and would only add load.
      this.failure ??= outcome;
      if (this.running.length === 0) this.fail();
      return;
    }
    const isFailure = judge(handles, outcome, name);
    // The user's function may have ended the call.
    if (this.isOver) this.discard(outcome);
    else if (isFailure) this.failed(outcome);
    else if (outcome.ok) this.win(copy, outcome.value);
    else this.finish(outcome);
  }

  private failed(outcome: Outcome<T>): void {
    const { call, plan, failure } = this;
    this.failure = outcome;
    // The callbacks called here and below may end the call.
    this.discard(failure);
    if (this.isOver) return;
    this.errors ??= [];
    this.errors.push(outcome.ok ? undefined : outcome.error);
    const nowMs = call.clock.now();
    if (this.sent <= plan.max && nowMs < call.deadlineMs && this.isGranted()) {
      call.clock.cancel(this);
      this.sendCopy('failed', nowMs);
    } else if (this.running.length === 0 && !this.isOver) this.fail();
  }

  private fail(): void {
    const { events, name } = this.plan;
    if (this.sent > 1 && events.heard) {
      events.emit({ type: 'hedge-failed', name, copies: this.sent - 1, errors: this.errors ?? [] });
    }
    this.finish(this.failure!);
  }

  private win(copy: number, value: T): void {
    const { plan, call, startedMs } = this;
    const { budget, events, latencies, name } = plan;
    const elapsedMs = latencies !== undefined || copy > 0 ? call.clock.now() - startedMs : 0;
    // Only first attempts are measured: of the copies, only the quick ones would be seen.
    if (copy === 0) latencies?.add(elapsedMs);
    else if (this.errors === undefined) latencies?.addAtLeast(elapsedMs);
    events.contain('budget', () => budget.deposit(call.key));
    if (copy > 0 && events.heard) events.emit({ type: 'hedge-won', name, copy, afterMs: elapsedMs });
    this.finish({ ok: true, value });
  }

  private finish(outcome: Outcome<T>): void {
    // A hook may have ended the call meanwhile.
    if (this.isOver) return this.discard(outcome);
    const { failure } = this;
    this.failure = undefined;
    // Not one of our errors: guards inside treat it as an abort by a caller that already has its result.
    this.close(this.running.length === 0 ? undefined : new DOMException('Another copy ended the call', 'AbortError'));
    this.answer = outcome;
    if (outcome !== failure) this.discard(failure);
    if (outcome.ok) this.resolve(outcome.value);
    else this.reject(outcome.error);
  }

  /** Ends the run: nobody waits for the copies that are still running. */
  private close(reason: unknown): void {
    const { call, running } = this;
    this.isOver = true;
    call.clock.cancel(this);
    call.detach(this);
    for (const child of running) {
      call.beginAbandonedWork();
      child.abort(reason);
      call.detach(child);
    }
  }

  private isGranted(): boolean {
    const { call, plan } = this;
    const { budget, events } = plan;
    let granted = false;
    events.contain('budget', () => {
      granted = yesOrNo(budget.tryWithdraw(call.key));
    });
    if (!granted) this.tellSkipped('budget');
    return granted;
  }

  private tellSkipped(reason: 'budget' | 'event-loop'): void {
    const { events, name } = this.plan;
    if (events.heard) events.emit({ type: 'hedge-skipped', name, reason });
  }

  private discard(outcome: Outcome | undefined): void {
    const { answer, plan } = this;
    // Copies that join one execution return the same value, and the caller must not find it closed.
    const isShared = outcome?.ok && answer?.ok && outcome.value === answer.value;
    if (outcome !== undefined && !isShared) discard(plan, outcome);
  }
}
