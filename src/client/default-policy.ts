/** The policy of HTTP clients that are given none: the preset, with statuses judged. */
import type { AnyPolicy } from '../core/pipeline.js';
import { standard } from '../policies/standard.js';
import { discardBody } from './discard-body.js';
import { breakerHandles, handles } from './handles.js';

/** A name takes 200 characters, and a host may have more. */
const longestName = 200;

export function defaultPolicy(origin: string): AnyPolicy {
  const name = origin.slice(0, longestName);
  return standard({ name, deadline: '30s', timeout: '10s', handles, breakerHandles, onDiscard: discardBody });
}
