/**
 * Record: the store's single entry of a key: the value, its windows, a lease on loading it, and how the last load failed.
 *
 * Promise: it holds only durations, counted from the fill of the value or the write of this version, so no clock of a
 * client is involved. A record in the format of another release reads as nothing, never as something else.
 */

/** A stored value, with everything that decides how long it may be used. */
export interface Filled {
  readonly bytes: Uint8Array;
  /** The value is undefined, which JSON cannot represent. */
  readonly isUndefined: boolean;
  /** How long it is fresh, in milliseconds from the fill. */
  readonly freshMs: number;
  /** How long it is usable during a refresh, likewise. */
  readonly staleMs: number;
  /** How long it is usable instead of an error, likewise. */
  readonly errorMs: number;
  /** Its age when this version of the record was written. */
  readonly ageMs: number;
  /** The smoothed time a load takes. */
  readonly loadMs: number;
  /** For each tag its generation when the value was loaded: the version of the tag's own entry, 0 for none. */
  readonly tags: ReadonlyMap<string, number>;
}

/** The lease of the process that loads the key. */
export interface Claim {
  /** By this the owner recognizes its own write. */
  readonly token: number;
  /** How long the lease lasts, from the write of this version. */
  readonly forMs: number;
}

/** How the last load failed. */
export interface Failure {
  readonly message: string;
  /** Consecutive failures. */
  readonly count: number;
  /** No process tries again for this long, from the write of this version. */
  readonly retryInMs: number;
}

export interface CacheRecord {
  readonly serializer: number;
  readonly filled?: Filled | undefined;
  readonly claim?: Claim | undefined;
  readonly failure?: Failure | undefined;
}

const format = 1;
const flags = { filled: 1, undefined: 2, claim: 4, failure: 8 };
const longestMessage = 300;

const utf8 = /* @__PURE__ */ new TextEncoder();
const text = /* @__PURE__ */ new TextDecoder();

export function encodeRecord({ serializer, filled, claim, failure }: CacheRecord): Uint8Array {
  const head: number[] = [format, 0, serializer];
  let bits = 0;
  if (filled !== undefined) {
    bits |= flags.filled | (filled.isUndefined ? flags.undefined : 0);
    for (const ms of [filled.freshMs, filled.staleMs, filled.errorMs]) addNumber(head, Math.floor(ms));
    addNumber(head, Math.ceil(filled.ageMs));
    addNumber(head, Math.ceil(filled.loadMs));
    addNumber(head, filled.tags.size);
    for (const [tag, generation] of filled.tags) {
      addText(head, tag);
      addNumber(head, generation);
    }
  }
  if (claim !== undefined) {
    bits |= flags.claim;
    addNumber(head, claim.token);
    addNumber(head, Math.ceil(claim.forMs));
  }
  if (failure !== undefined) {
    bits |= flags.failure;
    addText(head, failure.message.slice(0, longestMessage));
    addNumber(head, failure.count);
    addNumber(head, Math.ceil(failure.retryInMs));
  }
  head[1] = bits;
  const value = filled?.bytes;
  const record = new Uint8Array(head.length + (value?.length ?? 0));
  record.set(head);
  if (value !== undefined) record.set(value, head.length);
  return record;
}

/** Undefined if the bytes are not a record of this release. */
export function decodeRecord(bytes: Uint8Array): CacheRecord | undefined {
  if (bytes.length < 3 || bytes[0] !== format) return undefined;
  const bits = bytes[1]!;
  const reader = new Reader(bytes);
  let filled: Omit<Filled, 'bytes'> | undefined;
  if ((bits & flags.filled) !== 0) {
    const [freshMs, staleMs, errorMs] = [reader.number(), reader.number(), reader.number()];
    const [ageMs, loadMs, count] = [reader.number(), reader.number(), reader.number()];
    const tags = new Map<string, number>();
    for (let index = 0; index < count && reader.isWhole; index++) tags.set(reader.text(), reader.number());
    filled = { isUndefined: (bits & flags.undefined) !== 0, freshMs, staleMs, errorMs, ageMs, loadMs, tags };
  }
  const claim = (bits & flags.claim) === 0 ? undefined : { token: reader.number(), forMs: reader.number() };
  const failure =
    (bits & flags.failure) === 0
      ? undefined
      : { message: reader.text(), count: reader.number(), retryInMs: reader.number() };
  if (!reader.isWhole) return undefined;
  return {
    serializer: bytes[2]!,
    filled: filled && { ...filled, bytes: new Uint8Array(bytes.subarray(reader.at)) },
    claim,
    failure,
  };
}

/** Seven bits per byte, the lowest first, for integers up to 2^53 - 1. Bit operations would fail from 2^31 on. */
function addNumber(to: number[], value: number): void {
  let left = value;
  while (left >= 128) {
    to.push((left % 128) + 128);
    left = Math.floor(left / 128);
  }
  to.push(left);
}

function addText(to: number[], value: string): void {
  const bytes = utf8.encode(value);
  addNumber(to, bytes.length);
  for (const byte of bytes) to.push(byte);
}

class Reader {
  /** After the format, the flags and the serializer. */
  at = 3;
  /** False once bytes were missing. */
  isWhole = true;
  private readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  number(): number {
    let value = 0;
    for (let scale = 1; scale <= 2 ** 49; scale *= 128) {
      const byte = this.bytes[this.at++];
      if (byte === undefined) break;
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    this.isWhole = false;
    return 0;
  }

  text(): string {
    const length = this.number();
    const end = this.at + length;
    if (end > this.bytes.length) {
      this.isWhole = false;
      return '';
    }
    const value = text.decode(this.bytes.subarray(this.at, end));
    this.at = end;
    return value;
  }
}
