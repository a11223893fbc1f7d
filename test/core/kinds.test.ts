import { runInNewContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { isBytes, isThenable, isWellFormed } from '../../src/core/kinds.js';

describe('kinds', () => {
  it.each([
    ['bytes', new Uint8Array(1), true],
    ['a buffer', Buffer.from('a'), true],
    ['bytes of another realm', runInNewContext('new Uint8Array(1)'), true],
    ['other numbers', new Uint16Array(1), false],
    ['clamped bytes', new Uint8ClampedArray(1), false],
    ['a view', new DataView(new ArrayBuffer(1)), false],
    ['memory without a view', new ArrayBuffer(1), false],
    ['a list', [1], false],
    ['what only calls itself bytes', { [Symbol.toStringTag]: 'Uint8Array' }, false],
    ['null', null, false],
  ])('tell whether a value is bytes: %s', (_, value, expected) => {
    expect(isBytes(value)).toBe(expected);
  });

  it.each([
    ['a promise', Promise.resolve(), true],
    ['a promise of another realm', runInNewContext('Promise.resolve()'), true],
    ['what has its method', { then() {} }, true],
    ['what has a field of that name', { then: true }, false],
    ['an object', {}, false],
    ['null', null, false],
    ['undefined', undefined, false],
  ])('tell whether a value can be awaited: %s', (_, value, expected) => {
    expect(isThenable(value)).toBe(expected);
  });

  it.each([
    ['', true],
    ['a\u{1f600}', true],
    ['\ud83d', false],
    ['\ude00\ud83d', false],
  ])('tell whether UTF-8 can hold a text: %j', (text, expected) => {
    expect(isWellFormed(text)).toBe(expected);
  });
});
