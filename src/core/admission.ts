/**
 * Admission: how a layer asks guards, and what it tells their permits.
 *
 * Promise: a guard of one's own that throws, or answers nonsense, is a refusal; a permit that throws keeps no other from hearing.
 */
import type { Call } from './call.js';
import { isAbandoned, isRejected } from './errors.js';
import { Events } from './events.js';
import { show } from './options.js';
import type { Outcome } from './outcome.js';
import { type Guard, isPermit, type Permit, type Refusal } from './policy.js';

/** What a guard may answer. */
export type Answer = Permit | Refusal | Promise<Permit | Refusal>;

/** How a layer asks a guard. */
export function admissionOf(guard: Guard): (call: Call) => Answer {
  const { fused } = guard;
  return fused?.of === guard.admit ? fused.admit : (call) => checkAnswer(guard, guard.admit(call));
}

/** The answer; what asking threw is a refusal. */
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

/** What a promise of a guard resolved with. */
export function answerOrRefusal(guard: Guard, answer: Permit | Refusal): Permit | Refusal {
  try {
    return checkAnswer(guard, answer) as Permit | Refusal;
  } catch (error) {
    return { error };
  }
}

/** What a guard learns from how its call ended; a refusal from inside says nothing about the service. */
export function lessonOf(outcome: Outcome): Outcome | undefined {
  return !outcome.ok && isRejected(outcome.error) ? undefined : outcome;
}

/** What it learns from a call that was ended: our own timeout is a failure at whichever distance, an abort nobody's. */
export function lessonOfEnd(outcome: { readonly ok: false; readonly error: unknown }): Outcome | undefined {
  return isAbandoned(outcome.error) ? outcome : undefined;
}

/** Settles a permit, or releases it where there is nothing to learn. What it throws is how the call ended. */
export function settleOne(permit: Permit, lesson: Outcome | undefined): Outcome | undefined {
  try {
    if (lesson === undefined) permit.release();
    else permit.settle(lesson);
    return undefined;
  } catch (error) {
    return { ok: false, error };
  }
}

/** A guard of one's own may be wrong; what its permits throw when a call is over must not keep others from hearing. */
const reports = /* @__PURE__ */ new Events('pipeline', undefined);

/** Takes a permit back whose operation did not begin. */
export function giveBack(permit: Permit): void {
  reports.contain('release', () => permit.release());
  tellEnded(permit, undefined);
}

/** The work under a permit has really ended. */
export function tellEnded(permit: Permit, late: Outcome | undefined): void {
  if (permit.ended === undefined) return;
  try {
    permit.ended(late);
  } catch (error) {
    reports.report('ended', error);
  }
}
