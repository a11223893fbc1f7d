/**
 * Record: what the store keeps of one key, in one entry: the value, its windows, a lease on loading it, and how the last load failed.
 *
 * Promise: only durations are in it, counted from when the value was filled or this version was written, so no clock of a
 * client takes part; what is written in a format of another release reads as nothing, and never as something else.
 */

/** A value as the store keeps it, with all that decides how long it may be used. */
export interface Filled {
  readonly bytes: Uint8Array;
  /** JSON has no word for it. */
  readonly isUndefined: boolean;
  /** From the fill on, in milliseconds: fresh so long, ... */
  readonly freshMs: number;
  /** ... usable while it is refreshed so long, ... */
  readonly staleMs: number;
  /** ... and in place of an error so long. */
  readonly errorMs: number;
  /** Its age when this version of the record was written. */
  readonly ageMs: number;
  /** How long it took to load, smoothed. */
  readonly loadMs: number;
  /** By tag its generation when the value was loaded: the version of the tag's own entry, 0 for none. */
  readonly tags: ReadonlyMap<string, number>;
}

/** Somebody loads the key. */
export interface Claim {
  /** By it the holder knows its own writing again. */
  readonly token: number;
  /** From the writing of this version on. */
  readonly forMs: number;
}

/** The last load failed. */
export interface Failure {
  readonly message: string;
  /** Failures in a row. */
  readonly count: number;
  /** Nobody tries again for so long, from the writing of this version on. */
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

/** Undefined for what is no record of this release. */
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
    filled: filled && { ...filled, bytes: bytes.slice(reader.at) },
    claim,
    failure,
  };
}

/** Seven bits per byte, the lowest first, for integers up to 2^53 - 1: bit operations would end at 2^31. */
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
  /** Behind the format, the flags and the serializer. */
  at = 3;
  /** False once something was missing. */
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
