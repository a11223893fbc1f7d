/**
 * A custom strategy: decide how often an operation is tried, and with which call.
 *
 * This strategy asks a second region if the first has failed. The region is the call's `key`.
 */
import { pipeline, type Strategy, timeout } from 'holdfast';

function failover(regions: readonly string[]): Strategy {
  return {
    name: 'failover',
    async handle(call, next) {
      const errors: unknown[] = [];
      for (const region of regions) {
        try {
          // Each try has its own child call, so that its abort reaches nobody else.
          return await next(call.child({ key: region }));
        } catch (error) {
          // The caller has left: a second region would work for nobody.
          if (call.aborted) throw call.reason;
          errors.push(error);
        }
      }
      throw new AggregateError(errors, `no region of ${regions.join(', ')} answered`);
    },
  };
}

const everywhere = pipeline(failover(['north', 'south']), timeout('50ms'));

const answer = await everywhere.execute(({ key }) => {
  console.log('asking', key);
  return key === 'north' ? new Promise<string>(() => {}) : `answer of ${key}`;
});
console.log(answer);

const outcome = await everywhere.attempt(({ key }) => Promise.reject(new Error(`${key} is down`)));
if (!outcome.ok) console.log(String(outcome.error), (outcome.error as AggregateError).errors.map(String));
