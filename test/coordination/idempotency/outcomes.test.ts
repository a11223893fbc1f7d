import { describe, expect, it } from 'vitest';
import {
  decodeOutcome,
  decodeValue,
  encodeError,
  encodeValue,
  jsonSerializer,
} from '../../../src/coordination/idempotency/outcomes.js';

const again = (error: unknown) => decodeOutcome(jsonSerializer, encodeError(error));

describe('an outcome', () => {
  it('of a value comes back unchanged', () => {
    for (const value of [undefined, null, 0, false, '', 'kelp', [1, { a: null }]]) {
      const bytes = encodeValue(jsonSerializer, value);
      expect(decodeOutcome(jsonSerializer, bytes)).toEqual({ ok: true, value });
      expect(decodeValue(jsonSerializer, bytes)).toEqual(value);
    }
  });

  it('is refused for a value that JSON cannot represent', () => {
    expect(() => encodeValue(jsonSerializer, () => 1)).toThrow(new TypeError('a function has no JSON'));
    expect(() => encodeValue(jsonSerializer, Symbol('a'))).toThrow(new TypeError('a symbol has no JSON'));
  });

  it('is refused if the serializer encodes it as anything but bytes, which would be stored as nothing', () => {
    for (const encoded of ['{}', Promise.resolve(new Uint8Array(1)), new ArrayBuffer(1), [1], undefined]) {
      const serializer = { encode: () => encoded as never, decode: () => 1 };
      expect(() => encodeValue(serializer, 1)).toThrow(/^"encode" of the serializer must return a Uint8Array, .* got /);
    }
  });

  it('of an error comes back with its name, message and code, whether text or number', () => {
    for (const code of ['E_CARD', 42]) {
      const error = Object.assign(new RangeError('declined'), { code });
      expect(again(error)).toEqual({
        ok: false,
        error: Object.assign(new Error('declined'), { name: 'RangeError', code }),
      });
    }
  });

  it('of any other thrown value comes back as an error that describes it', () => {
    const seen = [new Error('plain'), 'text', null, Object.assign(new Error('odd'), { name: 7, code: { a: 1 } })].map(
      (thrown) => {
        const outcome = again(thrown);
        if (outcome.ok) throw new Error('no error');
        const { name, message, ...more } = outcome.error as Error;
        return [name, message, Object.keys(more)];
      },
    );
    expect(seen).toEqual([
      ['Error', 'plain', []],
      ['Error', 'text', []],
      ['Error', 'null', []],
      ['Error', 'odd', []],
    ]);
  });

  it('is not read from bytes that another adapter has stored', () => {
    expect(() => decodeOutcome(jsonSerializer, Uint8Array.of(3, 0x31))).toThrow(/another adapter uses the same scope/);
    expect(() => decodeOutcome(jsonSerializer, new Uint8Array(0))).toThrow(TypeError);
  });
});
