/** The default policy of the HTTP clients: the `standard` preset, with HTTP statuses judged. */
import type { CommonOptions } from '../core/options.js';
import type { Outcome } from '../core/outcome.js';
import type { AnyPolicy } from '../core/pipeline.js';
import { steadyBreaker } from '../policies/circuit-breaker/circuit-breaker.js';
import { retryHintOf } from '../policies/retry/retry-after.js';
import { standardWith } from '../policies/standard.js';
import { discardBody } from './discard-body.js';
import { breakerHandles, handles, headOf } from './handles.js';

/** A policy name may have 200 characters, and a host name may be longer. */
const longestName = 200;

export interface DefaultPolicyOptions extends Pick<CommonOptions, 'on' | 'clock'> {
  /** Whether the client heeds what the service says about its limits. */
  readonly isPaced: boolean;
}

export function defaultPolicy(origin: string, { on, clock, isPaced }: DefaultPolicyOptions): AnyPolicy {
  const name = origin.slice(0, longestName);
  // The pacing heeds what the service asks for, within limits of its own.
  return standardWith(steadyBreaker, {
    name,
    on,
    clock,
    deadline: '30s',
    timeout: '10s',
    handles,
    breakerHandles: isPaced ? isFailureBesidesRefusals : breakerHandles,
    onDiscard: discardBody,
  });
}

/**
 * A service that sheds load and says when to come back works as intended, also when it refuses most requests: an open circuit would turn away those
 * that it serves. When it refuses all, the pacer stops them.
 */
function isFailureBesidesRefusals(outcome: Outcome): boolean {
  if (!breakerHandles(outcome)) return false;
  // Only whether a time is named matters, so any clock reading will do.
  return headOf(outcome)?.status !== 503 || retryHintOf(outcome, 0) === undefined;
}
