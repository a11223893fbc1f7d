/**
 * Composition: the few orders of policies that cannot be meant are refused when the pipeline is built. `explain()` reports the doubtful ones, with
 * the reason and a better order.
 */
import type { Clock } from './clock.js';
import { OptionsError } from './errors.js';
import type { Policy, PolicyTraits } from './policy.js';

/** One warning about a pipeline. */
export interface CompositionWarning {
  /** Stable, for programs: `'retry-without-deadline'` and so on. */
  readonly code: string;
  readonly message: string;
}

/** A policy as the rules see it. A policy without traits has only its name. */
interface Placed extends Partial<PolicyTraits> {
  readonly name: string;
}

type AnyPolicy = Policy<unknown>;

/** The clock that the policies agree on, or undefined when none names one. */
export function commonClock(policies: readonly AnyPolicy[]): Clock | undefined {
  let clock: Clock | undefined;
  for (const { name, traits } of policies) {
    if (traits?.clock === undefined) continue;
    clock ??= traits.clock;
    if (traits.clock !== clock)
      throw refused(`"${name}" runs on another clock than a policy before it; give all of them the same one`, policies);
  }
  return clock;
}

/** Throws for an order that cannot be meant. Policies are listed outermost first. */
export function refuseImpossible(policies: readonly AnyPolicy[]): void {
  const placed = place(policies);
  const [, secondRetry] = placed.filter(({ kind }) => kind === 'retry');
  if (secondRetry !== undefined) {
    throw refused(`two retries in one pipeline multiply their attempts; leave out "${secondRetry.name}"`, policies);
  }
  const [first] = brokenPromises(placed);
  if (first !== undefined) throw refused(first.message, policies);
}

/** Finds policies that the order makes useless. */
function brokenPromises(placed: readonly Placed[]): readonly CompositionWarning[] {
  const broken: CompositionWarning[] = [];
  const breaker = placed.find(({ kind }) => kind === 'circuit-breaker');
  const hidden = insideOf(breaker, placed).find(({ kind }) => kind === 'fallback');
  if (hidden !== undefined) {
    const message = `"${hidden.name}" inside "${breaker!.name}" hides every failure from it; put the fallback first`;
    broken.push({ code: 'fallback-inside-breaker', message });
  }
  for (const attempt of placed.filter(({ kind }) => kind === 'timeout')) {
    const deadline = outsideOf(attempt, placed).find(
      ({ kind, afterMs }) => kind === 'deadline' && (attempt.afterMs ?? 0) >= (afterMs ?? Number.POSITIVE_INFINITY),
    );
    if (deadline === undefined) continue;
    const message = `"${attempt.name}" (${attempt.afterMs} ms) must be below the deadline around it (${deadline.afterMs} ms)`;
    broken.push({ code: 'timeout-never-reached', message });
  }
  return broken;
}

/**
 * Reports what is doubtful about an allowed order. This includes the policies inside a policy of the pipeline: they are made when a call needs them,
 * too late for a refusal.
 */
export function warningsOf(policies: readonly AnyPolicy[]): readonly CompositionWarning[] {
  const placed = place(policies);
  const warnings: CompositionWarning[] = [...brokenPromises(placed)];
  const warn: Warn = (code, message) => warnings.push({ code, message });
  // A retry with a single attempt repeats nothing.
  const [retry, inner] = placed.filter(({ kind, attempts }) => kind === 'retry' && attempts !== 1);
  if (inner !== undefined) {
    warn(
      'retry-inside-retry',
      `"${inner.name}" inside "${retry!.name}" makes one attempt, because the outermost retry repeats the whole; leave one out`,
    );
  }
  if (retry !== undefined) {
    warnOfRetry(retry, placed, warn);
    warnOfPlaces(retry, placed, warn);
  }
  warnOfTimes(placed, warn);
  const timeouts = placed.filter(({ kind }) => kind === 'timeout');
  for (const [index, inner] of timeouts.entries()) {
    const outer = timeouts[index - 1];
    if (outer === undefined || (inner.afterMs ?? 0) < (outer.afterMs ?? 0)) continue;
    const outside = outsideOf(retry, placed);
    if (outside.includes(outer) && !outside.includes(inner)) continue;
    warn(
      'timeout-never-reached',
      `"${inner.name}" (${inner.afterMs} ms) never fires: the timeout around it fires after ${outer.afterMs} ms; leave one out`,
    );
  }
  return warnings;
}

type Warn = (code: string, message: string) => void;

function warnOfRetry(retry: Placed, placed: readonly Placed[], warn: Warn): void {
  const outside = outsideOf(retry, placed);
  const inside = insideOf(retry, placed);
  const earliestEndMs = (among: readonly Placed[]) =>
    among
      .filter(({ kind }) => kind === 'deadline' || kind === 'timeout')
      .reduce((earliestMs, { afterMs = earliestMs }) => Math.min(earliestMs, afterMs), Number.POSITIVE_INFINITY);
  const totalMs = earliestEndMs(outside);
  const attemptMs = earliestEndMs(inside);
  if (totalMs === Number.POSITIVE_INFINITY) {
    warn(
      'retry-without-deadline',
      `nothing bounds the sum of the attempts of "${retry.name}"; put a deadline around it, or give each call one`,
    );
  }
  const insideDeadline = inside.find(({ kind }) => kind === 'deadline');
  if (insideDeadline !== undefined) {
    warn(
      'deadline-inside-retry',
      `"${insideDeadline.name}" inside "${retry.name}" begins anew with each attempt; put the deadline around the retry and a timeout inside`,
    );
  }
  if (retry.hasBudget === false) {
    warn(
      'retry-without-budget',
      `"${retry.name}" may send ${retry.attempts} times the load to a service that is down; give it a budget: retryBudget()`,
    );
  }
  const fallback = inside.find(({ kind }) => kind === 'fallback');
  if (fallback !== undefined) {
    warn(
      'fallback-inside-retry',
      `"${fallback.name}" inside "${retry.name}" answers before a second attempt can be made; put the fallback first`,
    );
  }
  const { attempts = 1, totalDelayMs } = retry;
  const waits =
    totalDelayMs === undefined ? ', their waits aside,' : ` with waits of ${Math.round(totalDelayMs)} ms in all`;
  const longestMs = Math.round(attempts * attemptMs + (totalDelayMs ?? 0));
  if (attemptMs !== Number.POSITIVE_INFINITY && longestMs > totalMs) {
    warn(
      'attempts-exceed-deadline',
      `${attempts} attempts of ${attemptMs} ms${waits} take up to ${longestMs} ms; the call ends after ${totalMs} ms, so the last ones may never be made`,
    );
  }
}

/** Warns of policies that belong on the other side of the retry. */
function warnOfPlaces(retry: Placed, placed: readonly Placed[], warn: Warn): void {
  const outside = outsideOf(retry, placed);
  for (const policy of placed) {
    const { kind, name, copies = 1 } = policy;
    const isOutside = outside.includes(policy);
    if (kind === 'circuit-breaker' && isOutside) {
      warn(
        'breaker-outside-retry',
        `"${name}" around "${retry.name}" sees one outcome for up to ${retry.attempts} attempts, so it opens late; put it inside`,
      );
    }
    if ((kind === 'bulkhead' || kind === 'adaptive-limit') && isOutside) {
      warn(
        'slot-held-while-waiting',
        `"${name}" around "${retry.name}" keeps its slots while nothing runs between two attempts; put it inside`,
      );
    }
    if (kind === 'rate-limit' && !isOutside) {
      warn(
        'rate-limit-per-attempt',
        `"${name}" inside "${retry.name}" takes its cost for each attempt; put it around the retry if the quota is for calls`,
      );
    }
    if (kind === 'hedge') {
      warn(
        'retry-and-hedge',
        `"${retry.name}" and "${name}" multiply: up to ${(retry.attempts ?? 1) * (1 + copies)} operations for one call; use one of them`,
      );
    }
  }
}

/** Warns of durations that contradict each other. */
function warnOfTimes(placed: readonly Placed[], warn: Warn): void {
  const breaker = placed.find(({ windowMs }) => windowMs !== undefined);
  const timeout = insideOf(breaker, placed).find(({ kind }) => kind === 'timeout');
  if (timeout?.afterMs !== undefined && breaker!.windowMs! < 2 * timeout.afterMs) {
    warn(
      'window-too-short',
      `"${breaker!.name}" looks at ${breaker!.windowMs} ms, in which hardly two attempts of ${timeout.afterMs} ms fit; make its window longer`,
    );
  }
  const hedge = placed.find(({ kind }) => kind === 'hedge');
  const end = outsideOf(hedge, placed).find(({ kind }) => kind === 'deadline');
  const { copies = 1, delayMs = 0 } = hedge ?? {};
  const lastMs = copies * delayMs;
  if (end?.afterMs !== undefined && lastMs >= end.afterMs) {
    warn(
      'hedges-exceed-deadline',
      `${copies} copies ${delayMs} ms apart of "${hedge!.name}" begin after ${lastMs} ms; the call ends after ${end.afterMs} ms`,
    );
  }
  const flight = placed.find(({ kind }) => kind === 'single-flight');
  if (flight !== undefined && !insideOf(flight, placed).some(({ afterMs }) => afterMs !== undefined)) {
    warn(
      'flight-without-end',
      `an execution of "${flight.name}" that hangs is joined by every later call of its key, so none of them is served; put a timeout inside`,
    );
  }
}

function place(policies: readonly AnyPolicy[]): readonly Placed[] {
  return policies.map(({ name, traits }) => ({ ...traits, name }));
}

function outsideOf(one: Placed | undefined, placed: readonly Placed[]): readonly Placed[] {
  return one === undefined ? [] : placed.slice(0, placed.indexOf(one));
}

function insideOf(one: Placed | undefined, placed: readonly Placed[]): readonly Placed[] {
  return one === undefined ? [] : placed.slice(placed.indexOf(one) + 1);
}

function refused(message: string, policies: readonly AnyPolicy[]): OptionsError {
  return new OptionsError(`pipeline: ${message}`, {
    policy: 'pipeline',
    value: policies.map(({ name }) => name),
    allowed: 'a sensible order of policies',
  });
}
