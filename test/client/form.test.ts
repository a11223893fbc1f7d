import { Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { isForm, ofPlatform } from '../../src/client/form.js';

/** A form of a class that is not the platform's. */
const foreign = (...parts: readonly (readonly [string, unknown])[]): unknown => ({
  [Symbol.toStringTag]: 'FormData',
  [Symbol.iterator]: () => parts[Symbol.iterator](),
});

describe('isForm', () => {
  it('recognises a form of any class, whose parts are texts and files', () => {
    expect([new FormData(), foreign(), foreign(['a', '1'], ['b', new Blob(['2'])])].map(isForm)).toEqual([
      true,
      true,
      true,
    ]);
  });

  it('takes nothing else for one: no form with a file of another class, no stream that calls itself so', () => {
    const file = { [Symbol.toStringTag]: 'File' };
    const stream = Object.assign(Readable.from([]), { [Symbol.toStringTag]: 'FormData' });
    const others = [
      foreign(['a', '1'], ['b', file]),
      stream,
      new URLSearchParams(),
      new Map(),
      'text',
      null,
      undefined,
    ];
    for (const other of others) expect(isForm(other)).toBe(false);
  });
});

describe('ofPlatform', () => {
  it('keeps the parts of a form, in their order', async () => {
    const form = ofPlatform(foreign(['a', '1'], ['b', new File(['2'], 'b.txt')], ['a', '3']) as FormData);
    expect(form).toBeInstanceOf(FormData);
    expect([...form.keys(), (form.get('b') as File).name, ...form.getAll('a')]).toEqual([
      'a',
      'b',
      'a',
      'b.txt',
      '1',
      '3',
    ]);
  });
});
