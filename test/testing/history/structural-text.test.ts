import { describe, expect, it } from 'vitest';
import { readableText, structuralText } from '../../../src/testing/history/structural-text.js';

describe('structuralText', () => {
  it('keeps apart what JSON confuses', () => {
    const values = [
      undefined,
      null,
      'null',
      Number.NaN,
      'NaN',
      0,
      -0,
      1,
      1n,
      '1',
      true,
      'true',
      [],
      {},
      [undefined],
      [null],
    ];
    const bytes = [new Uint8Array([1, 16]), new Uint8Array([17, 0]), [1, 16], new Date(0), new Date(1)];
    const others = [
      { a: undefined },
      { a: 'b,c' },
      { a: ['b', 'c'] },
      { a: { b: 1 } },
      { a: 1, b: 1 },
      ['a,b'],
      ['a', 'b'],
    ];
    const texts = [...values, ...bytes, ...others].map((value) => structuralText(value));
    expect(texts).not.toContain(undefined);
    expect(new Set(texts).size).toBe(texts.length);
  });

  it('is the same for equal values, in whichever order their properties were written', () => {
    expect(structuralText({ b: [1, { c: 2 }], a: 'x' })).toBe(structuralText({ a: 'x', b: [1, { c: 2 }] }));
    expect(structuralText(Object.assign(Object.create(null), { a: 1 }))).toBe(structuralText({ a: 1 }));
  });

  it('has none for what it cannot read faithfully', () => {
    const cycle: unknown[] = [];
    cycle.push(cycle);
    class Point {}
    const unreadable = [
      new Map(),
      new Set(),
      new Point(),
      () => 1,
      Symbol('s'),
      cycle,
      { [Symbol('s')]: 1 },
      [new Map()],
    ];
    expect(unreadable.map((value) => structuralText(value))).toEqual(unreadable.map(() => undefined));
  });

  it('reads a value twice where it occurs twice without a cycle', () => {
    const shared = { a: 1 };
    expect(structuralText([shared, shared])).toBe('[{"a":1},{"a":1}]');
  });
});

describe('readableText', () => {
  it('falls back to what the value says of itself', () => {
    expect(readableText(1n)).toBe('1n');
    expect(readableText(new Map())).toBe('[object Map]');
  });

  it('says so of a value that says nothing of itself', () => {
    expect(readableText(Object.assign(Object.create(null), { of: new Map() }))).toBe('something that cannot be shown');
  });
});
