/** What an in-process lock costs: uncontended, and with many waiters (P20). */
import { atMost, bare, emptyWrapper, type Table, userTask } from '../table.ts';
import { fewAndMany, many } from './waiters.ts';

const makers = {
  async holdfast() {
    const { mutex } = await import('holdfast');
    const locks = mutex({ queue: many });
    return () => locks.run('key', userTask);
  },
  async 'async-mutex'() {
    const { Mutex } = await import('async-mutex');
    const lock = new Mutex();
    return () => lock.runExclusive(userTask);
  },
} as const;

export const mutex: Table = {
  name: 'mutex',
  title: 'Lock within one process, without contention',
  measure: 'ns per call',
  once: ['B per call'],
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders: [bare, emptyWrapper, ...Object.entries(makers).map(([name, prepare]) => ({ name, prepare }))],
  targets: [atMost(1, 'not dearer than async-mutex', (round) => round.holdfast! / round['async-mutex']!)],
};

export const mutexWaiters: Table = {
  name: 'mutex-waiters',
  title: 'Lock within one process: a waiting call, with 100 and with 10,000 in the queue',
  measure: 'ns per waiter',
  baseline: 'async-mutex, 100',
  contenders: Object.entries(makers).flatMap(([name, make]) => fewAndMany(name, make)),
  targets: [
    atMost(2, 'P20: 10,000 waiters ≤ 2 × 100 waiters', (round) => round['holdfast, 10,000']! / round['holdfast, 100']!),
    atMost(1, 'not dearer than async-mutex', (round) => round['holdfast, 100']! / round['async-mutex, 100']!),
  ],
};
