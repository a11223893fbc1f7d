/** What an empty pipeline adds to a call. */
import { idealEmpty } from '../ideals.ts';
import { atMost, bare, emptyWrapper, type Table, userTask } from '../table.ts';

export const empty: Table = {
  name: 'empty',
  title: 'Empty pipeline',
  measure: 'ns per call',
  once: ['B per call'],
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders: [
    bare,
    emptyWrapper,
    { name: 'ideal', prepare: () => () => idealEmpty(userTask) },
    {
      name: 'holdfast',
      prepare: async () => {
        const { pipeline } = await import('holdfast');
        const nothing = pipeline();
        return () => nothing.execute(userTask);
      },
    },
  ],
  targets: [
    atMost(1.1, 'empty pipeline ≤ 1.1 × the empty wrapper', (round) => round.holdfast! / round['empty async wrapper']!),
  ],
};
