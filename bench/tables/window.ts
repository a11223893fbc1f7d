/** What a failing call costs when the window holds many calls (P7). */
import { atLeast, atMost, type Operation, type Table } from '../table.ts';

const entries = 100_000;
const dayMs = 86_400_000;
/** One call in this many succeeds, so that nothing opens; a window that must stay empty is cleared instead. */
const callsPerSuccess = 64;

const error = new Error('down');
const fail = async (): Promise<unknown> => {
  throw error;
};
const succeed = async () => 1;

function failing(call: (task: () => Promise<unknown>) => Promise<unknown>, atSuccess?: () => void): Operation {
  let calls = 0;
  return () => {
    const isTurn = ++calls % callsPerSuccess === 0;
    if (isTurn) atSuccess?.();
    return call(isTurn && atSuccess === undefined ? succeed : fail);
  };
}

async function breakerOf(count: number) {
  const { circuitBreaker, pipeline } = await import('holdfast');
  const breaker = circuitBreaker({ window: dayMs, failureRate: 1 });
  const guarded = pipeline(breaker);
  for (let left = count; left > 0; left--) await guarded.execute(succeed);
  return { breaker, guarded };
}

const empty = 'holdfast, empty window';
const full = 'holdfast, 100,000';
const opossum = 'opossum, 100,000';

export const window: Table = {
  name: 'window',
  title: 'Circuit breaker: a failing call, by the contents of the window',
  note: 'The windows are long, so that their contents stay. Every 64th call succeeds; without it all breakers would open.',
  measure: 'ns per failing call',
  baseline: empty,
  contenders: [
    { name: 'bare', prepare: () => failing((task) => task()) },
    {
      name: empty,
      prepare: async () => {
        const { breaker, guarded } = await breakerOf(0);
        return failing(
          (task) => guarded.execute(task),
          () => breaker.reset(),
        );
      },
    },
    {
      name: full,
      prepare: async () => {
        const { guarded } = await breakerOf(entries);
        return failing((task) => guarded.execute(task));
      },
    },
    {
      name: 'cockatiel, 100,000',
      prepare: async () => {
        const { circuitBreaker, handleAll, SamplingBreaker } = await import('cockatiel');
        const breaker = new SamplingBreaker({ threshold: 0.999, duration: dayMs });
        const guarded = circuitBreaker(handleAll, { halfOpenAfter: 5000, breaker });
        for (let left = entries; left > 0; left--) await guarded.execute(succeed);
        return failing((task) => guarded.execute(task));
      },
    },
    {
      name: opossum,
      prepare: async () => {
        const { default: CircuitBreaker } = await import('opossum');
        let task = succeed as () => Promise<unknown>;
        const options = { errorThresholdPercentage: 100, rollingCountTimeout: dayMs };
        const guarded = new CircuitBreaker(() => task(), options);
        for (let left = entries; left > 0; left--) await guarded.fire();
        return failing((next) => {
          task = next;
          return guarded.fire();
        });
      },
    },
  ],
  targets: [
    atMost(1.2, 'P7: with 100,000 entries ≤ 1.2 × with none', (round) => round[full]! / round[empty]!),
    atLeast(3000, 'P7: ≥ 3,000 × cheaper than opossum there', (round) => round[opossum]! / round[full]!),
  ],
};
