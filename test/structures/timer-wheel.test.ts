import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TimerWheel, type WheelNode } from '../../src/structures/timer-wheel.js';

class Entry implements WheelNode {
  slotIndex = -1;
  tick = 0;
  previousInSlot: WheelNode | undefined = undefined;
  nextInSlot: WheelNode | undefined = undefined;
  readonly label: number;

  constructor(label: number) {
    this.label = label;
  }
}

type Step =
  | { readonly kind: 'add'; readonly ahead: number }
  | { readonly kind: 'remove'; readonly index: number }
  | { readonly kind: 'advance'; readonly by: number };

const spans = fc.oneof(
  fc.integer({ min: 0, max: 130 }),
  fc.integer({ min: 0, max: 10_000 }),
  fc.integer({ min: 0, max: 2 ** 31 - 1 }),
);
const steps = fc.array(
  fc.oneof<fc.Arbitrary<Step>[]>(
    fc.record({ kind: fc.constant('add' as const), ahead: spans }),
    fc.record({ kind: fc.constant('remove' as const), index: fc.nat(50) }),
    fc.record({ kind: fc.constant('advance' as const), by: spans }),
  ),
  { maxLength: 60 },
);

describe('TimerWheel', () => {
  it('hands out the same nodes in the same advance as a sorted list, from any tick, across the wrap of 32 bits', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 32 }), steps, (start, script) => {
        const wheel = new TimerWheel<Entry>(start);
        let now = start;
        let waiting: { entry: Entry; at: number }[] = [];
        for (const [label, step] of script.entries()) {
          if (step.kind === 'add') {
            const entry = new Entry(label);
            wheel.add(entry, (now + step.ahead) | 0);
            waiting.push({ entry, at: now + Math.max(1, step.ahead) });
          } else if (step.kind === 'remove') {
            const [taken] = waiting.splice(step.index, 1);
            if (taken !== undefined) expect(wheel.remove(taken.entry)).toBe(true);
          } else {
            now += step.by;
            const handedOut: { label: number; tick: number }[] = [];
            wheel.advance(now | 0, (entry) => handedOut.push({ label: entry.label, tick: entry.tick }));
            const due = waiting.filter(({ at }) => at <= now);
            waiting = waiting.filter(({ at }) => at > now);
            expect(handedOut.map(({ label: out }) => out).sort()).toEqual(due.map(({ entry }) => entry.label).sort());
            const order = due.sort((a, b) => a.at - b.at).map(({ at }) => at | 0);
            expect(handedOut.map(({ tick }) => tick)).toEqual(order);
          }
          expect(wheel.size).toBe(waiting.length);
          const next = wheel.nextTick();
          if (waiting.length === 0) expect(next).toBeUndefined();
          else
            expect(((next ?? 0) - (now | 0)) | 0).toBeLessThanOrEqual(Math.min(...waiting.map(({ at }) => at)) - now);
        }
      }),
      { seed: 11, numRuns: 500 },
    );
  });

  it('hands out the nodes of one tick in the order of their adding', () => {
    const wheel = new TimerWheel<Entry>(0);
    for (let label = 0; label < 5; label++) wheel.add(new Entry(label), 70);
    const labels: number[] = [];
    wheel.advance(70, (entry) => labels.push(entry.label));
    expect(labels).toEqual([0, 1, 2, 3, 4]);
  });

  it('walks the nodes of one tick once, however many there are', () => {
    let steps = 0;
    class Counted extends Entry {
      private later: WheelNode | undefined = undefined;

      constructor(label: number) {
        super(label);
        const counted: PropertyDescriptor & ThisType<Counted> = {
          get() {
            steps++;
            return this.later;
          },
          set(node: WheelNode | undefined) {
            this.later = node;
          },
        };
        Object.defineProperty(this, 'nextInSlot', counted);
      }
    }
    const wheel = new TimerWheel<Counted>(0);
    for (let label = 0; label < 1_000; label++) wheel.add(new Counted(label), 5);
    let handedOut = 0;
    wheel.advance(5, () => handedOut++);
    expect(handedOut).toBe(1_000);
    expect(steps).toBeLessThan(10_000);
  });

  it('lets a callback take out the node that is next', () => {
    const wheel = new TimerWheel<Entry>(0);
    const entries = [0, 1, 2].map((label) => new Entry(label));
    for (const entry of entries) wheel.add(entry, 5);
    const labels: number[] = [];
    wheel.advance(5, (entry) => {
      labels.push(entry.label);
      if (entry.label === 0) wheel.remove(entries[1]!);
    });
    expect(labels).toEqual([0, 2]);
    expect(wheel.size).toBe(0);
  });

  it('lets a callback add a node that is due within the same advance', () => {
    const wheel = new TimerWheel<Entry>(0);
    const ticks: number[] = [];
    wheel.add(new Entry(0), 1);
    wheel.advance(10, (entry) => {
      ticks.push(entry.tick);
      if (entry.label < 3) wheel.add(new Entry(entry.label + 1), entry.tick + 2);
    });
    expect(ticks).toEqual([1, 3, 5, 7]);
  });

  it('moves a node that is added again', () => {
    const wheel = new TimerWheel<Entry>(0);
    const entry = new Entry(0);
    wheel.add(entry, 5);
    wheel.add(entry, 500);
    const seen: number[] = [];
    wheel.advance(499, ({ tick }) => seen.push(tick));
    expect(seen).toEqual([]);
    wheel.advance(500, ({ tick }) => seen.push(tick));
    expect(seen).toEqual([500]);
  });

  it('counts no node whose adding failed, as it can at the end of the stack', () => {
    const wheel = new TimerWheel<Entry>(0);
    const entry = new Entry(0);
    const overflow = () => {
      throw new RangeError('Maximum call stack size exceeded');
    };
    Object.defineProperty(entry, 'slotIndex', { get: () => -1, set: overflow });
    expect(() => wheel.add(entry, 7)).toThrow(RangeError);
    expect([wheel.size, wheel.nextTick()]).toEqual([0, undefined]);
  });

  it('leaves a node alone that it does not hold', () => {
    expect(new TimerWheel<Entry>(0).remove(new Entry(0))).toBe(false);
  });

  it.each([11, 64, 70, 4_096, 300_000])('takes out a node once, wherever it lies: at tick %i', (tick) => {
    const wheel = new TimerWheel<Entry>(10);
    const entry = new Entry(0);
    wheel.add(entry, tick);
    expect([wheel.remove(entry), wheel.size, wheel.nextTick()]).toEqual([true, 0, undefined]);
    expect([wheel.remove(entry), wheel.size]).toEqual([false, 0]);
    wheel.add(entry, tick);
    wheel.add(entry, tick + 1);
    const seen: number[] = [];
    wheel.advance(tick + 1, (one) => seen.push(one.tick));
    expect([seen, wheel.size, wheel.remove(entry)]).toEqual([[tick + 1], 0, false]);
  });

  it('takes the nodes of one tick out in any order, and hands out the others', () => {
    const labels = [0, 1, 2, 3];
    fc.assert(
      fc.property(fc.shuffledSubarray(labels), (removed) => {
        const wheel = new TimerWheel<Entry>(0);
        const entries = labels.map((label) => new Entry(label));
        for (const entry of entries) wheel.add(entry, 9);
        for (const label of removed) expect(wheel.remove(entries[label]!)).toBe(true);
        const seen: number[] = [];
        wheel.advance(9, ({ label }) => seen.push(label));
        expect(seen).toEqual(labels.filter((label) => !removed.includes(label)));
      }),
      { seed: 12, numRuns: 200 },
    );
  });

  it('is moved on while it is empty only, and never back', () => {
    const wheel = new TimerWheel<Entry>(0);
    wheel.rebase(1_000);
    wheel.add(new Entry(0), 900);
    expect(wheel.nextTick()).toBe(1_001);
    wheel.rebase(5_000);
    expect(wheel.nextTick()).toBe(1_001);
    const seen: number[] = [];
    wheel.advance(2_000, ({ tick }) => seen.push(tick));
    wheel.advance(1_500, () => {});
    wheel.add(new Entry(1), 1_600);
    expect([seen, wheel.nextTick()]).toEqual([[1_001], 2_001]);
  });

  it('knows the very tick of what is less than 64 ticks ahead', () => {
    for (let ahead = 1; ahead < 64; ahead++) {
      const wheel = new TimerWheel<Entry>(1_000);
      wheel.add(new Entry(0), 1_000 + ahead);
      expect(wheel.nextTick()).toBe(1_000 + ahead);
    }
  });

  it('wakes no later than it must for what lies a quarter of the range ahead, across the wrap', () => {
    for (const start of [0, 2 ** 30, 2 ** 31, 3 * 2 ** 30, 2 ** 32 - 5]) {
      const wheel = new TimerWheel<Entry>(start);
      const tick = (start + 2 ** 30 + 7) | 0;
      wheel.add(new Entry(0), tick);
      expect(((tick - wheel.nextTick()!) | 0) >= 0).toBe(true);
      const seen: number[] = [];
      wheel.advance((tick - 1) | 0, (entry) => seen.push(entry.tick));
      expect(seen).toEqual([]);
      wheel.advance(tick, (entry) => seen.push(entry.tick));
      expect(seen).toEqual([tick]);
    }
  });

  it('names the wrap as the next tick where what lies far beyond it is to be looked at, though a nearer timer is later', () => {
    const start = 2 ** 32 - 100;
    const wheel = new TimerWheel<Entry>(start);
    wheel.add(new Entry(0), (start + 2 ** 30 + 50) | 0);
    wheel.add(new Entry(1), (start + 2 ** 29) | 0);
    expect(wheel.nextTick()).toBe(0);
  });

  it('does not miss the wrap for a nearer timer beyond it', () => {
    const start = 2 ** 32 - 10;
    const wheel = new TimerWheel<Entry>(start);
    const [near, far] = [(start + 5_000) | 0, (start + 2 ** 30 + 7) | 0];
    wheel.add(new Entry(0), far);
    wheel.add(new Entry(1), near);
    const seen: number[] = [];
    wheel.advance(far, ({ tick }) => seen.push(tick));
    expect(seen).toEqual([near, far]);
  });
});
