import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DamagedRecordError,
  decodeRecord,
  encodeRecord,
  type IdempotencyRecord,
  sameBytes,
} from '../../../src/coordination/idempotency/record.js';

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const anyRecord: fc.Arbitrary<IdempotencyRecord> = fc.record({
  state: fc.constantFrom('running', 'idle', 'completed', 'in-doubt'),
  owner: bytes(16),
  fence: fc.maxSafeNat(),
  leaseMs: fc.nat(2 ** 31 - 1),
  elapsedMs: fc.double({ min: 0, max: 1e12, noNaN: true }),
  attempt: fc.nat(1_000_000),
  failures: fc.nat(1_000_000),
  fingerprint: bytes(33),
  isSealed: fc.boolean(),
  trace: fc.option(fc.string({ minLength: 1, unit: 'grapheme' }), { nil: undefined }),
  memo: fc.array(fc.record({ name: fc.string({ unit: 'grapheme' }), value: fc.uint8Array() }), { maxLength: 5 }),
  result: fc.option(fc.uint8Array(), { nil: undefined }),
});

describe('record', () => {
  it('comes back as it was written, even from the middle of a buffer', () => {
    fc.assert(
      fc.property(anyRecord, fc.nat(9), (record, offset) => {
        const written = encodeRecord(record);
        const within = new Uint8Array(written.length + 20);
        within.set(written, offset);
        expect(decodeRecord(within.subarray(offset, offset + written.length))).toEqual(record);
      }),
    );
  });

  it('is refused when a byte was changed, lost or added', () => {
    const damage = fc.oneof(
      fc.record({ kind: fc.constant('change'), at: fc.nat(), by: fc.integer({ min: 1, max: 255 }) }),
      fc.record({ kind: fc.constant('cut'), at: fc.nat() }),
      fc.record({ kind: fc.constant('add'), more: fc.uint8Array({ minLength: 1 }) }),
      fc.record({ kind: fc.constant('drop'), at: fc.nat() }),
    ) as fc.Arbitrary<{ kind: string; at: number; by: number; more: Uint8Array }>;
    fc.assert(
      fc.property(anyRecord, damage, (record, { kind, at, by, more }) => {
        const written = encodeRecord(record);
        const place = (at ?? 0) % written.length;
        const rest = [...written];
        if (kind === 'change') rest[place] = rest[place]! ^ by;
        else if (kind === 'cut') rest.length = place;
        else if (kind === 'add') rest.push(...more);
        else rest.splice(place, 1);
        expect(() => decodeRecord(Uint8Array.from(rest))).toThrow(DamagedRecordError);
      }),
      { numRuns: 3_000 },
    );
  });

  it('is not found in other bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (any) => {
        expect(() => decodeRecord(any)).toThrow(DamagedRecordError);
      }),
      { numRuns: 3_000 },
    );
    const later = encodeRecord(fc.sample(anyRecord, { numRuns: 1, seed: 1 })[0]!);
    later[1] = 2;
    expect(() => decodeRecord(later)).toThrow(/its version is 2, this release knows 1/);
  });

  it('costs 93 bytes besides the result', () => {
    const [record] = fc.sample(anyRecord, { numRuns: 1, seed: 1 });
    expect(encodeRecord({ ...record!, trace: undefined, memo: [], result: new Uint8Array(100) })).toHaveLength(193);
  });

  const plain: IdempotencyRecord = {
    state: 'completed',
    owner: new Uint8Array(16).fill(1),
    fence: 7,
    leaseMs: 30_000,
    elapsedMs: 12.5,
    attempt: 2,
    failures: 1,
    fingerprint: new Uint8Array(33).fill(2),
    isSealed: true,
    trace: 'ab',
    memo: [{ name: 'p', value: Uint8Array.of(9) }],
    result: Uint8Array.of(5, 6, 7),
  };
  const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

  it('is written in the format of every release', () => {
    expect(hexOf(encodeRecord(plain))).toBe(
      [
        ...[
          'a9',
          '01',
          '02',
          '03',
          '01'.repeat(16),
          '401c000000000000',
          '00007530',
          '4029000000000000',
          '00000002',
          '00000001',
        ],
        ...['02'.repeat(33), 'b8023f46', '00026162', '00000003050607', '0001', '000170', '0000000109'],
      ].join(''),
    );
  });

  /** FNV-1a over everything but the checksum itself: over words, and over the bytes that are left. */
  function checksumOf(written: Uint8Array): number {
    const view = new DataView(written.buffer, written.byteOffset, written.length);
    let hash = 0x811c9dc5;
    const take = (part: number) => {
      hash = Math.imul(hash ^ part, 0x01000193);
    };
    for (let at = 0; at < 80; at += 4) take(view.getInt32(at));
    take(written[80]!);
    let at = 85;
    for (; at + 4 <= written.length; at += 4) take(view.getInt32(at));
    for (; at < written.length; at++) take(written[at]!);
    return hash >>> 0;
  }

  /** With a checksum that matches, as a later release would write it. */
  function changed(change: (bytes: Uint8Array) => Uint8Array): Uint8Array {
    const written = change(encodeRecord(plain).slice());
    new DataView(written.buffer).setUint32(81, checksumOf(written));
    return written;
  }

  it('has the checksum of every release, however many bytes follow its last word', () => {
    fc.assert(
      fc.property(anyRecord, (record) => {
        const written = encodeRecord(record).slice();
        expect(new DataView(written.buffer).getUint32(81)).toBe(checksumOf(written));
      }),
      { seed: 1 },
    );
  });

  const setting = (at: number, value: number) => (written: Uint8Array) => {
    written[at] = value;
    return written;
  };

  it.each([
    ['another first byte', setting(0, 0x41), 'it does not begin as one'],
    ['a state that nobody knows', setting(2, 4), 'its parts do not fit'],
    ['a flag that nobody knows', setting(3, 7), 'its parts do not fit'],
    ['more behind it', (written: Uint8Array) => Uint8Array.of(...written, 0), 'its parts do not fit'],
    ['a trace beyond its end', setting(85, 0xff), 'it is cut off'],
    ['a result beyond its end', setting(89, 0x7f), 'it is cut off'],
    ['more phases than there are', setting(97, 2), 'it is cut off'],
    ['nothing behind its result', (written: Uint8Array) => written.slice(0, 92), 'it is cut off'],
    ['nothing behind its head', (written: Uint8Array) => written.slice(0, 85), 'it is cut off'],
    ['no count of phases', (written: Uint8Array) => written.slice(0, 96), 'it is cut off'],
    ['half a count of phases', (written: Uint8Array) => written.slice(0, 97), 'it is cut off'],
    ['half a length', (written: Uint8Array) => written.slice(0, 87), 'it is cut off'],
    ['a name that is no text', setting(100, 0xff), 'a name in it is no UTF-8'],
    ['a trace that is no text', setting(87, 0xff), 'a name in it is no UTF-8'],
  ])('is none with %s, also where its checksum fits', (_, change, why) => {
    expect(() => decodeRecord(changed(change))).toThrow(why);
    expect(() => decodeRecord(changed(change))).toThrow(DamagedRecordError);
  });

  it('is read with the checksum that a later release computes', () => {
    expect(decodeRecord(changed((written) => written))).toEqual(plain);
  });
});

describe('sameBytes', () => {
  it('is true only for the same bytes and the same length', () => {
    const one = Uint8Array.of(1, 2);
    expect(sameBytes(one, Uint8Array.of(1, 2))).toBe(true);
    for (const other of [[1, 3], [1], [1, 2, 0], []]) {
      expect([sameBytes(one, Uint8Array.from(other)), sameBytes(Uint8Array.from(other), one)]).toEqual([false, false]);
    }
  });
});
