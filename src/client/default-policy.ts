/** The policy of HTTP clients that are given none: what the preset does, with statuses judged. */
import { type AnyPolicy, pipeline } from '../core/pipeline.js';
import { circuitBreaker } from '../policies/circuit-breaker/circuit-breaker.js';
import { deadline } from '../policies/deadline.js';
import { retry } from '../policies/retry/retry.js';
import { retryBudget } from '../policies/retry/retry-budget.js';
import { timeout } from '../policies/timeout.js';
import { discardBody } from './discard-body.js';
import { breakerHandles, handles } from './handles.js';

/** A name takes 200 characters, and a host may have more. */
const longestName = 200;

export function defaultPolicy(origin: string): AnyPolicy {
  return pipeline(
    deadline('30s'),
    retry({ budget: retryBudget(), handles, onDiscard: discardBody }),
    circuitBreaker({ name: origin.slice(0, longestName), handles: breakerHandles }),
    timeout('10s'),
  );
}
