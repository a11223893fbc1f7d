import { seededRandom } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { callbackTimer, type Timer } from '../../src/core/clock.ts';
import { EventHeap } from '../../src/testing/event-heap.ts';

interface Entry {
  readonly timer: Timer;
  readonly atMs: number;
  readonly rank: number;
  readonly owner: string;
}

const byTime = (left: Entry, right: Entry) => left.atMs - right.atMs || left.rank - right.rank;

describe('EventHeap', () => {
  it('agrees with a sorted list, whatever is added, moved, taken and removed', () => {
    for (let seed = 1; seed <= 40; seed++) {
      const random = seededRandom(seed);
      const heap = new EventHeap<string>();
      let list: Entry[] = [];
      for (let step = 0; step < 400; step++) {
        const action = random.integer(1, 10);
        if (action <= 5 || list.length === 0) {
          const isMove = list.length > 0 && random.chance(0.2);
          const timer = isMove ? random.pick(list).timer : callbackTimer(() => {});
          const entry = {
            timer,
            atMs: random.integer(0, 60),
            rank: random.uint32(),
            owner: random.pick(['a', 'b', 'c']),
          };
          list = [...list.filter((one) => one.timer !== timer), entry].sort(byTime);
          heap.add(timer, entry.atMs, entry.rank, entry.owner);
        } else if (action <= 7) {
          const { timer } = random.pick(list);
          list = list.filter((one) => one.timer !== timer);
          expect(heap.remove(timer)).toBe(true);
          expect(heap.remove(timer)).toBe(false);
        } else if (action <= 9) {
          const first = list.shift()!;
          expect(heap.nextAtMs).toBe(first.atMs);
          expect(heap.nextOwner).toBe(first.owner);
          expect(heap.takeFirst()).toBe(first.timer);
        } else if (random.chance(0.2)) {
          const mine = list.filter(({ owner }) => owner === 'b');
          expect(heap.countOf('b')).toBe(mine.length);
          expect(heap.takeAllOf('b').map(({ timer }) => timer)).toEqual(mine.map(({ timer }) => timer));
          list = list.filter(({ owner }) => owner !== 'b');
        }
        expect(heap.size).toBe(list.length);
      }
      for (const { timer } of list) expect(heap.takeFirst()).toBe(timer);
      expect(heap.nextAtMs).toBe(Number.POSITIVE_INFINITY);
    }
  });
});
