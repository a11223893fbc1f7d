/** What a retry adds to a call that succeeds at once (P3). */
import { idealRetry } from '../ideals.ts';
import { atMost, bare, emptyWrapper, type Table, userTask } from '../table.ts';

export const retry: Table = {
  name: 'retry',
  title: 'Retry: the first attempt succeeds',
  measure: 'ns per call',
  once: ['B per call'],
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders: [
    bare,
    emptyWrapper,
    { name: 'ideal', prepare: () => () => idealRetry(userTask) },
    {
      name: 'holdfast',
      prepare: async () => {
        const { pipeline, retry } = await import('holdfast');
        const retrying = pipeline(retry({ attempts: 3 }));
        return () => retrying.execute(userTask);
      },
    },
    {
      name: 'p-retry',
      prepare: async () => {
        const { default: pRetry } = await import('p-retry');
        const options = { retries: 2 };
        return () => pRetry(userTask, options);
      },
    },
    {
      name: 'cockatiel',
      prepare: async () => {
        const { ExponentialBackoff, handleAll, retry } = await import('cockatiel');
        const retrying = retry(handleAll, { maxAttempts: 2, backoff: new ExponentialBackoff() });
        return () => retrying.execute(userTask);
      },
    },
  ],
  targets: [
    atMost(1.1, 'P3: retry ≤ 1.1 × the empty wrapper', (round) => round.holdfast! / round['empty async wrapper']!),
  ],
};
