import { describe, expect, it } from 'vitest';
import { editDistance, nearestName } from '../../src/structures/edit-distance.js';

describe('editDistance', () => {
  it.each([
    ['', 'abc', 3],
    ['abc', 'abc', 0],
    ['kitten', 'sitting', 3],
    ['attempts', 'attempt', 1],
  ])('counts the letters between %j and %j', (from, to, distance) => {
    expect(editDistance(from, to)).toBe(distance);
    expect(editDistance(to, from)).toBe(distance);
  });
});

describe('nearestName', () => {
  const names = ['attempts', 'backoff', 'budget', 'handles'];

  it('finds the name meant, whatever the case', () => {
    expect(nearestName('maxAttempt', names)).toBe('attempts');
    expect(nearestName('BackOff', names)).toBe('backoff');
    expect(nearestName('handle', names)).toBe('handles');
  });

  it('takes the first of names that are equally near', () => {
    expect(nearestName('cost', ['most', 'coat', 'cast'])).toBe('most');
    expect(nearestName('coast', ['most', 'coat', 'cast'])).toBe('coat');
  });

  it('lets two fifths of the letters differ, and no more', () => {
    expect(nearestName('abcxy', ['abcde'])).toBe('abcde');
    expect(nearestName('abxyz', ['abcde'])).toBeUndefined();
    expect(nearestName('abc', ['abcde'])).toBe('abcde');
    expect(nearestName('abcde', ['abc'])).toBe('abc');
  });

  it('looks at words of up to 64 letters', () => {
    const long = 'a'.repeat(64);
    expect(nearestName(long, [`b${long}`])).toBe(`b${long}`);
    expect(nearestName(`${long}b`, [long])).toBeUndefined();
  });

  it('finds none for a word that is like no name, or longer than any slip of the pen', () => {
    expect(nearestName('colour', names)).toBeUndefined();
    expect(nearestName('attempts'.repeat(1_000_000), names)).toBeUndefined();
  });
});
