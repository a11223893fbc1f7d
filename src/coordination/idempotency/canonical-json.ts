/**
 * Canonical JSON: one text for all texts of the same data, made from the text itself.
 *
 * Promise: members are in the order of their names by code unit, those of one name in their own; white space is gone and each string is
 * escaped in one way; numbers keep their digits, so that 1.0 is not 1 and nothing above 2^53 is rounded. No depth and no width of a document
 * needs more than linear memory and n log n time, and the work can be put down at every millisecond or so.
 * After: RFC 8785 (JSON Canonicalization Scheme) for the order of names; unlike there, numbers stay as they are written.
 */
import { Integers } from './integers.js';

/** Gets the canonical text as ranges of texts. No range ends within a character. */
export type Sink = (text: string, start: number, end: number) => void;

/** Work done from one yield to the next, in characters looked at: a millisecond or two. */
const workPerSlice = 300_000;
/** What a step costs besides the characters it looks at. */
const stepWork = 20;
/** Characters that are looked at, or passed on, in one go. */
const stride = 65_536;
/** Members that are put in order in one go. */
const smallObject = 500;

/**
 * Writes the canonical form, in slices: it yields between them. Returns false when the text is no JSON; nothing has been written then.
 *
 * @param exclude - JSON pointers (RFC 6901) to members that are left out.
 */
export function* canonicalJson(text: string, sink: Sink, exclude: readonly string[] = []): Generator<void, boolean> {
  const document = new Document(text, exclude);
  if (!(yield* document.read())) return false;
  yield* document.write(sink);
  return true;
}

/** Whether this is a JSON pointer to a member: `~` stands only before 0 and 1. */
export function isPointer(value: unknown): value is string {
  return typeof value === 'string' && /^(?:\/(?:[^~/]|~[01])*)+$/.test(value);
}

/** In the place of an index: there is nothing. */
const none = -1;

const tab = 0x09;
const lineFeed = 0x0a;
const carriageReturn = 0x0d;
const space = 0x20;
const quote = 0x22;
const comma = 0x2c;
const colon = 0x3a;
const openBracket = 0x5b;
const backslash = 0x5c;
const closeBracket = 0x5d;
const openBrace = 0x7b;
const closeBrace = 0x7d;

// A member is so many numbers, the next: where its name lies, where its value does; the next member of its object, in the order in
// which they are written; the first object that begins within its value or after it.
const nameStart = 0;
const nameEnd = 1;
const valueStart = 2;
const valueEnd = 3;
const nextMember = 4;
const nextObject = 5;

// An object: where it lies, its first member, the first object that begins after its end.
const objectStart = 0;
const objectEnd = 1;
const firstMember = 2;
const follower = 3;

// A container that is open: its object, or none for an array; the member that is being read, the last one in its list, how many there are.
const openLength = 4;
const ofObject = 0;
const current = 1;
const last = 2;
const count = 3;

// What is being written: the end of a range, or none for the members of an object; where it is; in a range the next object, in an
// object whether it has begun.
const writingLength = 3;
const rangeEnd = 0;
const place = 1;
const extra = 2;

type Expected = 'value' | 'value or ]' | 'name' | 'name or }' | 'what follows';

/** A text, and where its objects and their members lie; arrays and plain values are no more than ranges of the text. */
class Document {
  private readonly text: string;
  private readonly excluded: ReadonlySet<string>;
  private readonly deepestExcluded: number;
  /** Whether the text is canonical as it stands, as far as it has been read. */
  private isCanonical = true;
  private work = 0;
  private readonly members = new Integers();
  private readonly objects = new Integers();

  constructor(text: string, exclude: readonly string[]) {
    this.text = text;
    this.excluded = new Set(exclude);
    this.deepestExcluded = exclude.reduce((deepest, pointer) => Math.max(deepest, pointer.split('/').length - 1), 0);
  }

  /** Finds all objects and puts their members in order. False when the text is no JSON. */
  *read(): Generator<void, boolean> {
    const { text, members, objects } = this;
    const open = new Integers();
    // For pointers, as deep as these go: the name of the member, or the index of the element, that is being read.
    const path: (string | number)[] = [];
    let expected: Expected = 'value';
    let at = 0;
    for (;;) {
      if (this.isSliceDone(stepWork)) yield;
      const code = text.charCodeAt(at);
      if (isSpace(code)) {
        this.isCanonical = false;
        at++;
        continue;
      }
      const top = open.length - openLength;
      if (expected === 'what follows') {
        if (top < 0) return at >= text.length;
        const isObject = open.get(top + ofObject) !== none;
        if (isObject) members.set(open.get(top + current) + valueEnd, at);
        if (code === comma) {
          if (!isObject) this.step(path, open.length / openLength);
          expected = isObject ? 'name' : 'value';
          at++;
          continue;
        }
        if (code !== (isObject ? closeBrace : closeBracket)) return false;
      }
      const mayClose = expected !== 'value' && expected !== 'name';
      if (mayClose && code === (open.get(top + ofObject) === none ? closeBracket : closeBrace)) {
        const object = open.get(top + ofObject);
        const memberCount = open.get(top + count);
        open.length = top;
        path.length = Math.min(path.length, top / openLength);
        at++;
        if (object !== none) {
          objects.set(object + objectEnd, at);
          objects.set(object + follower, objects.length);
          const isLong = memberCount > smallObject || at - objects.get(object + objectStart) > stride;
          if (isLong) yield* this.sortMany(object, memberCount);
          else if (memberCount > 1) this.sortFew(object);
        }
        expected = 'what follows';
        continue;
      }
      if (expected === 'name' || expected === 'name or }') {
        if (code !== quote) return false;
        const near = this.readString(at + 1);
        const end = near < none ? yield* this.restOfString(near) : near;
        if (end === none) return false;
        let colonAt = end;
        for (; isSpace(text.charCodeAt(colonAt)); colonAt++) if (this.isSliceDone(1)) yield;
        if (colonAt > end) this.isCanonical = false;
        if (text.charCodeAt(colonAt) !== colon) return false;
        const valueAt = colonAt + 1;
        const member = members.length;
        for (const number of [at, end, valueAt, none, none, objects.length]) members.push(number);
        open.set(top + current, member);
        if (!this.isExcluded(path, top / openLength, member)) {
          const previous = open.get(top + last);
          if (previous === none) objects.set(open.get(top + ofObject) + firstMember, member);
          else members.set(previous + nextMember, member);
          open.set(top + last, member);
          open.set(top + count, open.get(top + count) + 1);
        }
        at = valueAt;
        expected = 'value';
        continue;
      }
      if (code === openBrace || code === openBracket) {
        const isObject = code === openBrace;
        for (const number of [isObject ? objects.length : none, none, none, 0]) open.push(number);
        if (open.length / openLength <= this.deepestExcluded) path.push(0);
        if (isObject) for (const number of [at, none, none, none]) objects.push(number);
        expected = isObject ? 'name or }' : 'value or ]';
        at++;
        continue;
      }
      const near = code === quote ? this.readString(at + 1) : this.literalEnd(at);
      at = near < none ? yield* this.restOfString(near) : near;
      if (at === none) return false;
      expected = 'what follows';
    }
  }

  /** Writes the canonical form. Goes down into an object by a list of its own, so that no depth is too deep. */
  *write(sink: Sink): Generator<void, void> {
    const { text, members, objects } = this;
    if (this.isCanonical) return yield* this.writeLong(0, text.length, sink);
    const writing = new Integers();
    for (const number of [text.length, 0, 0]) writing.push(number);
    while (writing.length > 0) {
      if (this.isSliceDone(stepWork)) yield;
      const top = writing.length - writingLength;
      const end = writing.get(top + rangeEnd);
      const at = writing.get(top + place);
      if (end !== none) {
        const object = writing.get(top + extra);
        const begin = object < objects.length ? Math.min(objects.get(object + objectStart), end) : end;
        if (begin - at > stride) yield* this.writeLong(at, begin, sink);
        else this.writeShort(at, begin, sink);
        if (begin === end) {
          writing.length = top;
          continue;
        }
        sink('{', 0, 1);
        writing.set(top + place, objects.get(object + objectEnd));
        writing.set(top + extra, objects.get(object + follower));
        for (const number of [none, objects.get(object + firstMember), 0]) writing.push(number);
      } else if (at === none) {
        sink('}', 0, 1);
        writing.length = top;
      } else {
        if (writing.get(top + extra) === 1) sink(',', 0, 1);
        writing.set(top + place, members.get(at + nextMember));
        writing.set(top + extra, 1);
        const [from, to] = [members.get(at + nameStart), members.get(at + nameEnd)];
        if (to - from > stride) yield* this.writeLong(from, to, sink);
        else this.writeShort(from, to, sink);
        sink(':', 0, 1);
        for (const field of [valueEnd, valueStart, nextObject]) writing.push(members.get(at + field));
      }
    }
  }

  /** Whether it is time to put the work down. */
  private isSliceDone(work: number): boolean {
    this.work += work;
    if (this.work < workPerSlice) return false;
    this.work = 0;
    return true;
  }

  private step(path: (string | number)[], depth: number): void {
    if (depth <= this.deepestExcluded) path[depth - 1] = (path[depth - 1] as number) + 1;
  }

  private isExcluded(path: (string | number)[], depth: number, member: number): boolean {
    if (depth >= this.deepestExcluded) return false;
    path[depth] = this.nameOf(member);
    if (!this.excluded.has(pointerTo(path))) return false;
    this.isCanonical = false;
    return true;
  }

  /** A range in which no object lies. */
  private writeShort(start: number, end: number, sink: Sink): void {
    const { text } = this;
    this.work += end - start;
    for (let at = start; at < end; ) {
      const code = text.charCodeAt(at);
      if (code === quote) {
        const close = this.readString(at + 1);
        if (text.slice(at, close).includes('\\')) this.writeEscaped(at, close, sink);
        else sink(text, at, close);
        at = close;
      } else if (isSpace(code)) at++;
      else {
        const until = this.plainEnd(at, end);
        sink(text, at, until);
        at = until;
      }
    }
  }

  /** The same for one that may be very long, or hold one string that is. */
  private *writeLong(start: number, end: number, sink: Sink): Generator<void, void> {
    const { text } = this;
    for (let at = start; at < end; ) {
      const code = text.charCodeAt(at);
      if (this.isCanonical) {
        const until = wholeCharacters(text, Math.min(at + stride, end), end);
        sink(text, at, until);
        at = until;
      } else if (code === quote) {
        const near = this.readString(at + 1);
        if (near < none) {
          const close = yield* this.restOfString(near);
          yield* this.writeLongString(at, close, sink);
          at = close;
        } else {
          this.writeShort(at, near, sink);
          at = near;
        }
      } else if (isSpace(code)) {
        at++;
        if (this.isSliceDone(1)) yield;
        continue;
      } else {
        const until = this.plainEnd(at, end);
        sink(text, at, until);
        if (this.isSliceDone(until - at)) yield;
        at = until;
        continue;
      }
      if (this.isSliceDone(stride / 4)) yield;
    }
  }

  /** In parts that end neither within an escape nor between the halves of a pair. */
  private *writeLongString(start: number, end: number, sink: Sink): Generator<void, void> {
    const { text } = this;
    sink('"', 0, 1);
    for (let at = start + 1; at < end - 1; ) {
      let until = at;
      let isHalf = false;
      while (until < end - 1 && (until - at < stride || isHalf)) {
        const code = text.charCodeAt(until);
        const isLong = code === backslash && text.charAt(until + 1) === 'u';
        const unit = isLong ? Number.parseInt(text.slice(until + 2, until + 6), 16) : code;
        isHalf = unit >= 0xd800 && unit < 0xdc00;
        until += isLong ? 6 : code === backslash ? 2 : 1;
      }
      const part = JSON.stringify(JSON.parse(`"${text.slice(at, until)}"`));
      sink(part, 1, part.length - 1);
      at = until;
      yield;
    }
    sink('"', 0, 1);
  }

  private writeEscaped(start: number, end: number, sink: Sink): void {
    const lexeme = JSON.stringify(JSON.parse(this.text.slice(start, end)));
    sink(lexeme, 0, lexeme.length);
  }

  /** Up to the next string, white space or stride. */
  private plainEnd(start: number, end: number): number {
    const { text } = this;
    const limit = Math.min(end, start + stride);
    let at = start;
    while (at < limit && text.charCodeAt(at) > space && text.charCodeAt(at) !== quote) at++;
    return at;
  }

  /** Reads on within a string: the place behind its closing quote, none, or, after a stride, minus the place to go on at. */
  private readString(from: number): number {
    const { text } = this;
    const limit = from + stride;
    let at = from;
    for (; at < limit; at++) {
      const code = text.charCodeAt(at);
      if (code === quote) {
        this.work += at - from;
        return at + 1;
      }
      // At the end of the text it is NaN.
      if (!(code >= space)) return none;
      if (code !== backslash) continue;
      this.isCanonical = false;
      const escaped = text.charAt(++at);
      if (escaped === 'u') {
        if (!/^[0-9a-fA-F]{4}$/.test(text.slice(at + 1, at + 5))) return none;
        at += 4;
      } else if (escaped === '' || !'"\\/bfnrt'.includes(escaped)) return none;
    }
    return -at;
  }

  private *restOfString(begun: number): Generator<void, number> {
    let near = begun;
    while (near < none) {
      if (this.isSliceDone(stride)) yield;
      near = this.readString(-near);
    }
    return near;
  }

  /** Behind a number, true, false or null; none when it is none of them. */
  private literalEnd(start: number): number {
    const { text } = this;
    for (const word of ['true', 'false', 'null']) if (text.startsWith(word, start)) return start + word.length;
    let at = text.charAt(start) === '-' ? start + 1 : start;
    const whole = this.digitsEnd(at);
    // No digit, or one too many before others.
    if (whole === at || (text.charAt(at) === '0' && whole > at + 1)) return none;
    at = whole;
    if (text.charAt(at) === '.') {
      const fraction = this.digitsEnd(at + 1);
      if (fraction === at + 1) return none;
      at = fraction;
    }
    if (text.charAt(at) === 'e' || text.charAt(at) === 'E') {
      const sign = text.charAt(at + 1);
      const from = sign === '+' || sign === '-' ? at + 2 : at + 1;
      const exponent = this.digitsEnd(from);
      if (exponent === from) return none;
      at = exponent;
    }
    return at;
  }

  /** A number of more digits than are looked at in one go is taken for no JSON: nobody means one. */
  private digitsEnd(start: number): number {
    const { text } = this;
    const limit = start + stride;
    let at = start;
    for (let code = text.charCodeAt(at); at < limit && code >= 0x30 && code <= 0x39; code = text.charCodeAt(++at));
    this.work += at - start;
    return at;
  }

  private nameOf(member: number): string {
    const lexeme = this.text.slice(this.members.get(member + nameStart), this.members.get(member + nameEnd));
    return lexeme.includes('\\') ? (JSON.parse(lexeme) as string) : lexeme.slice(1, -1);
  }

  /** The order of two names, looked at where they lie: a string for each of millions would be too much. */
  private isAfter(one: number, other: number): boolean {
    const { text, members } = this;
    let left = members.get(one + nameStart) + 1;
    let right = members.get(other + nameStart) + 1;
    for (let looked = 1; ; looked++) {
      const code = text.charCodeAt(left++);
      const otherCode = text.charCodeAt(right++);
      if (code === backslash || otherCode === backslash) return this.nameOf(one) > this.nameOf(other);
      if (code !== otherCode || code === quote) {
        this.work += looked;
        return code !== quote && (otherCode === quote || code > otherCode);
      }
    }
  }

  /** By insertion where they are almost in order, as mostly; at most 500 of them. */
  private sortFew(object: number): void {
    const { members, objects } = this;
    const order: number[] = [];
    let isSorted = true;
    for (let member = objects.get(object + firstMember); member !== none; member = members.get(member + nextMember)) {
      isSorted &&= order.length === 0 || !this.isAfter(order.at(-1)!, member);
      order.push(member);
    }
    if (isSorted) return;
    this.isCanonical = false;
    order.sort((one, other) => (this.isAfter(one, other) ? 1 : this.isAfter(other, one) ? -1 : 0));
    objects.set(object + firstMember, order[0]!);
    for (const [index, member] of order.entries()) members.set(member + nextMember, order[index + 1] ?? none);
  }

  /** A merge sort from below, which can be put down anywhere and keeps equal names in their order. */
  private *sortMany(object: number, length: number): Generator<void, void> {
    const { members, objects } = this;
    let order = new Int32Array(length);
    let merged = new Int32Array(length);
    let isSorted = true;
    let member = objects.get(object + firstMember);
    for (let index = 0; index < length; index++) {
      if (this.isSliceDone(stepWork)) yield;
      isSorted &&= index === 0 || !this.isAfter(order[index - 1]!, member);
      order[index] = member;
      member = members.get(member + nextMember);
    }
    if (isSorted) return;
    this.isCanonical = false;
    for (let width = 1; width < length; width *= 2) {
      for (let start = 0; start < length; start += 2 * width) {
        const middle = Math.min(start + width, length);
        const end = Math.min(start + 2 * width, length);
        let left = start;
        let right = middle;
        for (let to = start; to < end; to++) {
          if (this.isSliceDone(stepWork)) yield;
          const takesLeft = right >= end || (left < middle && !this.isAfter(order[left]!, order[right]!));
          merged[to] = takesLeft ? order[left++]! : order[right++]!;
        }
      }
      [order, merged] = [merged, order];
    }
    objects.set(object + firstMember, order[0]!);
    for (let index = 0; index < length; index++) {
      if (this.isSliceDone(stepWork)) yield;
      members.set(order[index]! + nextMember, index + 1 < length ? order[index + 1]! : none);
    }
  }
}

function isSpace(code: number): boolean {
  return code === space || code === lineFeed || code === carriageReturn || code === tab;
}

function pointerTo(path: readonly (string | number)[]): string {
  return path.map((step) => `/${String(step).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('');
}

/** A cut moved off the middle of a surrogate pair. */
function wholeCharacters(text: string, at: number, end: number): number {
  const isHalf = at < end && (text.charCodeAt(at - 1) & 0xfc00) === 0xd800;
  return isHalf ? at + 1 : at;
}
