import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
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
  it('restores every JSON value identically', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 3 }), (value) => {
        let encoded: Uint8Array;
        try {
          encoded = json.encode(value);
        } catch (error) {
          // These are minus zero, and the objects without a prototype that fast-check makes from "__proto__".
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

describe('serializer json, for nested and hidden parts,', () => {
  const nested = (depth: number) => {
    let value: unknown = 1;
    for (let level = 0; level < depth; level++) value = level % 2 === 0 ? [value] : { a: value };
    return value;
  };

  it('accepts 500 levels of nesting, and refuses more', () => {
    expect(json.decode(json.encode(nested(501)))).toEqual(nested(501));
    expect(() => json.encode(nested(502))).toThrow('nested more than 500 deep, or a cycle');
  });

  it('accepts every kind of plain value', () => {
    for (const value of [null, true, false, '', 'ä😀', 0, 1.5, -7, [], {}, [[]], [{ a: [null] }]]) {
      expect(json.decode(json.encode(value))).toEqual(value);
    }
  });

  it.each([
    ['an array with a property', Object.assign([1], { a: 1 }), 'an array with holes or properties of its own'],
    ['an array of a class', new (class extends Array {})(), 'an array with holes or properties of its own'],
    ['a hidden property', Object.defineProperty({}, 'a', { value: 1 }), 'symbols or hidden properties'],
    ['a class without a name', Object.create({ constructor: undefined }), 'an object of class ?'],
    ['what comes second', [[1, 2, new Money()]], '[2] is an object of class Money'],
    ['what is the second member', { a: 1, b: new Money() }, '.b is an object of class Money'],
    ['infinity', Number.POSITIVE_INFINITY, 'the value is Infinity'],
    ['a symbol', Symbol('a'), 'the value is a symbol'],
  ])('refuses %s', (_, value, what) => {
    expect(() => json.encode(value)).toThrow(what);
    expect(() => json.encode([value])).toThrow(/the value at \[0\]/);
    expect(() => json.encode({ a: value })).toThrow(/the value at \.a/);
  });
});

describe('option serializer', () => {
  it('accepts the names, and an object that encodes and decodes, and nothing else', () => {
    for (const bad of ['yaml', 'toString', null, undefined, 5, {}, { encode() {} }, { decode() {} }]) {
      expect(serializerField.parse(bad)).toBeUndefined();
    }
    const own = {
      secret: 7,
      encode(value: unknown) {
        return Uint8Array.of(this.secret, Number(value));
      },
      decode(one: Uint8Array) {
        return [this.secret, one[1]];
      },
    };
    const { mark, encode, decode } = serializerField.parse(own)!;
    expect([mark, encode(3), decode(Uint8Array.of(0, 4))]).toEqual([0, Uint8Array.of(7, 3), [7, 4]]);
    expect([json, clone, bytes].map((one) => one.mark)).toEqual([1, 2, 3]);
    expect(serializerField.fallback!.value).toBe(json);
  });

  it('refuses what an encode returns instead of bytes: a cache would keep it to itself', () => {
    for (const encoded of ['{"a":1}', Promise.resolve(new Uint8Array(1)), new ArrayBuffer(1), [1], undefined]) {
      const own = serializerField.parse({ encode: () => encoded, decode: () => 1 })!;
      expect(() => own.encode(1)).toThrow(/^"encode" of the serializer must return a Uint8Array, .* got /);
    }
  });
});

describe('serializer structured-clone', () => {
  it('returns plain bytes of its own', () => {
    const encoded = clone.encode({ a: 1 });
    expect(Object.getPrototypeOf(encoded) === Uint8Array.prototype).toBe(true);
    expect(encoded.buffer.byteLength).toBe(encoded.length);
  });

  it('fails with a clear error on a platform without node:v8', () => {
    for (const process of [undefined, {}, { getBuiltinModule: () => undefined }]) {
      vi.stubGlobal('process', process);
      try {
        expect(() => clone.encode(1)).toThrow("'structured-clone' needs node:v8");
      } finally {
        vi.unstubAllGlobals();
      }
    }
  });

  it('needs no Buffer', () => {
    const bytesOfClass = new (class Blob8 extends Uint8Array {})(1);
    vi.stubGlobal('Buffer', undefined);
    try {
      expect(() => clone.encode(bytesOfClass)).toThrow('class Blob8');
      expect(clone.decode(clone.encode([Uint8Array.of(1)]))).toEqual([Uint8Array.of(1)]);
    } finally {
      vi.unstubAllGlobals();
    }
  });

  it('visits shared parts once', () => {
    let shared: unknown = 1;
    for (let level = 0; level < 40; level++) shared = [shared, shared];
    expect(clone.encode(shared).length).toBeLessThan(1_000);
  });

  it('refuses values that are nested too deep', () => {
    let value: unknown = 1;
    for (let level = 0; level < 5_100; level++) value = { a: value };
    expect(() => clone.encode(value)).toThrow(/the value at (\.a){30} is nested too deep/);
  });

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
    ['a class in a Map', new Map([['a', new Money()]]), 'the value at <entry>[1] is an object of class Money'],
    ['a class in a Set', new Set([new Money()]), 'the value at <member> is an object of class Money'],
    [
      'a class in a second entry',
      new Map<unknown, unknown>([
        [1, 2],
        [3, new Money()],
      ]),
      'class Money',
    ],
    ['a Map with a property', Object.assign(new Map(), { a: 1 }), 'class Map with properties of its own'],
    ['a Map of a class', new (class Lookup extends Map {})(), 'class Lookup'],
    ['a RegExp in use', Object.assign(/a/g, { lastIndex: 1 }), 'a RegExp in use'],
    ['bytes of a class', new (class Blob8 extends Uint8Array {})(1), 'class Blob8'],
    ['a hidden property', Object.defineProperty({}, 'a', { value: 1 }), 'symbols or hidden properties'],
    ['an array with a symbol', Object.assign([1], { [Symbol('a')]: 1 }), 'class Array'],
    ['an array with a class', [1, new Money()], 'the value at [1] is an object of class Money'],
    ['a promise', Promise.resolve(), 'class Promise'],
  ])('refuses %s', (_, value, what) => {
    expect(() => clone.encode(value)).toThrow(what);
  });
});

describe('serializer bytes', () => {
  it('accepts a plain Uint8Array, and refuses what would come back as one', () => {
    expect(bytes.decode(bytes.encode(Uint8Array.of(1, 2)))).toStrictEqual(Uint8Array.of(1, 2));
    for (const [value, what] of [
      [Buffer.from('a'), 'an object of class Buffer'],
      ['a', 'a string'],
      [[1], 'an object of class Array'],
      [new Uint16Array(1), 'an object of class Uint16Array'],
      [null, 'null'],
      [undefined, 'undefined'],
    ] as const) {
      expect(() => bytes.encode(value)).toThrow(TypeError);
      expect(() => bytes.encode(value)).toThrow(`the value is ${what}, which serializer 'bytes'`);
    }
  });
});

describe('cache', () => {
  it('refuses a value that would not come back identical, on load and on set, and changes nothing', async () => {
    const { users, caches, source } = setUp({}, 2);
    await users.set('42', { at: 1 });
    await expect(users.set('42', { at: new Date() })).rejects.toThrow('.at is an object of class Date');
    expect(await caches[1]!.get('42')).toEqual({ at: 1 });
    source.value = new Map();
    await expect(users.get('43')).rejects.toThrow('class Map');
    source.value = 'good';
    expect(await caches[1]!.get('43')).toBe('good');
  });

  it('restores values of every kind in other processes', async () => {
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

  it('comes back as it was written', () => {
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

  it('reads as nothing if it is of another release, truncated, or no record at all, and never throws', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (garbage) => void decodeRecord(garbage)),
      { seed, numRuns: 5_000 },
    );
    const whole = encodeRecord({ serializer: 1, claim: { token: 2 ** 40, forMs: 3_000 } });
    for (let length = 0; length < whole.length; length++)
      expect(decodeRecord(whole.subarray(0, length))).toBeUndefined();
    expect(decodeRecord(whole.with(0, 2))).toBeUndefined();
  });

  it('has a fixed layout: format, flags, serializer, then numbers with seven bits to the byte', () => {
    const windows = { freshMs: 127.9, staleMs: 128, errorMs: 300, ageMs: 0.1, loadMs: 1.5 };
    const filledNow = { bytes: Uint8Array.of(7, 8), isUndefined: false, ...windows, tags: new Map([['ä', 200]]) };
    const failure = { message: 'no', count: 2, retryInMs: 0.5 };
    expect([...encodeRecord({ serializer: 3, filled: filledNow, claim: { token: 5, forMs: 9.5 }, failure })]).toEqual([
      ...[1, 13, 3],
      ...[127, 128, 1, 172, 2, 1, 2],
      ...[1, 2, 0xc3, 0xa4, 200, 1],
      ...[5, 10],
      ...[2, 110, 111, 2, 1],
      ...[7, 8],
    ]);
    const nothing = { ...filledNow, bytes: new Uint8Array(0), isUndefined: true };
    expect(encodeRecord({ serializer: 1, filled: nothing })[1]).toBe(3);
  });

  it('keeps the first 300 characters of a message', () => {
    const failure = { message: 'x'.repeat(301), count: 1, retryInMs: 1 };
    expect(decodeRecord(encodeRecord({ serializer: 1, failure }))!.failure!.message).toBe('x'.repeat(300));
  });

  it('reads as nothing if a number in it is too long, or it announces more than there is', () => {
    const full = Array(8).fill(255);
    const largest = encodeRecord({ serializer: 1, claim: { token: Number.MAX_SAFE_INTEGER, forMs: 0 } });
    expect(decodeRecord(largest)!.claim!.token).toBe(Number.MAX_SAFE_INTEGER);
    expect(decodeRecord(Uint8Array.of(1, 4, 1, ...full, 1, 0))).toBeUndefined();
    // This claims 2^48 tags.
    expect(decodeRecord(Uint8Array.of(1, 1, 1, 0, 0, 0, 0, 0, 128, 128, 128, 128, 128, 128, 64))).toBeUndefined();
    // This claims a text of five characters, of which four are there.
    expect(decodeRecord(Uint8Array.of(1, 8, 1, 5, 97, 97, 97, 97))).toBeUndefined();
    expect(decodeRecord(Uint8Array.of(1, 8, 1, 2, 97, 97, 1, 1))!.failure).toEqual({
      message: 'aa',
      count: 1,
      retryInMs: 1,
    });
  });

  it('returns its value as bytes of its own', () => {
    const whole = encodeRecord({
      serializer: 1,
      filled: {
        bytes: Uint8Array.of(7),
        isUndefined: false,
        freshMs: 1,
        staleMs: 1,
        errorMs: 1,
        ageMs: 0,
        loadMs: 0,
        tags: new Map(),
      },
    });
    const buffer = Buffer.from(whole);
    const value = decodeRecord(whole)!.filled!.bytes;
    whole.fill(0);
    expect([...value]).toEqual([7]);
    // The driver of a store of somebody else may give a Buffer, whose slice would share the memory of a pool.
    const kept = decodeRecord(buffer)!.filled!.bytes;
    buffer.fill(0);
    expect(kept).toStrictEqual(Uint8Array.of(7));
  });

  it('is compact: everything but the value takes less than 40 bytes', () => {
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
