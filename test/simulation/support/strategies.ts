/**
 * The strategies that the overload scenarios compare: none, the one that knows the service, and what holdfast has.
 */
import {
  type AdaptiveLimitOptions,
  adaptiveLimit,
  bulkhead,
  type Duration,
  pipeline,
  standard,
  timeout,
} from '../../../src/index.js';
import type { Strategy } from '../../../src/testing/overload/overload.js';
import type { Shape } from '../../../src/testing/overload/services.js';

const attemptTimeout = '1s';

export const unprotected: Strategy = () => (task) => task({});

export const onlyTimeout: Strategy = ({ clock }) => {
  const calls = pipeline(timeout({ after: attemptTimeout, clock }));
  return (task) => calls.execute(task);
};

/** Knows how many the service can do at once, which nobody does. */
export const oracle =
  ({ workers }: Shape): Strategy =>
  ({ clock }) => {
    const calls = pipeline(
      bulkhead({ limit: workers, queue: 100, order: 'newest-first', maxWait: 200, releaseOn: 'timeout', clock }),
      timeout({ after: attemptTimeout, clock }),
    );
    return (task) => calls.execute(task);
  };

/** Without options: our own rule. */
export const adaptive =
  (options: AdaptiveLimitOptions = {}, after: Duration = attemptTimeout): Strategy =>
  ({ clock, random }) => {
    const calls = pipeline(adaptiveLimit({ clock, random, ...options }), timeout({ after, clock }));
    return (task) => calls.execute(task);
  };

/** The preset, with the times of the scenarios. */
export const byStandard: Strategy = ({ clock, random }) => {
  const calls = standard({ clock, random, deadline: '2s', timeout: attemptTimeout });
  return (task) => calls.execute(task);
};

/** A published rule as it is published: no queue. Its least limit is lowered to 2, so that small services have a chance. */
export const published = (algorithm: 'aimd' | 'vegas' | 'gradient2'): Strategy =>
  adaptive({ algorithm, min: 2, max: algorithm === 'gradient2' ? 200 : algorithm === 'aimd' ? 400 : 1_000, queue: 0 });
