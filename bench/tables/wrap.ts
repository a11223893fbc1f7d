/** What four policies around one call add in total, one call at a time and 10,000 at once (P5). */
import { IdealFour } from '../ideals.ts';
import { burstCalls } from '../measures.ts';
import { atLeast, atMost, bare, type Contender, emptyWrapper, type Round, type Table, userTask } from '../table.ts';

/** What users have today. opossum is breaker, timeout and bulkhead. */
const stack = 'p-retry + opossum';

/** The bulkhead is never full, so all calls of a burst run. */
const limit = burstCalls;

const contenders: readonly Contender[] = [
  bare,
  emptyWrapper,
  {
    name: 'ideal',
    prepare: () => {
      const ideal = new IdealFour(limit);
      return () => ideal.run(userTask);
    },
  },
  {
    name: 'ideal with calls',
    prepare: () => {
      const ideal = new IdealFour(limit, true);
      return () => ideal.run(userTask);
    },
  },
  {
    name: 'holdfast',
    prepare: async () => {
      const { bulkhead, circuitBreaker, pipeline, retry, timeout } = await import('holdfast');
      const bounded = pipeline(bulkhead({ limit }), retry({ attempts: 3 }), circuitBreaker(), timeout('1s'));
      return () => bounded.execute(userTask);
    },
  },
  {
    name: stack,
    prepare: async () => {
      const { default: pRetry } = await import('p-retry');
      const { default: CircuitBreaker } = await import('opossum');
      const breaker = new CircuitBreaker(userTask, { timeout: 1000, capacity: limit });
      const fire = () => breaker.fire();
      const options = { retries: 2 };
      return () => pRetry(fire, options);
    },
  },
  {
    name: 'cockatiel',
    prepare: async () => {
      const { bulkhead, circuitBreaker, ExponentialBackoff, handleAll, retry, SamplingBreaker, ...others } =
        await import('cockatiel');
      const { TimeoutStrategy, timeout, wrap } = others;
      const breaker = new SamplingBreaker({ threshold: 0.5, duration: 30_000 });
      const bounded = wrap(
        bulkhead(limit),
        retry(handleAll, { maxAttempts: 2, backoff: new ExponentialBackoff() }),
        circuitBreaker(handleAll, { halfOpenAfter: 5000, breaker }),
        timeout(1000, TimeoutStrategy.Aggressive),
      );
      return () => bounded.execute(userTask);
    },
  },
];

export const wrap: Table = {
  name: 'wrap',
  title: 'Bulkhead, retry, circuit breaker and timeout around one call',
  note: 'Outermost first. opossum is breaker, timeout and bulkhead in one, so its retry is outside of it. `ideal with calls` passes to the operation what holdfast does: a call with a signal.',
  measure: 'ns per call',
  once: ['B per call'],
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders,
  targets: [
    atMost(200, 'P5: ≤ 200 ns over bare', (round) => added(round, 'holdfast')),
    atLeast(5, `P5: ≥ 5 × less added than ${stack}`, (round) => added(round, stack) / added(round, 'holdfast')),
    atLeast(
      25,
      'P5: ≥ 25 × less added than cockatiel',
      (round) => added(round, 'cockatiel') / added(round, 'holdfast'),
    ),
  ],
};

export const burst: Table = {
  name: 'burst',
  title: 'Bulkhead, retry, circuit breaker and timeout: 10,000 calls at once',
  note: 'The time for which the event loop is blocked.',
  measure: 'ms blocked',
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders,
  targets: [
    atMost(10, 'P5: ≤ 10 ms blocked', (round) => round.holdfast!),
    atLeast(50, 'P5: ≥ 50 × less than cockatiel', (round) => round.cockatiel! / round.holdfast!),
  ],
};

function added(round: Round, name: string): number {
  return round[name]! - round.bare!;
}
