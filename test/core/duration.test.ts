import { describe, expect, it } from 'vitest';
import { parseDuration, toMs } from '../../src/core/duration.js';

describe('parseDuration', () => {
  it.each([
    [250, 250],
    [0, 0],
    [1.5, 1.5],
    ['250ms', 250],
    ['5s', 5_000],
    ['1.5s', 1_500],
    ['2m', 120_000],
    ['24h', 86_400_000],
    ['7d', 604_800_000],
  ])('reads %j as %d ms', (value, ms) => {
    expect(parseDuration(value)).toBe(ms);
  });

  it.each([
    [Number.NaN],
    [Number.POSITIVE_INFINITY],
    [-1],
    ['5 sec'],
    ['5sec'],
    ['2minutes'],
    ['5'],
    ['-5s'],
    ['1e3ms'],
    ['5S'],
    [''],
    ['s'],
    ['٥s'],
    [null],
    [undefined],
    [{}],
    [5n],
    [`${'9'.repeat(1_000_000)}s`],
  ])('rejects %s', (value) => {
    expect(parseDuration(value)).toBeUndefined();
  });
});

describe('toMs', () => {
  it('accepts what parseDuration accepts', () => {
    expect([toMs('2m'), toMs(0)]).toEqual([120_000, 0]);
  });

  it('throws a RangeError that shows the value', () => {
    expect(() => toMs('5 sec' as '5s')).toThrow(
      new RangeError("a duration is a number of milliseconds or a literal such as '5s', got 5 sec"),
    );
  });
});
