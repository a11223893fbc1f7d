/** The default policy of the HTTP clients: the `standard` preset, with HTTP statuses judged. */
import type { CommonOptions } from '../core/options.js';
import type { AnyPolicy } from '../core/pipeline.js';
import { standard } from '../policies/standard.js';
import { discardBody } from './discard-body.js';
import { breakerHandles, handles } from './handles.js';

/** A policy name may have 200 characters, and a host name may be longer. */
const longestName = 200;

export function defaultPolicy(origin: string, { on, clock }: Pick<CommonOptions, 'on' | 'clock'>): AnyPolicy {
  const name = origin.slice(0, longestName);
  return standard({
    name,
    on,
    clock,
    deadline: '30s',
    timeout: '10s',
    handles,
    breakerHandles,
    onDiscard: discardBody,
  });
}
