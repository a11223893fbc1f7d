import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeRecord, encodeRecord } from '../../../src/coordination/cache/record.js';
import { serializerField } from '../../../src/coordination/cache/serializer.js';
import { setUp } from './support.ts';

const json = serializerField.parse('json')!;
const clone = serializerField.parse('structured-clone')!;
const bytes = serializerField.parse('bytes')!;
const seed = 7;

class Money {
  readonly cents = 1;
}

const withHole = [1, 2, 3];
delete withHole[1];

const cyclic: Record<string, unknown> = {};
cyclic.self = cyclic;

describe('serializer json', () => {
  it('brings every JSON value back identical', { timeout: 60_000 }, () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 3 }), (value) => {
        let encoded: Uint8Array;
        try {
          encoded = json.encode(value);
        } catch (error) {
          // Minus zero, and the objects without a prototype that fast-check makes of "__proto__".
          expect(String(error)).toMatch(/-0|prototype/);
          return;
        }
        if (!isDeepStrictEqual(json.decode(encoded), value)) throw new Error('not identical');
      }),
      { seed, numRuns: 500 },
    );
  });

  it.each([
    ['a Date', { at: new Date(0) }, '.at is an object of class Date'],
    ['undefined', { a: [{ b: undefined }] }, '.a[0].b is undefined'],
    ['NaN', [Number.NaN], '[0] is NaN'],
    ['-0', -0, 'the value is -0'],
    ['a bigint', 1n, 'the value is a bigint'],
    ['a Map', new Map(), 'class Map'],
    ['a class', { price: new Money() }, '.price is an object of class Money'],
    ['bytes', { body: Uint8Array.of(1) }, 'class Uint8Array'],
    ['a hole', withHole, 'holes'],
    ['a symbol', { [Symbol('a')]: 1 }, 'symbols'],
    ['a function', { toJSON: () => 1 }, '.toJSON is a function'],
    ['no prototype', Object.create(null), 'without a prototype'],
    ['a cycle', cyclic, 'a cycle'],
  ])('refuses %s and says where it is', (_, value, what) => {
    expect(() => json.encode(value)).toThrow(TypeError);
    expect(() => json.encode(value)).toThrow(what);
  });
});

describe('serializer structured-clone', () => {
  const shared = { a: 1 };
  it.each([
    ['Date', new Date(5)],
    ['Map and Set', new Map<unknown, unknown>([['a', new Set([1, { b: 2n }])]])],
    ['bigint, NaN, -0, undefined', [1n, Number.NaN, -0, undefined, null]],
    ['bytes of any kind', [Uint8Array.of(1, 2), new Float64Array([0.5]), new Uint8Array([9, 8, 7]).subarray(1)]],
    ['a Buffer', Buffer.from('abc')],
    ['a regular expression', /a+/gi],
    ['shared parts and cycles', [shared, shared, cyclic]],
    ['holes', withHole],
  ])('brings %s back identical', (_, value) => {
    expect(clone.decode(clone.encode(value))).toStrictEqual(value);
  });

  it.each([
    ['a class', { price: new Money() }, '.price is an object of class Money'],
    ['an error', new Error('x'), 'class Error'],
    ['a function', [() => 1], '[0] is a function'],
    ['a symbol', Symbol('a'), 'a symbol'],
    ['a class in a Map', new Map([['a', new Money()]]), 'class Money'],
    ['a promise', Promise.resolve(), 'class Promise'],
  ])('refuses %s', (_, value, what) => {
    expect(() => clone.encode(value)).toThrow(what);
  });
});

describe('serializer bytes', () => {
  it('takes a plain Uint8Array, and nothing that would come back as one', () => {
    expect(bytes.decode(bytes.encode(Uint8Array.of(1, 2)))).toStrictEqual(Uint8Array.of(1, 2));
    for (const value of [Buffer.from('a'), 'a', [1], new Uint16Array(1)])
      expect(() => bytes.encode(value)).toThrow(TypeError);
  });
});

describe('cache', () => {
  it('refuses a value that would not come back as it is, when it is loaded and when it is set, and changes nothing', async () => {
    const { users, caches, source } = setUp({}, 2);
    await users.set('42', { at: 1 });
    await expect(users.set('42', { at: new Date() })).rejects.toThrow('.at is an object of class Date');
    expect(await caches[1]!.get('42')).toEqual({ at: 1 });
    source.value = new Map();
    await expect(users.get('43')).rejects.toThrow('class Map');
    source.value = 'good';
    expect(await caches[1]!.get('43')).toBe('good');
  });

  it('shows other processes values of every kind as they were', async () => {
    const { caches, source } = setUp({ serializer: 'structured-clone', negativeTtl: '1m' }, 2);
    for (const value of [new Map([[1, new Date(3)]]), undefined, null, 1n, '', Uint8Array.of(4)]) {
      source.value = value;
      const key = `key ${source.loads}`;
      const answers = [await caches[0]!.get(key), await caches[1]!.get(key)];
      expect(answers).toStrictEqual([value, value]);
    }
    expect(source.loads).toBe(6);
  });
});

describe('record', () => {
  const ms = fc.integer({ min: 0, max: 2 ** 32 });
  const version = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
  const filled = fc.record({
    ...{ bytes: fc.uint8Array(), isUndefined: fc.boolean(), freshMs: ms, staleMs: ms, errorMs: ms, ageMs: ms },
    ...{
      loadMs: ms,
      tags: fc.dictionary(fc.string({ unit: 'grapheme' }), version).map((all) => new Map(Object.entries(all))),
    },
  });
  const record = fc.record(
    {
      serializer: fc.integer({ min: 0, max: 3 }),
      filled,
      claim: fc.record({ token: version, forMs: ms }),
      failure: fc.record({ message: fc.string({ maxLength: 300 }), count: version, retryInMs: ms }),
    },
    { requiredKeys: ['serializer'] },
  );

  it('comes back as it was', () => {
    fc.assert(
      fc.property(record, (one) => {
        expect(decodeRecord(encodeRecord(one))).toEqual({
          filled: undefined,
          claim: undefined,
          failure: undefined,
          ...one,
        });
      }),
      { seed, numRuns: 1_000 },
    );
  });

  it('is nothing when it is of another release, cut off, or no record at all, and never throws', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (garbage) => void decodeRecord(garbage)),
      { seed, numRuns: 5_000 },
    );
    const whole = encodeRecord({ serializer: 1, claim: { token: 2 ** 40, forMs: 3_000 } });
    for (let length = 0; length < whole.length; length++)
      expect(decodeRecord(whole.subarray(0, length))).toBeUndefined();
    expect(decodeRecord(whole.with(0, 2))).toBeUndefined();
  });

  it('is compact: what is not the value is less than 40 bytes', () => {
    const filledNow = {
      bytes: new Uint8Array(0),
      isUndefined: false,
      freshMs: 60_000,
      staleMs: 90_000,
      errorMs: 3_660_000,
    };
    const whole = encodeRecord({ serializer: 1, filled: { ...filledNow, ageMs: 0, loadMs: 120, tags: new Map() } });
    expect(whole.length).toBeLessThan(40);
  });
});
