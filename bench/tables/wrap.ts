/** What several policies around one call add together, one call at a time and 10,000 at once (the counting of P5). */
import { IdealTimeout, idealRetry } from '../ideals.ts';
import { atLeast, atMost, bare, type Contender, emptyWrapper, type Round, type Table, userTask } from '../table.ts';

const contenders: readonly Contender[] = [
  bare,
  emptyWrapper,
  {
    name: 'ideal',
    prepare: () => {
      const attempt = new IdealTimeout(1000);
      const limited = () => attempt.run(userTask);
      return () => idealRetry(limited);
    },
  },
  {
    name: 'holdfast',
    prepare: async () => {
      const { deadline, pipeline, retry, timeout } = await import('holdfast');
      const bounded = pipeline(deadline('5s'), retry({ attempts: 3 }), timeout('1s'));
      return () => bounded.execute(userTask);
    },
  },
  {
    name: 'p-retry + p-timeout',
    prepare: async () => {
      const { default: pRetry } = await import('p-retry');
      const { default: pTimeout } = await import('p-timeout');
      const limited = () => pTimeout(userTask(), { milliseconds: 1000 });
      const options = { retries: 2 };
      return () => pRetry(limited, options);
    },
  },
  {
    name: 'cockatiel',
    prepare: async () => {
      const { ExponentialBackoff, handleAll, retry, TimeoutStrategy, timeout, wrap } = await import('cockatiel');
      const retrying = retry(handleAll, { maxAttempts: 2, backoff: new ExponentialBackoff() });
      const bounded = wrap(retrying, timeout(1000, TimeoutStrategy.Aggressive));
      return () => bounded.execute(userTask);
    },
  },
];

export const wrap: Table = {
  name: 'wrap',
  title: 'Deadline, retry and timeout around one call',
  note: 'Only holdfast has the deadline; the others are retry and timeout. The targets are those of P5, which counts four policies.',
  measure: 'ns per call',
  once: ['B per call'],
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders,
  targets: [
    atMost(200, 'P5: ≤ 200 ns over bare', (round) => added(round, 'holdfast')),
    atLeast(
      5,
      'P5: ≥ 5 × less added than p-retry + p-timeout',
      (round) => added(round, 'p-retry + p-timeout') / added(round, 'holdfast'),
    ),
    atLeast(
      25,
      'P5: ≥ 25 × less added than cockatiel',
      (round) => added(round, 'cockatiel') / added(round, 'holdfast'),
    ),
  ],
};

export const burst: Table = {
  name: 'burst',
  title: 'Deadline, retry and timeout, 10,000 calls at once',
  note: 'How long the event loop is blocked until its next turn.',
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
