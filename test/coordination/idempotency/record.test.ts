import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DamagedRecordError,
  decodeRecord,
  encodeRecord,
  type IdempotencyRecord,
} from '../../../src/coordination/idempotency/record.js';

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const anyRecord: fc.Arbitrary<IdempotencyRecord> = fc.record({
  state: fc.constantFrom('running', 'idle', 'completed', 'in-doubt'),
  owner: bytes(16),
  fence: fc.maxSafeNat(),
  leaseMs: fc.nat(2 ** 31 - 1),
  elapsedMs: fc.double({ min: 0, max: 1e12, noNaN: true }),
  attempt: fc.nat(1_000_000),
  fingerprint: bytes(33),
  isSealed: fc.boolean(),
  trace: fc.option(fc.string({ minLength: 1, unit: 'grapheme' }), { nil: undefined }),
  memo: fc.array(fc.record({ name: fc.string({ unit: 'grapheme' }), value: fc.uint8Array() }), { maxLength: 5 }),
  result: fc.option(fc.uint8Array(), { nil: undefined }),
});

describe('record', () => {
  it('comes back as it was written, also from the middle of a buffer', () => {
    fc.assert(
      fc.property(anyRecord, fc.nat(9), (record, offset) => {
        const written = encodeRecord(record);
        const within = new Uint8Array(written.length + 20);
        within.set(written, offset);
        expect(decodeRecord(within.subarray(offset, offset + written.length))).toEqual(record);
      }),
    );
  });

  it('is told when a byte was changed, lost or added', () => {
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

  it('is not found in what is none', () => {
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

  it('costs 89 bytes besides the result', () => {
    const [record] = fc.sample(anyRecord, { numRuns: 1, seed: 1 });
    expect(encodeRecord({ ...record!, trace: undefined, memo: [], result: new Uint8Array(100) })).toHaveLength(189);
  });
});
