/**
 * Compares a retry that is fused with the guards around and inside it with the same retry as a separate step. Nobody can tell them apart, except by the time
 * that a call costs.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { guardLayer } from '../../src/core/layer.js';
import type { Guard, Strategy } from '../../src/index.js';
import {
  allOf,
  guardKinds,
  hasFusedRetries,
  isAccepted,
  type Played,
  type PolicySpec,
  play,
  type Script,
  scripts,
  withoutTies,
} from './support/any-pipeline.js';

const seed = 44;
const runs = Number(process.env.HOLDFAST_FUSION_RUNS ?? 1_500);

const hears: Guard = { name: 'hears', admit: () => ({ settle() {}, release() {} }) };

/**
 * The same retry in an object that does not tell a pipeline how it can be resumed. By itself it would hear that its call has ended only when the first attempt
 * has ended; a fused one hears at once, as one with a guard inside does.
 */
function unfused({ name, traits, handle }: Strategy): Strategy {
  return {
    name,
    ...(traits && { traits }),
    handle(call, next) {
      const first = guardLayer([hears], next, false) as typeof next;
      return handle(call, (attempt) => (attempt === call ? first(attempt) : next(attempt)));
    },
  };
}

const told = (outcome: Played['outcomes'][number]['outcome']) =>
  outcome?.ok ? `value ${outcome.value}` : String(outcome?.error);

/** The order within an instant is left out, because the number of microtasks that a step takes is no promise. */
function view({ outcomes, starts, aborts, permits, events, faults }: Played) {
  return {
    outcomes: outcomes.map(({ settledMs, outcome }) => `${told(outcome)} at ${settledMs}`),
    starts: [...starts].sort(),
    aborts: [...aborts].sort(),
    permits: permits.map(({ name, admittedMs, told }) => `${name} from ${admittedMs}: ${told.join(', ')}`).sort(),
    events: events.map(({ atMs, text }) => `${atMs} ${text}`).sort(),
    faults,
  };
}

/**
 * Whether a difference shows only what is not promised, namely which of several things comes first in one instant. A hedge that has a winner aborts a copy that
 * may get a slot in this instant. Callers of one flight end together and want what is left of one budget. A call that gets a free slot meets another one at the
 * next bulkhead. Of two breakers of one group that fail together, one may open.
 */
function isRace({ policies, calls }: Script): boolean {
  const retryIndex = policies.findIndex(({ kind }) => kind === 'retry');
  if (allOf(policies.slice(0, retryIndex)).some(({ kind }) => kind === 'hedge')) return true;
  if (calls.length > 1) {
    if (allOf(policies).some(({ kind }) => kind === 'flight')) return true;
    if (allOf(policies).filter(({ kind }) => kind === 'bulkhead' || kind === 'adaptive').length > 1) return true;
  }
  return policies.some((spec) => spec.kind === 'keyed' && spec.of.filter(({ kind }) => kind === 'breaker').length > 1);
}

/**
 * An operation that ends its own call also ends whatever shares that call with it. A fused retry shares more of it, so this is only tried where the retry
 * belongs to the outermost step. A hook ends a call only where no other call can come between, because which event is the fifth depends on the order within an
 * instant.
 */
function comparable(script: Script): Script {
  const first = script.policies.find(({ kind }) => !guardKinds.has(kind));
  const isOutermost = first?.kind === 'retry' && script.policies.every(({ kind }) => kind !== 'keyed');
  const calls = script.calls.map((call) => ({
    ...call,
    behaviours: call.behaviours.map((one) =>
      one.ends === 'aborts itself' && !isOutermost ? { ...one, ends: 'error' as const } : one,
    ),
  }));
  const policies = script.policies.map((spec) => calm(spec, calls.length > 1));
  const mischiefs = script.mischiefs.filter(({ does }) => does === 'throws' || calls.length === 1);
  return withoutTies({ policies, calls, mischiefs });
}

/** Whether a call that is ended by its own guard or by another call has begun also depends on the order within an instant. */
function calm(spec: PolicySpec, hasCompany: boolean): PolicySpec {
  if (spec.kind === 'keyed') return { ...spec, of: spec.of.map((part) => calm(part, hasCompany)) };
  if (!('abortsWhen' in spec) || (spec.kind === 'retry' && !hasCompany)) return spec;
  return { ...spec, abortsWhen: undefined };
}

async function isTheSame(drawn: Script): Promise<void> {
  const script = comparable(drawn);
  const fused = await play(script);
  const reference = await play(script, { changeRetry: unfused });
  expect(view(fused)).toEqual(view(reference));
}

describe('a fused retry', { timeout: 40 * runs }, () => {
  it('does what a retry by itself does, for one call', async () => {
    await fc.assert(
      fc.asyncProperty(scripts(1, 1, 1), async (script) => {
        fc.pre(hasFusedRetries(script.policies) && !isRace(script) && isAccepted(script));
        await isTheSame(script);
      }),
      { seed, numRuns: runs },
    );
  });

  it('does what a retry by itself does, for calls that meet in its guards', async () => {
    await fc.assert(
      fc.asyncProperty(scripts(2, 6, 1), async (script) => {
        fc.pre(hasFusedRetries(script.policies) && !isRace(script) && isAccepted(script));
        await isTheSame(script);
      }),
      { seed, numRuns: runs },
    );
  });
});
