/** What a call costs that waits for its slot, depending on how many wait with it (P20). */
import { IdealSlots } from '../ideals.ts';
import { waitersPerBatch } from '../measures.ts';
import { atMost, type Contender, type Operation, type Table, userTask } from '../table.ts';

const few = 100;
export const many = waitersPerBatch;

/** That many calls wait at once until all have had their turn. Short queues are repeated to reach the same number of calls. */
function waiting(call: () => Promise<unknown>, waiters: number): Operation {
  return async () => {
    for (let left = many / waiters; left > 0; left--) {
      await Promise.all(Array.from({ length: waiters }, call));
    }
  };
}

/** One contender per queue length. */
export function fewAndMany(name: string, make: () => Promise<() => Promise<unknown>>): Contender[] {
  return [few, many].map((waiters) => ({
    name: `${name}, ${waiters.toLocaleString('en')}`,
    prepare: async () => waiting(await make(), waiters),
  }));
}

export const waiters: Table = {
  name: 'waiters',
  title: 'Bulkhead with one slot: a waiting call, with 100 and with 10,000 in the queue',
  measure: 'ns per waiter',
  baseline: 'ideal, 100',
  contenders: [
    ...fewAndMany('ideal', async () => {
      const slots = new IdealSlots(1);
      return () => slots.run(userTask);
    }),
    ...fewAndMany('holdfast', async () => {
      const { bulkhead, pipeline } = await import('holdfast');
      const guarded = pipeline(bulkhead({ limit: 1, queue: many }));
      return () => guarded.execute(userTask);
    }),
    ...fewAndMany('cockatiel', async () => {
      const { bulkhead } = await import('cockatiel');
      const guarded = bulkhead(1, many);
      return () => guarded.execute(userTask);
    }),
  ],
  targets: [
    atMost(2, 'P20: 10,000 waiters ≤ 2 × 100 waiters', (round) => round['holdfast, 10,000']! / round['holdfast, 100']!),
  ],
};
