import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LinkedQueue, type QueueNode } from '../../src/structures/linked-queue.js';

class Entry implements QueueNode<Entry> {
  previousInQueue: Entry | undefined = undefined;
  nextInQueue: Entry | undefined = undefined;
}

function entriesOf(queue: LinkedQueue<Entry>): Entry[] {
  const entries: Entry[] = [];
  for (let entry = queue.first; entry !== undefined; entry = entry.nextInQueue) entries.push(entry);
  return entries;
}

function entriesFromBehind(queue: LinkedQueue<Entry>): Entry[] {
  const entries: Entry[] = [];
  for (let entry = queue.last; entry !== undefined; entry = entry.previousInQueue) entries.push(entry);
  return entries;
}

describe('LinkedQueue', () => {
  it('keeps the order of an array through additions and removals at any place', () => {
    fc.assert(
      fc.property(fc.array(fc.option(fc.nat())), (steps) => {
        const queue = new LinkedQueue<Entry>();
        let model: Entry[] = [];
        for (const pick of steps) {
          const leaving = pick === null ? undefined : model[pick % Math.max(1, model.length)];
          if (leaving === undefined) {
            const entry = new Entry();
            queue.add(entry);
            model.push(entry);
          } else {
            queue.remove(leaving);
            model = model.filter((entry) => entry !== leaving);
            expect([leaving.previousInQueue, leaving.nextInQueue]).toEqual([undefined, undefined]);
          }
          expect(queue.size).toBe(model.length);
          // The values are compared by identity, because a deep comparison would follow the links.
          expect(entriesOf(queue).every((entry, index) => entry === model[index])).toBe(true);
          expect(entriesFromBehind(queue).every((entry, index) => entry === model.at(-1 - index))).toBe(true);
          expect(entriesOf(queue).length + entriesFromBehind(queue).length).toBe(2 * model.length);
        }
      }),
      { seed: 20, numRuns: 500 },
    );
  });

  it('reads and writes no more than its neighbours when one leaves, however many wait', () => {
    // Target P20 depends on this: the work per waiter is counted instead of timed.
    let touched = 0;
    class Counted implements QueueNode<Counted> {
      #previous: Counted | undefined = undefined;
      #next: Counted | undefined = undefined;
      get previousInQueue() {
        touched++;
        return this.#previous;
      }
      set previousInQueue(node) {
        touched++;
        this.#previous = node;
      }
      get nextInQueue() {
        touched++;
        return this.#next;
      }
      set nextInQueue(node) {
        touched++;
        this.#next = node;
      }
    }
    const touchesPerWaiter = (count: number) => {
      const queue = new LinkedQueue<Counted>();
      const entries = Array.from({ length: count }, () => new Counted());
      touched = 0;
      for (const entry of entries) queue.add(entry);
      for (let index = 0; index < count; index += 2) queue.remove(entries[index] as Counted);
      while (queue.first !== undefined) queue.remove(queue.first);
      return touched / count;
    };
    expect(touchesPerWaiter(10_000)).toBeLessThanOrEqual(touchesPerWaiter(100) * 1.1);
  });
});
