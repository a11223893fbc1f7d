/**
 * Fingerprint: the input of an operation in 33 bytes, so that one key cannot stand for two operations.
 *
 * Promise: JSON is compared as data, from its text: the order of members, white space and the way in which a string is escaped make no
 * difference; the digits of a number do. A large body does not block the event loop, however it is built. The first byte is the
 * version of the rule: fingerprints of different rules are not compared with each other.
 */
import { Slab } from '../../core/slab.js';
import { canonicalJson, type Sink } from './canonical-json.js';
import { nodeCrypto } from './hashing.js';
import { fingerprintBytes } from './record.js';
import { smallCanonicalJson } from './small-json.js';
import { nextTurn } from './turns.js';

/** What the fingerprint covers. */
export interface FingerprintInput {
  /** What counts besides the body, in this order: method, path, query. */
  readonly head: readonly string[];
  readonly body?: Uint8Array | string | undefined;
  /** Whether the body is declared to be JSON. If it is not JSON after all, its bytes count as they are. */
  readonly isJson?: boolean | undefined;
  /** JSON pointers to members that do not count, such as `/sentAt`. */
  readonly exclude?: readonly string[] | undefined;
  /** Of a form: what separates its parts. It does not count, because a form gets a new one each time it is serialized. */
  readonly boundary?: string | undefined;
}

const ownRule = 1;
const userRule = 2;
/** A body up to this size is processed at once; a larger one in slices. */
const smallBytes = 65_536;
const sliceBytes = 262_144;
const slab = /* @__PURE__ */ new Slab();
const encoder = /* @__PURE__ */ new TextEncoder();
/** How long a slice of work may take before it yields to other work. */
const turnMs = 5;

/** Synchronous for a small body. A large one is read in slices, so its fingerprint comes later. */
export function fingerprint(input: FingerprintInput): Uint8Array | Promise<Uint8Array> {
  const { head, body, isJson, exclude, boundary } = input;
  if (isJson && body !== undefined && body.length <= smallBytes && (exclude === undefined || exclude.length === 0)) {
    const small = smallFingerprint(head, body);
    if (small !== undefined) return small;
  }
  if (boundary !== undefined && body instanceof Uint8Array) {
    const work = formFingerprint(head, body, boundary);
    return body.length > smallBytes ? inSlices(work) : finish(work);
  }
  const begin = JSON.stringify(head);
  if (body === undefined) return digestOf(ownRule, `${begin}\n-\n`);
  if (body.length > smallBytes) return inSlices(large(begin, body, isJson === true, exclude));
  if (isJson) {
    const text = textOf(body);
    let canonical = '';
    const sink: Sink = (piece, start, end) => (canonical += piece.slice(start, end));
    if (text !== undefined && finish(canonicalJson(text, sink, exclude)))
      return digestOf(ownRule, `${begin}\njson\n${canonical}`);
  }
  const hash = nodeCrypto().createHash('sha256').update(`${begin}\nbytes\n`).update(body);
  return prefixed(ownRule, hash.digest());
}

/** Holds the head and the canonical body, and after these the bytes of a body that came as text. */
let scratch: Uint8Array | undefined;
const headRoom = 16_384;
/** The most bytes that one UTF-16 code unit of a text takes in UTF-8. */
const mostBytes = 3;

/** The fast path, for ordinary documents. Undefined: take the general path. */
function smallFingerprint(head: readonly string[], body: Uint8Array | string): Uint8Array | undefined {
  const isText = typeof body === 'string';
  if (isText && mostBytes * body.length > smallBytes) return undefined;
  scratch ??= new Uint8Array(headRoom + 2 * smallBytes);
  const begun = putHead(head, scratch);
  if (begun === -1) return undefined;
  let bytes: Uint8Array;
  if (isText) {
    const room = scratch.subarray(headRoom + smallBytes);
    bytes = room.subarray(0, encoder.encodeInto(body, room).written);
  } else {
    bytes = body;
  }
  const end = smallCanonicalJson(bytes, isUtf8, scratch, begun);
  return end === -1 ? undefined : digestOf(ownRule, scratch.subarray(0, end));
}

function isUtf8(bytes: Uint8Array): boolean {
  return textOf(bytes) !== undefined;
}

const behindHead = /* @__PURE__ */ [...'\njson\n'].map((character) => character.charCodeAt(0));

/** The head as JSON, byte by byte: a third of the cost of building a string and encoding it. -1: take the general path. */
function putHead(head: readonly string[], into: Uint8Array): number {
  let at = 0;
  into[at++] = 0x5b;
  for (let index = 0; index < head.length; index++) {
    const part = head[index]!;
    if (at + part.length > headRoom - 16) return -1;
    if (index > 0) into[at++] = 0x2c;
    into[at++] = 0x22;
    for (let place = 0; place < part.length; place++) {
      const code = part.charCodeAt(place);
      if (code < 0x20 || code >= 0x80 || code === 0x22 || code === 0x5c) return -1;
      into[at++] = code;
    }
    into[at++] = 0x22;
  }
  into[at++] = 0x5d;
  for (const code of behindHead) into[at++] = code;
  return at;
}

/** The fingerprint of what the user's function returned: equal texts or bytes count as the same input. */
export function ownFingerprint(what: Uint8Array | string): Uint8Array {
  return prefixed(userRule, nodeCrypto().createHash('sha256').update(what).digest());
}

function* large(
  begin: string,
  body: Uint8Array | string,
  isJson: boolean,
  exclude: readonly string[] | undefined,
): Generator<void, Uint8Array> {
  const text = isJson ? yield* decoded(body) : undefined;
  if (text !== undefined) {
    const hash = nodeCrypto().createHash('sha256').update(`${begin}\njson\n`);
    const writer = new Utf8Writer((bytes) => hash.update(bytes));
    if (yield* canonicalJson(text, (piece, start, end) => writer.write(piece, start, end), exclude)) {
      writer.flush();
      return prefixed(ownRule, hash.digest());
    }
  }
  return yield* hashed(`${begin}\nbytes\n`, [typeof body === 'string' ? encoder.encode(body) : body]);
}

function* hashed(begin: string, pieces: readonly Uint8Array[]): Generator<void, Uint8Array> {
  const hash = nodeCrypto().createHash('sha256').update(begin);
  for (const bytes of pieces) {
    for (let at = 0; at < bytes.length; at += sliceBytes) {
      hash.update(bytes.subarray(at, at + sliceBytes));
      yield;
    }
  }
  return prefixed(ownRule, hash.digest());
}

/** Covers the lengths of the parts between the boundaries, and then the parts. */
function* formFingerprint(head: readonly string[], body: Uint8Array, boundary: string): Generator<void, Uint8Array> {
  const parts = yield* partsOf(body, boundary);
  const lengths = parts?.map((part) => part.length) ?? [boundary];
  return yield* hashed(`${JSON.stringify([...head, ...lengths])}\nform\n`, parts ?? [body]);
}

const mostParts = 1_000;
const dash = 0x2d;

/**
 * What is between the boundaries. Undefined: the form counts as it came, because it has very many parts, or because its boundary occurs where not every
 * parser takes it for one: with that left out, two forms would be equal here and differ for a parser.
 */
function* partsOf(body: Uint8Array, boundary: string): Generator<void, Uint8Array[] | undefined> {
  const sought = Uint8Array.from([...'--', ...boundary], (character) => character.charCodeAt(0));
  const fallbacks = fallbacksOf(sought);
  const parts: Uint8Array[] = [];
  let start = 0;
  let matched = 0;
  for (let at = 0; at < body.length; at++) {
    if (at % sliceBytes === 0) yield;
    const byte = body[at]!;
    while (matched > 0 && sought[matched] !== byte) matched = fallbacks[matched - 1]!;
    if (sought[matched] === byte) matched++;
    if (matched < sought.length) continue;
    const end = at + 1;
    const begin = end - sought.length;
    if (parts.length > mostParts || !isDelimiter(body, begin, end)) return undefined;
    parts.push(body.subarray(start, begin));
    start = end;
    matched = 0;
  }
  return [...parts, body.subarray(start)];
}

/** For each beginning of the bytes, how long a shorter one it ends with: a search never goes back (Knuth, Morris, Pratt). */
function fallbacksOf(sought: Uint8Array): number[] {
  const fallbacks = [0];
  let matched = 0;
  for (let at = 1; at < sought.length; at++) {
    while (matched > 0 && sought[matched] !== sought[at]) matched = fallbacks[matched - 1]!;
    if (sought[matched] === sought[at]) matched++;
    fallbacks.push(matched);
  }
  return fallbacks;
}

/** Whether this is a line of its own, as serializers write it; the last one ends with two dashes. */
function isDelimiter(body: Uint8Array, begin: number, end: number): boolean {
  const isLast = body[end] === dash && body[end + 1] === dash;
  const lineEnd = isLast ? end + 2 : end;
  return (
    (begin === 0 || isLineBreak(body, begin - 2)) && ((isLast && lineEnd === body.length) || isLineBreak(body, lineEnd))
  );
}

function isLineBreak(body: Uint8Array, at: number): boolean {
  return body[at] === 0x0d && body[at + 1] === 0x0a;
}

/** Undefined if it is not UTF-8. */
function* decoded(body: Uint8Array | string): Generator<void, string | undefined> {
  if (typeof body === 'string') return body;
  const decoder = newDecoder();
  let text = '';
  try {
    for (let at = 0; at < body.length; at += sliceBytes) {
      text += decoder.decode(body.subarray(at, at + sliceBytes), { stream: true });
      yield;
    }
    return text + decoder.decode();
  } catch {
    // The bytes are not UTF-8.
  }
  return undefined;
}

/** Undefined if it is not UTF-8. */
function textOf(body: Uint8Array | string): string | undefined {
  if (typeof body === 'string') return body;
  try {
    wholeDecoder ??= newDecoder();
    return wholeDecoder.decode(body);
  } catch {
    // The bytes are not UTF-8.
  }
  return undefined;
}

/** Decodes whole bodies only, so that no state of one body remains in it. */
let wholeDecoder: InstanceType<typeof TextDecoder> | undefined;

/** A text with a byte order mark is not JSON, so the mark must not be stripped. */
function newDecoder(): InstanceType<typeof TextDecoder> {
  return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
}

/** Does all of the work synchronously. */
function finish<T>(work: Generator<void, T>): T {
  for (;;) {
    const step = work.next();
    if (step.done) return step.value;
  }
}

/** Does the work in turns, and yields to the event loop between them. */
async function inSlices<T>(work: Generator<void, T>): Promise<T> {
  let turnEndsMs = performance.now() + turnMs;
  for (;;) {
    const step = work.next();
    if (step.done) return step.value;
    if (performance.now() < turnEndsMs) continue;
    await nextTurn();
    turnEndsMs = performance.now() + turnMs;
  }
}

function digestOf(rule: number, data: string | Uint8Array): Uint8Array {
  const crypto = nodeCrypto();
  if (typeof crypto.hash !== 'function') return prefixed(rule, crypto.createHash('sha256').update(data).digest());
  // `hash` costs half as much as a hash object; Node has it from 20.12. The digest comes as text: a buffer for each would cost more than the hash.
  const digest = crypto.hash('sha256', data, 'binary');
  const bytes = slab.take(fingerprintBytes);
  bytes[0] = rule;
  for (let index = 0; index < digest.length; index++) bytes[index + 1] = digest.charCodeAt(index);
  return bytes;
}

function prefixed(rule: number, digest: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(fingerprintBytes);
  bytes[0] = rule;
  bytes.set(digest, 1);
  return bytes;
}

/** Encodes text as UTF-8 block by block: a string for each of millions of pieces would keep the garbage collector busy. */
class Utf8Writer {
  private readonly block = new Uint8Array(smallBytes);
  private length = 0;
  private readonly onBlock: (bytes: Uint8Array) => void;

  constructor(onBlock: (bytes: Uint8Array) => void) {
    this.onBlock = onBlock;
  }

  write(text: string, start: number, end: number): void {
    const { block } = this;
    let { length } = this;
    for (let at = start; at < end; at++) {
      if (length > smallBytes - 4) {
        this.length = length;
        this.flush();
        length = 0;
      }
      const unit = text.charCodeAt(at);
      if (unit < 0x80) {
        block[length++] = unit;
        continue;
      }
      const point = text.codePointAt(at)!;
      if (point >= 0x1_0000) at++;
      if (point >= 0x1_0000) block[length++] = 0xf0 | (point >> 18);
      if (point >= 0x1_0000) block[length++] = 0x80 | ((point >> 12) & 0x3f);
      else if (point >= 0x800) block[length++] = 0xe0 | (point >> 12);
      if (point >= 0x800) block[length++] = 0x80 | ((point >> 6) & 0x3f);
      else block[length++] = 0xc0 | (point >> 6);
      block[length++] = 0x80 | (point & 0x3f);
    }
    this.length = length;
  }

  flush(): void {
    this.onBlock(this.block.subarray(0, this.length));
    this.length = 0;
  }
}
