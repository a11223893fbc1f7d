/**
 * What other npm packages offer against an overload, as strategies for the scenarios: attempts of 1 s, options as the packages document them. They
 * know only the platform's clock: run them in real time, or with `playOnPlatform`.
 */
import {
  bulkhead,
  circuitBreaker,
  ExponentialBackoff,
  handleAll,
  type IPolicy,
  retry,
  SamplingBreaker,
  TimeoutStrategy,
  timeout,
  wrap,
} from 'cockatiel';
import CircuitBreaker, { type Options } from 'opossum';
import pLimit from 'p-limit';
import pRetry from 'p-retry';
import pTimeout from 'p-timeout';
import type { Strategy, Task } from '../../src/testing/overload/overload.ts';

const milliseconds = 1_000;
/** As many as the service has workers. */
const limit = 20;

const retried: Strategy = () => (task) =>
  pRetry(
    () => {
      const controller = new AbortController();
      const attempt = Object.assign(task({ signal: controller.signal }), { cancel: () => controller.abort() });
      return pTimeout(attempt, { milliseconds });
    },
    { retries: 3 },
  );

/** Its queue is unbounded and its waits have no time limit: the timeout applies to an attempt. */
const limited: Strategy = () => {
  const places = pLimit(limit);
  return (task) => places(() => pTimeout(task({}), { milliseconds }));
};

const opossum =
  (options: Options): Strategy =>
  () => {
    // Percentiles are only informative, but computed at each failure. Without them the decisions are the same, and fast.
    const breaker = new CircuitBreaker((task: Task) => task({}), { ...options, rollingPercentilesEnabled: false });
    return (task) => breaker.fire(task);
  };

/** Without a size it has no bulkhead. The breaker opens at half of 10 s, like opossum's; cockatiel itself has no default. */
const cockatiel =
  (place: 'none' | 'innermost' | 'outermost'): Strategy =>
  () => {
    const sampling = new SamplingBreaker({ threshold: 0.5, duration: 10_000 });
    const policies: IPolicy[] = [
      retry(handleAll, { maxAttempts: 3, backoff: new ExponentialBackoff() }),
      circuitBreaker(handleAll, { halfOpenAfter: 5_000, breaker: sampling }),
    ];
    if (place === 'innermost') policies.push(bulkhead(limit));
    if (place === 'outermost') policies.unshift(bulkhead(limit));
    const calls = wrap(...policies, timeout(milliseconds, TimeoutStrategy.Aggressive));
    return (task) => calls.execute(({ signal }) => task({ signal }));
  };

export const rivals = {
  'p-retry 3 + p-timeout': retried,
  'p-limit(20) + p-timeout': limited,
  'opossum, defaults': opossum({}),
  'opossum, timeout 1 s': opossum({ timeout: milliseconds }),
  'opossum, timeout 1 s, capacity 20': opossum({ timeout: milliseconds, capacity: limit }),
  'cockatiel retry + breaker + timeout': cockatiel('none'),
  'cockatiel retry + breaker + bulkhead(20) + timeout': cockatiel('innermost'),
  'cockatiel bulkhead(20) + retry + breaker + timeout': cockatiel('outermost'),
} satisfies Record<string, Strategy>;
