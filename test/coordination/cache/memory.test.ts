import { beforeEach, describe, expect, it } from 'vitest';
import { Held } from '../../../src/coordination/cache/held.ts';
import { Memory } from '../../../src/coordination/cache/memory.ts';

describe('memory of a cache', () => {
  let clock: { nowMs: number; turn: number; now(): number };
  let dropped: string[];

  beforeEach(() => {
    clock = { nowMs: 0, turn: 0, now: () => clock.nowMs };
    dropped = [];
  });

  const memoryOf = (max: number, maxBytes?: number) =>
    new Memory<number>({ max, maxBytes, clock, onDropped: ({ text }) => dropped.push(text) });

  /** A value that is fresh for 100 ms. */
  const held = (text: string) => {
    const filled = { freshMs: 100, staleMs: 100, errorMs: 100, loadMs: 0, tags: new Map() };
    const placing = { value: 1, version: 1, filled, filledAtMs: 0 };
    return new Held<number>(text, placing, 0, Number.POSITIVE_INFINITY, 'off', () => 0.5);
  };

  it('reads the clock each time if turns are not known', () => {
    const memory = memoryOf(10);
    const one = held('one');
    memory.set(one, undefined);
    expect(memory.isFine(one)).toBe(true);
    clock.nowMs = 100;
    expect(memory.isFine(one)).toBe(false);
  });

  it('reads no clock again for a value that passed in this turn, and does in the next', () => {
    const memory = memoryOf(10);
    const one = held('one');
    memory.set(one, undefined);
    clock.turn = 7;
    expect(memory.isFine(one)).toBe(true);
    clock.nowMs = 100;
    expect(memory.isFine(one)).toBe(true);
    clock.turn = 8;
    expect(memory.isFine(one)).toBe(false);
  });

  it('does not pass a value that became suspect in the same turn', () => {
    const memory = memoryOf(10);
    const one = held('one');
    memory.set(one, undefined);
    clock.turn = 7;
    expect(memory.isFine(one)).toBe(true);
    one.suspect();
    expect(memory.isFine(one)).toBe(false);
  });

  it('reads the clock for a value that has not been checked in this turn, even in the first one', () => {
    const memory = memoryOf(10);
    const one = held('one');
    memory.set(one, undefined);
    clock.turn = 1;
    clock.nowMs = 100;
    expect(memory.isFine(one)).toBe(false);
    one.suspect();
    expect(memory.isFine(one)).toBe(false);
  });

  it('drops the least recently used value, and reports it', () => {
    const memory = memoryOf(2);
    const one = held('one');
    memory.set(one, undefined);
    memory.set(held('two'), undefined);
    expect(memory.isFine(one)).toBe(true);
    memory.set(held('three'), undefined);
    expect(memory.peek('two')).toBeUndefined();
    expect(memory.peek('one')).toBe(one);
    expect(dropped).toEqual(['two']);
    memory.get('one');
    memory.set(held('four'), undefined);
    expect(dropped).toEqual(['two', 'three']);
    expect(memory.size).toBe(2);
  });

  it('does not count a peek as a use', () => {
    const memory = memoryOf(2);
    memory.set(held('one'), undefined);
    memory.set(held('two'), undefined);
    memory.peek('one');
    memory.set(held('three'), undefined);
    expect(dropped).toEqual(['one']);
  });

  it('replaces an old value with a new one, and reports the old one as dropped', () => {
    const memory = memoryOf(2);
    const newer = held('one');
    memory.set(held('one'), undefined);
    memory.set(newer, undefined);
    expect(memory.peek('one')).toBe(newer);
    expect(dropped).toEqual(['one']);
  });

  it('holds neither a value that is too large nor the one it was to replace', () => {
    const memory = memoryOf(10, 100);
    memory.set(held('one'), 10);
    memory.set(held('one'), 101);
    expect(memory.peek('one')).toBeUndefined();
    expect(memory.size).toBe(0);
    expect(dropped).toEqual(['one', 'one']);
  });

  it('drops one value, or all', () => {
    const memory = memoryOf(10);
    for (const text of ['one', 'two', 'three']) memory.set(held(text), undefined);
    memory.delete('two');
    expect(memory.peek('two')).toBeUndefined();
    memory.clear();
    expect(memory.size).toBe(0);
    expect(dropped.sort()).toEqual(['one', 'three', 'two']);
  });
});
