/**
 * Layer: fuses neighbouring guards, and a retry between them, into one asynchronous step. One step costs more than all the bookkeeping of its guards.
 *
 * Promise: guards are asked outermost first. When one refuses, the guards before it get their permits back. Each permit is settled or released
 * exactly once. One timer serves the nearest end of all permits. When that timer fires or the call is aborted, the caller hears of it at once and the
 * operation's signal aborts; whatever the operation still does is consumed and counted, and its permits are told when it ends.
 */
import type { WheelNode } from '../structures/timer-wheel.js';
import {
  type Answer,
  admissionOf,
  answerOrRefusal,
  askedBy,
  giveBack,
  lessonOf,
  lessonOfEnd,
  settleOne,
  tellEnded,
} from './admission.js';
import { ambient } from './ambient.js';
import { type AsyncContext, keepAsyncContext } from './async-context.js';
import type { Call, Dependent } from './call.js';
import type { Timer } from './clock.js';
import { DeadlineExceededError, DeadlineTooShortError, TimeoutError } from './errors.js';
import { type Next, runTask } from './operation.js';
import { type Outcome, rejectLater } from './outcome.js';
import { type FusedAdmission, type Guard, isPermit, type Permit, type Refusal, type Resumable } from './policy.js';

/** What a layer is built from: guards, and at most one retry among them. */
export interface LayerPlan {
  /** Outermost first. */
  readonly guards: readonly Guard[];
  /** The function that asks each guard. */
  readonly admissions: readonly ((call: Call) => Answer)[];
  /** How many of the guards stand outside the retry: all of them if there is no retry. */
  readonly outerCount: number;
  readonly resumable?: Resumable | undefined;
  readonly next: Next;
  /** The step for further attempts: the guards inside the retry as a layer of their own. */
  readonly again?: Next;
  /** Only the outermost layer owns the root call and may abort it. Other layers abort a child call that they create. */
  readonly outermost: boolean;
}

/** Fuses guards into one step. */
export function guardLayer(guards: readonly Guard[], next: Next, outermost: boolean): Next {
  return layer({ guards, admissions: guards.map(admissionOf), outerCount: guards.length, next, outermost });
}

/** Fuses a retry with the guards outside and inside it, so that a call whose first attempt succeeds is one step. */
export function retryLayer(
  outer: readonly Guard[],
  resumable: Resumable,
  inner: readonly Guard[],
  next: Next,
  outermost: boolean,
): Next {
  const again = inner.length === 0 ? next : guardLayer(inner, next, false);
  const guards = [...outer, ...inner];
  const admissions = guards.map(admissionOf);
  return layer({ guards, admissions, outerCount: outer.length, resumable, next, again, outermost });
}

function layer(plan: LayerPlan): Next {
  const { guards, resumable, next, outermost } = plan;
  if (outermost && next === runTask && resumable === undefined && guards.length === 1) {
    const { fused, admit } = guards[0]!;
    if (fused?.of === admit && fused.lastFailed !== undefined) return loneGuard(plan, fused.admit, fused.lastFailed);
  }
  return (call) => new LayerRun(plan, call).start();
}

/**
 * A single built-in guard around nothing but the operation. As long as only the operation itself can end the call, the operation's promise suffices:
 * the layer needs no promise, no list entry and no timer of its own.
 */
function loneGuard(plan: LayerPlan, admit: FusedAdmission['admit'], lastFailed: () => boolean): Next {
  // A permit that serves many calls gets its callbacks once, which saves two closures per call.
  let last: PermitCallbacks | undefined;
  return (call) => {
    // Throwing from a callback costs a failing call one and a half times what a promise of our own costs a successful one.
    if (lastFailed() || !call.isUnwatched || ambient() !== undefined) return new LayerRun(plan, call).start();
    const answer = askedBy(admit, call);
    if (!isPermit(answer)) return failed(call, answer.error);
    if (answer.endsAt !== undefined) return new LayerRun(plan, call).start(answer);
    const known = last?.permit === answer && last.asOutcome === call.asOutcome ? last : undefined;
    // The operation may call through this guard itself and replace `last`.
    const callbacks = known ?? new PermitCallbacks(answer, call.asOutcome);
    last = callbacks;
    return runTask(call).then(callbacks.onValue, callbacks.onError);
  };
}

/** Settles a permit and passes the outcome on when the operation ends. */
class PermitCallbacks {
  readonly permit: Permit;
  readonly asOutcome: boolean;

  constructor(permit: Permit, asOutcome: boolean) {
    this.permit = permit;
    this.asOutcome = asOutcome;
  }

  readonly onValue = (value: unknown) => this.answer({ ok: true, value });
  readonly onError = (error: unknown) => this.answer({ ok: false, error });

  private answer(outcome: Outcome): unknown {
    const answer = settleOne(this.permit, lessonOf(outcome)) ?? outcome;
    if (this.asOutcome) return answer;
    if (answer.ok) return answer.value;
    throw answer.error;
  }
}

function failed(call: Call, error: unknown): Promise<unknown> {
  return call.asOutcome ? Promise.resolve({ ok: false, error }) : rejectLater(error);
}

/** An inherited deadline is enforced by the layer that set it, whose error names it. This layer waits so much longer, and ends the call if no other has. */
const graceMs = 1;

/** One call's run through one layer. It is also the timer of the call's ends and the listener for its abort. */
class LayerRun implements Timer, Dependent {
  // Declared here instead of inherited: a derived class costs 15 of the 230 ns of a call through a timeout.
  slotIndex = -1;
  tick = 0;
  previousInSlot: WheelNode | undefined = undefined;
  nextInSlot: WheelNode | undefined = undefined;
  owner: Call | undefined = undefined;
  previousDependent: Dependent | undefined = undefined;
  nextDependent: Dependent | undefined = undefined;

  private readonly plan: LayerPlan;
  private readonly call: Call;
  /** The call inside the outer guards: the same call, or a child once this layer may have to end it. */
  private scope: Call;
  /** The call of the first attempt: `scope`, or a child of it once a guard inside the retry may end it. */
  private attempt: Call;
  /** A field for the first permit saves most calls an array. */
  private firstPermit: Permit | undefined = undefined;
  private morePermits: Permit[] | undefined = undefined;
  private permitCount = 0;
  /** `left`: the first attempt is over, and the retry decides what follows. */
  private phase: 'admitting' | 'running' | 'left' | 'over' = 'admitting';
  /** Whether all outer guards have admitted the call. What they learn about begins then. */
  private isIn = false;
  /** Whether this layer ends the call at `scope.deadlineMs`. */
  private ends = false;
  /** The permit that set this end; undefined if it is the deadline that came with the call. */
  private endPermit: Permit | undefined = undefined;
  /** The permit that ends the first attempt, at `attempt.deadlineMs`; undefined once that attempt is over. */
  private attemptEndPermit: Permit | undefined = undefined;
  /** The caller's async context, for the attempts that follow a timed-out one. */
  private context: AsyncContext | undefined = undefined;
  /** What was given up while the operation of the first attempt was still running. */
  private abandoned: 'nothing' | 'attempt' | 'call' = 'nothing';
  private someoneAwaitsEnd = false;
  private resolve: ((value: unknown) => void) | undefined = undefined;
  private reject: ((error: unknown) => void) | undefined = undefined;

  constructor(plan: LayerPlan, call: Call) {
    this.plan = plan;
    this.call = call;
    this.scope = call;
    this.attempt = call;
  }

  /** @param answer - The first guard's answer, if it has been asked already. */
  start(answer?: Answer): Promise<unknown> {
    const call = this.call;
    if (call.aborted) return this.failAtOnce(call.reason);
    call.admittedAtMs = null;
    if (this.plan.outermost && call.deadlineMs !== Number.POSITIVE_INFINITY) {
      const remainingMs = call.deadlineMs - call.admissionMs();
      if (remainingMs <= 0) {
        const hint = call.hasNumericDeadline ? "; a number is an instant of the clock, a duration is '5s'" : '';
        return this.failAtOnce(new DeadlineTooShortError({ policy: 'pipeline', remainingMs, hint }));
      }
      this.ends = true;
    }
    const hindrance = this.admitFrom(0, answer);
    if (hindrance !== undefined && 'error' in hindrance && !this.isIn) {
      this.giveBack();
      return this.failAtOnce(hindrance.error);
    }
    const promise = this.answerPromise();
    this.goOn(hindrance);
    return promise;
  }

  // A separate method: a function that creates a closure allocates for it even when it returns earlier.
  private answerPromise(): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }

  /** The time limit of the first attempt, or of the call, has passed. */
  expire(): void {
    const { attemptEndPermit } = this;
    const reason = this.endReason(attemptEndPermit ?? this.endPermit);
    // Code that hears of the end may have ended the call already.
    if (this.phase === 'over') return;
    if (attemptEndPermit === undefined) this.giveUp(reason);
    else this.giveAttemptUp(reason);
  }

  /** Someone around this layer ended the call. */
  onAbort(reason: unknown): void {
    this.giveUp(reason);
  }

  /** Asks the guards in order. Returns what stopped it: a refusal, or the promise of a guard that queues. */
  private admitFrom(index: number, given?: Answer): Refusal | Promise<Permit | Refusal> | undefined {
    const { admissions, outerCount } = this.plan;
    let known = given;
    for (let next = index; next < admissions.length; next++) {
      if (next === outerCount) this.enter();
      const answer = known ?? askedBy(admissions[next]!, this.attempt);
      known = undefined;
      if (this.phase === 'over') {
        // Meanwhile the guard, or an earlier one that queued, ended the call.
        if (!isPermit(answer)) return answer;
        giveBack(answer);
        return undefined;
      }
      if (!isPermit(answer)) return answer;
      this.take(answer);
    }
    if (!this.isIn) this.enter();
    return undefined;
  }

  /** All outer guards have admitted the call. */
  private enter(): void {
    this.isIn = true;
    this.plan.resumable?.begin(this.scope);
  }

  private take(permit: Permit): void {
    if (this.permitCount === 0) this.firstPermit = permit;
    else {
      this.morePermits ??= new Array(this.plan.guards.length - 1);
      this.morePermits[this.permitCount - 1] = permit;
    }
    this.permitCount++;
    if (permit.ended !== undefined) this.someoneAwaitsEnd = true;
    const { endsAfterMs } = permit;
    const endsAt = endsAfterMs === undefined ? permit.endsAt : this.attempt.admissionMs() + endsAfterMs;
    // An end that is not earlier than the current one will never be reached.
    if (endsAt === undefined || !(endsAt < this.attempt.deadlineMs)) return;
    if (this.isIn) {
      this.attemptEndPermit = permit;
      this.context ??= keepAsyncContext();
      if (this.attempt === this.scope) this.attempt = this.scope.sameTimeChild();
    } else {
      this.ends = true;
      this.endPermit = permit;
      if (this.scope === this.call && !this.plan.outermost) this.scope = this.call.sameTimeChild();
      this.attempt = this.scope;
    }
    this.attempt.deadlineMs = endsAt;
  }

  /** A guard queues the call. Time limits set by earlier guards apply while it waits. */
  private waitFor(queued: Promise<Permit | Refusal>): void {
    const index = this.permitCount;
    this.leaveAdmission();
    if (this.phase !== 'over') this.attachAndArm();
    // A foreign thenable may call back twice, or throw.
    Promise.resolve(queued).then(
      (given) => {
        const answer = answerOrRefusal(this.plan.guards[index]!, given);
        // After a strategy around this layer has finished without it, no abort reaches this layer: the outer call ended without telling anyone.
        if (this.phase === 'admitting' && this.call.aborted) this.giveUp(this.call.reason);
        if (this.phase !== 'admitting') {
          if (isPermit(answer)) giveBack(answer);
        } else if (isPermit(answer)) {
          this.attempt.admittedAtMs = null;
          this.take(answer);
          this.goOn(this.admitFrom(index + 1));
        } else this.refused(answer.error);
      },
      (error) => {
        if (this.phase === 'admitting') this.refused(error);
      },
    );
  }

  private goOn(hindrance: Refusal | Promise<Permit | Refusal> | undefined): void {
    // Needed even when the call is over, because the guard must get its permit back.
    if (hindrance !== undefined && !('error' in hindrance)) return this.waitFor(hindrance);
    if (this.phase === 'over') return;
    if (hindrance === undefined) this.run();
    else this.refused(hindrance.error);
  }

  private run(): void {
    this.leaveAdmission();
    this.attachAndArm();
    if ((this.phase as 'admitting' | 'over') === 'over') return;
    this.phase = 'running';
    this.plan.next(this.attempt).then(
      (value) => this.workEnded({ ok: true, value }),
      (error) => this.workEnded({ ok: false, error }),
    );
  }

  private leaveAdmission(): void {
    this.call.admittedAtMs = undefined;
    this.attempt.admittedAtMs = undefined;
  }

  private attachAndArm(): void {
    if (this.owner === undefined) this.call.attach(this);
    if (this.phase !== 'over') this.arm();
  }

  private arm(): void {
    const { clock } = this.call;
    if (this.attemptEndPermit !== undefined) clock.schedule(this, this.attempt.deadlineMs);
    else if (this.ends) {
      const endMs = this.scope.deadlineMs;
      clock.schedule(this, this.endIsInherited() ? endMs + graceMs : endMs);
    }
  }

  private endIsInherited(): boolean {
    const { parent, clock, deadlineMs } = this.call;
    return this.endPermit === undefined && parent?.clock === clock && parent.deadlineMs === deadlineMs;
  }

  /** A guard refused. If it stands inside the retry, that is how the first attempt ended. */
  private refused(error: unknown): void {
    const outcome: Outcome = { ok: false, error };
    if (this.isIn) {
      this.closeAttempt();
      this.attachAndArm();
      this.giveBack();
      this.leaveAttempt(outcome);
      return;
    }
    this.close();
    this.giveBack();
    this.answer(outcome);
  }

  /** The operation of the first attempt has ended. */
  private workEnded(outcome: Outcome): void {
    if (this.abandoned !== 'nothing') return this.abandonedWorkEnded(outcome);
    const { outerCount, resumable } = this.plan;
    if (resumable === undefined) return this.finish(outcome);
    this.closeAttempt();
    const answer = this.settle(outerCount, this.permitCount, lessonOf(outcome)) ?? outcome;
    this.tellEnd(outerCount, this.permitCount);
    this.leaveAttempt(answer);
  }

  /** Nobody waits for the operation any more, but the permits still have to be told. */
  private abandonedWorkEnded(outcome: Outcome): void {
    const { outerCount } = this.plan;
    if (this.abandoned === 'call') {
      this.call.endAbandonedWork();
      this.tellEnd(0, outerCount, outcome);
    } else this.scope.endAbandonedWork();
    this.tellEnd(outerCount, this.permitCount, outcome);
    this.passOnLate(this.abandoned === 'call' ? 0 : outerCount, this.permitCount, outcome);
  }

  /** Gives a value that nobody waits for to a strategy around this layer, unless one of the permits has a use for it. */
  private passOnLate(from: number, to: number, late: Outcome): void {
    if (!late.ok) return;
    for (let index = from; index < to; index++) if (this.permitAt(index).takesLateValues) return;
    this.call.passOnLate(late.value);
  }

  /**
   * Ends the first attempt for its waiters. The call ends too, unless the retry continues. A hook that heard of the end may have ended the call; then
   * nobody waits, and the retry only reports.
   */
  private leaveAttempt(outcome: Outcome): void {
    let isFinal: boolean;
    try {
      isFinal = this.plan.resumable!.accepts(outcome, this.call);
    } catch (error) {
      return this.allEnded({ ok: false, error });
    }
    if (isFinal) return this.allEnded(outcome);
    this.resume(outcome).then(
      (value) => this.allEnded({ ok: true, value }),
      (error) => this.allEnded({ ok: false, error }),
    );
  }

  private resume(outcome: Outcome): Promise<unknown> {
    const { resumable, again, next } = this.plan;
    return resumable!.resume(this.scope, again ?? next, outcome);
  }

  /** All attempts have ended. */
  private allEnded(outcome: Outcome): void {
    if (this.phase !== 'over') return this.finish(outcome);
    const { outerCount } = this.plan;
    this.call.endAbandonedWork();
    this.tellEnd(0, outerCount, outcome);
    this.passOnLate(0, outerCount, outcome);
  }

  private finish(outcome: Outcome): void {
    const { outerCount } = this.plan;
    this.close();
    const answer = this.settle(0, outerCount, lessonOf(outcome)) ?? outcome;
    this.tellEnd(0, outerCount);
    this.answer(answer);
  }

  /** Ends the first attempt while its operation may still be running. The retry decides what follows. */
  private giveAttemptUp(reason: unknown): void {
    const { outerCount } = this.plan;
    const outcome: Outcome = { ok: false, error: reason };
    const wasRunning = this.phase === 'running';
    this.closeAttempt();
    const answer = this.settle(outerCount, this.permitCount, wasRunning ? lessonOfEnd(outcome) : undefined) ?? outcome;
    if (wasRunning) {
      this.abandoned = 'attempt';
      this.scope.beginAbandonedWork();
    } else this.tellEnd(outerCount, this.permitCount);
    this.attempt.abort(reason);
    this.context!.runInAsyncScope(this.leaveAttempt, this, answer);
  }

  /** Ends the call for its caller while the operation may still be running. */
  private giveUp(reason: unknown): void {
    const { outerCount, resumable } = this.plan;
    const { phase, isIn } = this;
    this.close();
    const outcome: Outcome = { ok: false, error: reason };
    // A call that ended in a queue teaches the guards nothing; a call that was admitted counts as tried.
    let answer = this.settle(0, outerCount, isIn ? lessonOfEnd(outcome) : undefined);
    if (phase !== 'left') {
      const inner = this.settle(outerCount, this.permitCount, phase === 'running' ? lessonOfEnd(outcome) : undefined);
      answer ??= inner;
    }
    if (phase === 'admitting') this.tellEnd(0, this.permitCount);
    else {
      if (phase === 'running') this.abandoned = 'call';
      this.call.beginAbandonedWork();
    }
    this.scope.abort(reason);
    // Lets the retry report how the call ended.
    if (resumable !== undefined && isIn && phase !== 'left') this.resume(outcome).catch(() => {});
    this.answer(answer ?? outcome);
  }

  private failAtOnce(error: unknown): Promise<unknown> {
    this.phase = 'over';
    this.call.admittedAtMs = undefined;
    if (this.plan.outermost) this.call.unfollow();
    return this.plan.outermost ? failed(this.call, error) : rejectLater(error);
  }

  private closeAttempt(): void {
    this.phase = 'left';
    if (this.attempt !== this.scope) this.scope.detach(this.attempt);
    if (this.attemptEndPermit === undefined) return;
    this.attemptEndPermit = undefined;
    if (this.ends) this.arm();
    else this.call.clock.cancel(this);
  }

  private close(): void {
    this.phase = 'over';
    this.call.admittedAtMs = undefined;
    if (this.plan.outermost) this.call.unfollow();
    if (this.owner !== undefined) this.call.detach(this);
    if (this.scope !== this.call) this.call.detach(this.scope);
    if (this.ends || this.attemptEndPermit !== undefined) this.call.clock.cancel(this);
  }

  /** @param index - Index of a guard that has admitted the call. */
  private permitAt(index: number): Permit {
    return index === 0 ? this.firstPermit! : this.morePermits![index - 1]!;
  }

  /**
   * Settles the permits from one index up to another, or releases them if there is nothing to learn. An error thrown by a permit replaces the
   * outcome, so that a broken `handles` becomes visible; the remaining permits are still settled.
   */
  private settle(from: number, to: number, lesson: Outcome | undefined): Outcome | undefined {
    let failure: Outcome | undefined;
    const end = Math.min(to, this.permitCount);
    for (let index = from; index < end; index++) {
      const thrown = settleOne(this.permitAt(index), lesson);
      failure ??= thrown;
    }
    return failure;
  }

  private tellEnd(from: number, to: number, late?: Outcome): void {
    if (!this.someoneAwaitsEnd) return;
    const end = Math.min(to, this.permitCount);
    const inside = to > this.plan.outerCount ? this.attempt : this.scope;
    if (inside.isIdle) this.tellNow(from, end, late);
    else this.tellWhenIdle(inside, from, end, late);
  }

  // A separate method: a function that creates a closure allocates for it even when it returns earlier.
  private tellWhenIdle(inside: Call, from: number, end: number, late: Outcome | undefined): void {
    inside.onIdle(() => this.tellNow(from, end, late));
  }

  private tellNow(from: number, end: number, late: Outcome | undefined): void {
    for (let index = from; index < end; index++) tellEnded(this.permitAt(index), late);
  }

  /** Gives the latest permits back: all of them, or only those granted inside the retry. */
  private giveBack(): void {
    const from = this.isIn ? this.plan.outerCount : 0;
    while (this.permitCount > from) {
      this.permitCount--;
      giveBack(this.permitAt(this.permitCount));
    }
  }

  private endReason(permit: Permit | undefined): unknown {
    if (permit === undefined) return new DeadlineExceededError({ policy: 'pipeline' });
    const { name: policy } = this.plan.guards.find((_, index) => this.permitAt(index) === permit)!;
    try {
      return permit.endReason?.() ?? new TimeoutError({ policy });
    } catch (error) {
      return error;
    }
  }

  private answersOutcome(): boolean {
    return this.plan.outermost && this.call.asOutcome;
  }

  private answer(outcome: Outcome): void {
    if (this.answersOutcome()) this.resolve!(outcome);
    else if (outcome.ok) this.resolve!(outcome.value);
    else this.reject!(outcome.error);
  }
}
