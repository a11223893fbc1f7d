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

  it('leaves a node alone that it does not hold', () => {
    expect(new TimerWheel<Entry>(0).remove(new Entry(0))).toBe(false);
  });
});
