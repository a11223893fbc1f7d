/**
 * Layer: neighbouring guards fused into one asynchronous step, because a step costs more than all their bookkeeping.
 *
 * Promise: the guards are asked outermost first, and when one refuses, those before it get their permits back; each
 * permit is settled or released exactly once; the nearest end of all permits is one timer; when that timer fires or the
 * call is aborted, the caller hears at once, the operation's signal aborts, and what the operation still does is
 * consumed, counted, and told to the permits when it ends.
 */
import type { WheelNode } from '../structures/timer-wheel.js';
import { ambient } from './ambient.js';
import type { Call, Dependent } from './call.js';
import type { Timer } from './clock.js';
import { DeadlineExceededError, DeadlineTooShortError, isAbandoned, isRejected, TimeoutError } from './errors.js';
import { Events } from './events.js';
import { show } from './options.js';
import { type Outcome, rejectLater } from './outcome.js';
import { type Guard, isPermit, type Permit, type Refusal } from './policy.js';

/** The rest of a pipeline: never throws, always answers a promise. */
export type Next = (call: Call) => Promise<unknown>;

/** The innermost step: the operation itself. */
export const runTask: Next = (call) => {
  try {
    const around = ambient();
    const answer = around === undefined ? call.task(call) : around.run(call, () => call.task(call));
    // Also a promise of another class becomes one whose callbacks come once and later.
    return Promise.resolve(answer);
  } catch (error) {
    return rejectLater(error);
  }
};

/** What a layer is made of. */
export interface LayerPlan {
  readonly guards: readonly Guard[];
  readonly next: Next;
  /** The outermost layer has the root call to itself, so it may end it; the others make a child that they may end. */
  readonly outermost: boolean;
}

/** Fuses guards into one step. */
export function guardLayer(plan: LayerPlan): Next {
  return (call) => new LayerRun(plan, call).start();
}

// One executor for all promises; it leaves its functions here, which spares a closure per call.
let resolveOfNew: (value: unknown) => void;
let rejectOfNew: (error: unknown) => void;
const keepFunctions = (resolve: (value: unknown) => void, reject: (error: unknown) => void) => {
  resolveOfNew = resolve;
  rejectOfNew = reject;
};

/** One call's way through one layer; also the timer of its end and what hears of the call's abort. */
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
  /** The call that goes inwards: the same one, or a child as soon as this layer may have to end it. */
  private scope: Call;
  /** The first permit has a field of its own, which spares most calls an array. */
  private firstPermit: Permit | undefined = undefined;
  private morePermits: Permit[] | undefined = undefined;
  private phase: 'admitting' | 'running' | 'over' = 'admitting';
  /** Whether this layer ends the call at `scope.deadlineMs`. */
  private ends = false;
  /** Who set that end; without one it is the deadline that came with the call. */
  private endPermit: Permit | undefined = undefined;
  private someoneAwaitsEnd = false;
  private resolve: ((value: unknown) => void) | undefined = undefined;
  private reject: ((error: unknown) => void) | undefined = undefined;

  constructor(plan: LayerPlan, call: Call) {
    this.plan = plan;
    this.call = call;
    this.scope = call;
  }

  start(): Promise<unknown> {
    const call = this.call;
    if (call.aborted) return this.failAtOnce(call.reason);
    call.admittedAtMs = undefined;
    if (this.plan.outermost && call.deadlineMs !== Number.POSITIVE_INFINITY) {
      const remainingMs = call.deadlineMs - call.admissionMs();
      if (remainingMs <= 0) return this.failAtOnce(new DeadlineTooShortError({ policy: 'pipeline', remainingMs }));
      this.ends = true;
    }
    const hindrance = this.admitFrom(0);
    if (hindrance !== undefined && 'error' in hindrance) return this.failAtOnce(hindrance.error);
    const promise = new Promise(keepFunctions);
    this.resolve = resolveOfNew;
    this.reject = rejectOfNew;
    if (hindrance === undefined) this.run();
    else this.waitFor(hindrance);
    return promise;
  }

  /** The layer's time is over. */
  expire(): void {
    this.giveUp(this.endReason());
  }

  /** Someone around this layer ended the call. */
  onAbort(reason: unknown): void {
    this.giveUp(reason);
  }

  /** Asks the guards in order. Answers what stopped it: a refusal, or the promise of a guard that queues. */
  private admitFrom(index: number): Refusal | Promise<Permit | Refusal> | undefined {
    const { guards } = this.plan;
    for (let next = index; next < guards.length; next++) {
      const guard = guards[next]!;
      let answer: Permit | Refusal | Promise<Permit | Refusal>;
      try {
        answer = checkAnswer(guard, guard.admit(this.scope));
      } catch (error) {
        answer = { error };
      }
      if (this.phase === 'over') {
        // The guard, or one that queued before it, ended the call meanwhile.
        if (isPermit(answer)) giveBack(answer);
        return undefined;
      }
      if (isPermit(answer)) this.take(answer);
      else {
        if ('error' in answer) this.giveBack();
        return answer;
      }
    }
    return undefined;
  }

  private take(permit: Permit): void {
    if (this.firstPermit === undefined) this.firstPermit = permit;
    else if (this.morePermits === undefined) this.morePermits = [permit];
    else this.morePermits.push(permit);
    if (permit.ended !== undefined) this.someoneAwaitsEnd = true;
    const { endsAt } = permit;
    // An end that is not nearer than the one in force will never be reached.
    if (endsAt === undefined || !(endsAt < this.scope.deadlineMs)) return;
    this.ends = true;
    this.endPermit = permit;
    if (this.scope === this.call && !this.plan.outermost) {
      const scope = this.call.child();
      scope.admittedAtMs = this.call.admittedAtMs;
      this.scope = scope;
    }
    this.scope.deadlineMs = endsAt;
  }

  /** A guard lets the call queue. The ends that earlier guards set hold for the waiting, too. */
  private waitFor(queued: Promise<Permit | Refusal>): void {
    const index = this.permits().length;
    this.attachAndArm();
    queued.then(
      (given) => {
        const answer = answerOrRefusal(this.plan.guards[index], given);
        if (this.phase === 'over') {
          if (isPermit(answer)) giveBack(answer);
        } else if (isPermit(answer)) {
          this.scope.admittedAtMs = undefined;
          this.take(answer);
          this.goOn(this.admitFrom(index + 1));
        } else this.failBeforeStart(answer.error);
      },
      (error) => {
        if (this.phase !== 'over') this.failBeforeStart(error);
      },
    );
  }

  private goOn(hindrance: Refusal | Promise<Permit | Refusal> | undefined): void {
    if (this.phase === 'over') return;
    if (hindrance === undefined) this.run();
    else if ('error' in hindrance) this.failBeforeStart(hindrance.error);
    else this.waitFor(hindrance);
  }

  private run(): void {
    this.attachAndArm();
    if ((this.phase as 'admitting' | 'over') === 'over') return;
    this.phase = 'running';
    this.plan.next(this.scope).then(
      (value) => this.workEnded({ ok: true, value }),
      (error) => this.workEnded({ ok: false, error }),
    );
  }

  private attachAndArm(): void {
    if (this.owner === undefined) this.call.attach(this);
    if (this.ends && this.phase !== 'over') this.call.clock.schedule(this, this.scope.deadlineMs);
  }

  private workEnded(outcome: Outcome): void {
    if (this.phase === 'over') {
      this.call.endAbandonedWork();
      this.tellEnd(outcome);
      return;
    }
    this.close();
    // A refusal from inside says nothing about the service.
    const answer = this.settle(!outcome.ok && isRejected(outcome.error) ? undefined : outcome) ?? outcome;
    this.tellEnd();
    this.answer(answer);
  }

  /** Ends the call for whoever waits on it, while its operation may run on. */
  private giveUp(reason: unknown): void {
    const wasRunning = this.phase === 'running';
    this.close();
    const outcome: Outcome = { ok: false, error: reason };
    // Our own timeout is a failure at whichever distance it was set; the caller's abort is nobody's failure, and nor is
    // a call that ended in a queue.
    const answer = this.settle(wasRunning && isAbandoned(reason) ? outcome : undefined) ?? outcome;
    if (wasRunning) this.call.beginAbandonedWork();
    else this.tellEnd();
    this.scope.abort(reason);
    this.answer(answer);
  }

  private failBeforeStart(error: unknown): void {
    this.close();
    this.giveBack();
    this.answer({ ok: false, error });
  }

  private failAtOnce(error: unknown): Promise<unknown> {
    this.phase = 'over';
    if (this.plan.outermost) this.call.unfollow();
    return this.answersOutcome() ? Promise.resolve({ ok: false, error }) : rejectLater(error);
  }

  private close(): void {
    this.phase = 'over';
    if (this.plan.outermost) this.call.unfollow();
    if (this.owner !== undefined) this.call.detach(this);
    if (this.scope !== this.call) this.call.detach(this.scope);
    if (this.ends) this.call.clock.cancel(this);
  }

  /**
   * Settles every permit, or releases it where there is nothing to learn. A permit that throws takes the place of the
   * outcome, so that a broken `handles` is seen; the others are settled all the same.
   */
  private settle(outcome: Outcome | undefined): Outcome | undefined {
    const { firstPermit, morePermits } = this;
    if (firstPermit === undefined) return undefined;
    let failure = settlePermit(firstPermit, outcome);
    if (morePermits === undefined) return failure;
    for (const permit of morePermits) {
      const another = settlePermit(permit, outcome);
      failure ??= another;
    }
    return failure;
  }

  private tellEnd(late?: Outcome): void {
    if (!this.someoneAwaitsEnd) return;
    this.scope.onIdle(() => {
      for (const permit of this.permits()) tellEnded(permit, late);
    });
  }

  private giveBack(): void {
    for (const permit of this.permits().reverse()) giveBack(permit);
    this.firstPermit = undefined;
    this.morePermits = undefined;
  }

  private permits(): Permit[] {
    return this.firstPermit === undefined ? [] : [this.firstPermit, ...(this.morePermits ?? [])];
  }

  private endReason(): unknown {
    if (this.endPermit === undefined) return new DeadlineExceededError({ policy: 'pipeline' });
    const policy = this.plan.guards[this.permits().indexOf(this.endPermit)]?.name ?? 'pipeline';
    try {
      return this.endPermit.endReason?.() ?? new TimeoutError({ policy });
    } catch (error) {
      return error;
    }
  }

  private answersOutcome(): boolean {
    return this.plan.outermost && this.call.asOutcome;
  }

  private answer(outcome: Outcome): void {
    if (this.answersOutcome()) this.resolve?.(outcome);
    else if (outcome.ok) this.resolve?.(outcome.value);
    else this.reject?.(outcome.error);
  }
}

/** A guard of one's own may be wrong; what its permits throw when a call is over must not keep others from hearing. */
const reports = /* @__PURE__ */ new Events('pipeline', undefined);

function settlePermit(permit: Permit, outcome: Outcome | undefined): Outcome | undefined {
  try {
    if (outcome === undefined) permit.release();
    else permit.settle(outcome);
    return undefined;
  } catch (error) {
    return { ok: false, error };
  }
}

function giveBack(permit: Permit): void {
  reports.contain('release', () => permit.release());
  tellEnded(permit, undefined);
}

function tellEnded(permit: Permit, late: Outcome | undefined): void {
  if (permit.ended !== undefined) reports.contain('ended', () => permit.ended?.(late));
}

type Answer = Permit | Refusal | Promise<Permit | Refusal>;

function checkAnswer(guard: Guard, answer: Answer): Answer {
  if (typeof answer === 'object' && answer !== null) {
    if (isPermit(answer) || 'error' in answer || typeof answer.then === 'function') return answer;
  }
  throw new TypeError(
    `guard "${guard.name}" must answer a permit or a refusal, or a promise of one, got ${show(answer)}`,
  );
}

/** What a promise of a guard resolved with. */
function answerOrRefusal(guard: Guard | undefined, answer: Permit | Refusal): Permit | Refusal {
  try {
    return guard === undefined ? answer : (checkAnswer(guard, answer) as Permit | Refusal);
  } catch (error) {
    return { error };
  }
}
