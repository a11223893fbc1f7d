/**
 * Record: what a store keeps of one operation, as bytes.
 *
 * Promise: decoding returns exactly what was encoded. Bytes that are damaged, truncated or in another format cause a
 * {@link DamagedRecordError} and are never taken for a record. The first byte is a magic number, the second the format version: a later
 * release can read what this one wrote.
 *
 * Layout, big-endian: magic 1, version 1, state 1, flags 1, owner 16, fence 8 (float64), lease 4, elapsed 8 (float64), attempt 4,
 * failures 4, fingerprint 1 + 32, checksum 4; then trace, result and memo, each preceded by its length.
 */

import { Slab } from '../../core/slab.js';

export type RecordState = 'running' | 'idle' | 'completed' | 'in-doubt';

/** The recorded answer of a phase. */
export interface Memo {
  readonly name: string;
  readonly value: Uint8Array;
}

export interface IdempotencyRecord {
  readonly state: RecordState;
  /** The owner that wrote it. It stays after the end, so that an owner whose reply was lost recognizes its own record. */
  readonly owner: Uint8Array;
  /** The version of the acquiring write; 0 in that write itself, which cannot know its version yet. */
  readonly fence: number;
  readonly leaseMs: number;
  /** How long the attempt had been running when this was written, by its owner's clock. */
  readonly elapsedMs: number;
  /** From 1. Each takeover, and each new begin after a release, adds 1. */
  readonly attempt: number;
  /** Attempts that were lost, or that ended without a result and without a release. At `attempts` of them the key is in doubt. */
  readonly failures: number;
  /** Rule version and digest of the input: {@link fingerprintBytes} bytes. */
  readonly fingerprint: Uint8Array;
  /** The effect has happened: the operation is never run again. */
  readonly isSealed: boolean;
  /** The W3C `traceparent` of the attempt: a replay links to it. */
  readonly trace: string | undefined;
  /** In the order in which the phases ran. */
  readonly memo: readonly Memo[];
  /** Only in a completed record; undefined if the result could not be stored. */
  readonly result: Uint8Array | undefined;
}

/** The bytes under one of our keys are not a record, or not a complete one. */
export class DamagedRecordError extends Error {
  override get name(): string {
    return 'DamagedRecordError';
  }
}

export const fingerprintBytes = 33;
/** Stands in when there is nothing to compare. */
export const noFingerprint = /* @__PURE__ */ new Uint8Array(fingerprintBytes);

const magic = 0xa9;
const formatVersion = 1;
const states: readonly RecordState[] = ['running', 'idle', 'completed', 'in-doubt'];
const sealedFlag = 1;
const resultFlag = 2;
const knownFlags = 3;
const ownerBytes = 16;
const checksumAt = 81;
const headBytes = 85;

const slab = /* @__PURE__ */ new Slab();
const encoder = /* @__PURE__ */ new TextEncoder();
const decoder = /* @__PURE__ */ new TextDecoder('utf-8', { fatal: true });

export function encodeRecord(record: IdempotencyRecord): Uint8Array {
  const { trace, memo, result } = record;
  // Usually there is no trace, and encoding text is the most expensive part.
  const traceBytes = trace === undefined ? noBytes : encoder.encode(trace);
  const names = memo.map(({ name }) => encoder.encode(name));
  let length = headBytes + 2 + traceBytes.length + 4 + (result?.length ?? 0) + 2;
  for (let index = 0; index < names.length; index++) length += 6 + names[index]!.length + memo[index]!.value.length;
  const bytes = slab.take(length);
  const view = viewOf(bytes);
  bytes[0] = magic;
  bytes[1] = formatVersion;
  bytes[2] = states.indexOf(record.state);
  bytes[3] = (record.isSealed ? sealedFlag : 0) | (result === undefined ? 0 : resultFlag);
  bytes.set(record.owner, 4);
  view.setFloat64(20, record.fence);
  view.setUint32(28, record.leaseMs);
  view.setFloat64(32, record.elapsedMs);
  view.setUint32(40, record.attempt);
  view.setUint32(44, record.failures);
  bytes.set(record.fingerprint, 48);
  let at = putBytes(bytes, view, headBytes, 2, traceBytes);
  at = putBytes(bytes, view, at, 4, result ?? noBytes);
  view.setUint16(at, memo.length);
  at += 2;
  for (let index = 0; index < names.length; index++) {
    at = putBytes(bytes, view, at, 2, names[index]!);
    at = putBytes(bytes, view, at, 4, memo[index]!.value);
  }
  view.setUint32(checksumAt, checksumOf(bytes, view));
  return bytes;
}

/** @throws {@link DamagedRecordError} when these bytes are no record. */
export function decodeRecord(bytes: Uint8Array): IdempotencyRecord {
  if (bytes.length < headBytes || bytes[0] !== magic) throw damaged(bytes, 'it does not begin as one');
  if (bytes[1] !== formatVersion)
    throw damaged(bytes, `its version is ${bytes[1]}, this release knows ${formatVersion}`);
  const view = viewOf(bytes);
  if (view.getUint32(checksumAt) !== checksumOf(bytes, view)) throw damaged(bytes, 'its checksum is wrong');
  const reader = new Reader(bytes, view, headBytes);
  const state = states[bytes[2]!];
  const flags = bytes[3]!;
  const trace = reader.take(2);
  const result = reader.take(4);
  const memo: Memo[] = [];
  for (let count = reader.count(); count > 0; count--) memo.push({ name: reader.text(), value: reader.take(4) });
  if (state === undefined || (flags & ~knownFlags) !== 0 || !reader.isAtEnd)
    throw damaged(bytes, 'its parts do not fit');
  return {
    state,
    owner: bytes.subarray(4, 4 + ownerBytes),
    fence: view.getFloat64(20),
    leaseMs: view.getUint32(28),
    elapsedMs: view.getFloat64(32),
    attempt: view.getUint32(40),
    failures: view.getUint32(44),
    fingerprint: bytes.subarray(48, 48 + fingerprintBytes),
    isSealed: (flags & sealedFlag) !== 0,
    trace: trace.length === 0 ? undefined : reader.decode(trace),
    memo,
    result: (flags & resultFlag) === 0 ? undefined : result,
  };
}

const noBytes = /* @__PURE__ */ new Uint8Array(0);

function viewOf({ buffer, byteOffset, byteLength }: Uint8Array): DataView {
  return new DataView(buffer, byteOffset, byteLength);
}

function putBytes(into: Uint8Array, view: DataView, at: number, lengthBytes: 2 | 4, part: Uint8Array): number {
  if (lengthBytes === 2) view.setUint16(at, part.length);
  else view.setUint32(at, part.length);
  into.set(part, at + lengthBytes);
  return at + lengthBytes + part.length;
}

/** Reads one part after another, and never past the end. */
class Reader {
  private at: number;
  private readonly bytes: Uint8Array;
  private readonly view: DataView;

  constructor(bytes: Uint8Array, view: DataView, at: number) {
    this.bytes = bytes;
    this.view = view;
    this.at = at;
  }

  get isAtEnd(): boolean {
    return this.at === this.bytes.length;
  }

  count(): number {
    this.need(2);
    this.at += 2;
    return this.view.getUint16(this.at - 2);
  }

  take(lengthBytes: 2 | 4): Uint8Array {
    this.need(lengthBytes);
    const length = lengthBytes === 2 ? this.view.getUint16(this.at) : this.view.getUint32(this.at);
    // A length that points past the end is noticed when the next part is read, or by the check that nothing is left.
    this.at += lengthBytes + length;
    return length === 0 ? noBytes : this.bytes.subarray(this.at - length, this.at);
  }

  text(): string {
    return this.decode(this.take(2));
  }

  decode(part: Uint8Array): string {
    try {
      return decoder.decode(part);
    } catch {
      throw damaged(this.bytes, 'a name in it is no UTF-8');
    }
  }

  private need(length: number): void {
    if (this.at + length > this.bytes.length) throw damaged(this.bytes, 'it is cut off');
  }
}

/** FNV-1a over all words except the checksum itself; the last bytes one by one. It detects damage; it does not prevent forgery. */
function checksumOf(bytes: Uint8Array, view: DataView): number {
  let hash = 0x811c9dc5;
  for (let at = 0; at < checksumAt - 1; at += 4) hash = Math.imul(hash ^ view.getInt32(at), 0x01000193);
  hash = Math.imul(hash ^ bytes[checksumAt - 1]!, 0x01000193);
  let at = headBytes;
  for (; at + 4 <= bytes.length; at += 4) hash = Math.imul(hash ^ view.getInt32(at), 0x01000193);
  for (; at < bytes.length; at++) hash = Math.imul(hash ^ bytes[at]!, 0x01000193);
  return hash >>> 0;
}

function damaged(bytes: Uint8Array, why: string): DamagedRecordError {
  return new DamagedRecordError(`${bytes.length} bytes that are no idempotency record of this release: ${why}`);
}

export function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  if (one.length !== other.length) return false;
  for (let index = 0; index < one.length; index++) if (one[index] !== other[index]) return false;
  return true;
}
