/**
 * Admission: how a layer asks guards and notifies their permits.
 *
 * Promise: a custom guard that throws or returns an invalid answer counts as a refusal. A permit that throws keeps no other permit from being
 * notified.
 */
import type { Call } from './call.js';
import { isAbandoned, isRejected } from './errors.js';
import { Events } from './events.js';
import { show } from './options.js';
import type { Outcome } from './outcome.js';
import { type Guard, isPermit, type Permit, type Refusal } from './policy.js';

/** What a guard may return from `admit`. */
export type Answer = Permit | Refusal | Promise<Permit | Refusal>;

/** Returns the function with which a layer asks a guard. */
export function admissionOf(guard: Guard): (call: Call) => Answer {
  const { fused } = guard;
  return fused?.of === guard.admit ? fused.admit : (call) => checkAnswer(guard, guard.admit(call));
}

/** Asks a guard. If it throws, the answer is a refusal. */
export function askedBy<Given extends Answer>(admit: (call: Call) => Given, call: Call): Given | Refusal {
  try {
    return admit(call);
  } catch (error) {
    return { error };
  }
}

function checkAnswer(guard: Guard, answer: Answer): Answer {
  if (typeof answer === 'object' && answer !== null) {
    if (isPermit(answer) || 'error' in answer || typeof answer.then === 'function') return answer;
  }
  throw new TypeError(
    `guard "${guard.name}" must answer a permit or a refusal, or a promise of one, got ${show(answer)}`,
  );
}

/** Checks what a guard's promise resolved with. */
export function answerOrRefusal(guard: Guard, answer: Permit | Refusal): Permit | Refusal {
  try {
    return checkAnswer(guard, answer) as Permit | Refusal;
  } catch (error) {
    return { error };
  }
}

/** The outcome that a guard learns from; undefined for a refusal from inside, which says nothing about the service. */
export function lessonOf(outcome: Outcome): Outcome | undefined {
  return !outcome.ok && isRejected(outcome.error) ? undefined : outcome;
}

/** What a guard learns from a call that was ended. Our own timeout is a failure wherever it was set; an abort counts for nobody. */
export function lessonOfEnd(outcome: { readonly ok: false; readonly error: unknown }): Outcome | undefined {
  return isAbandoned(outcome.error) ? outcome : undefined;
}

/** Settles a permit, or releases it if there is nothing to learn. If the permit throws, that is the outcome of the call. */
export function settleOne(permit: Permit, lesson: Outcome | undefined): Outcome | undefined {
  try {
    if (lesson === undefined) permit.release();
    else permit.settle(lesson);
    return undefined;
  } catch (error) {
    return { ok: false, error };
  }
}

/** For errors that custom permits throw after a call is over: they are reported and must not keep other permits from being notified. */
const reports = /* @__PURE__ */ new Events('pipeline', undefined);

/** Releases a permit whose operation has not begun. */
export function giveBack(permit: Permit): void {
  reports.contain('release', () => permit.release());
  tellEnded(permit, undefined);
}

/** Tells a permit that its work has really ended. */
export function tellEnded(permit: Permit, late: Outcome | undefined): void {
  if (permit.ended === undefined) return;
  try {
    permit.ended(late);
  } catch (error) {
    reports.report('ended', error);
  }
}
