/**
 * Canonical JSON: one text for all texts of the same data, made from the text itself.
 *
 * Promise: members are in the order of their names by code unit, those of one name in their own; white space is gone and each string is
 * escaped in one way; numbers keep their digits, so that 1.0 is not 1 and nothing above 2^53 is rounded. No depth and no width of a document
 * needs more than linear memory and n log n time, and the work can be put down every few thousand steps.
 * After: RFC 8785 (JSON Canonicalization Scheme) for the order of names; unlike there, numbers are kept as they are written.
 */

/** Gets the canonical text, piece by piece; no piece ends within a character. */
export type Sink = (piece: string) => void;

/** Steps from one yield to the next: a fraction of a millisecond. */
const stepsPerSlice = 10_000;
/** Characters that are looked at, or passed on, in one step. */
const charactersPerStep = 65_536;

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

/** Members whose order is looked at in one step. */
const smallObject = 1_000;
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

type Expected = 'value' | 'value or ]' | 'name' | 'name or }' | 'what follows';

/**
 * A text and where its objects and their members lie: parallel arrays of numbers, because a document of 20 MB has millions of members.
 * Arrays and plain values are no more than ranges of the text.
 */
class Document {
  private readonly text: string;
  private readonly excluded: ReadonlySet<string>;
  private readonly deepestExcluded: number;
  /** Whether the text is canonical as it stands, as far as it has been read. */
  private isCanonical = true;
  private steps = 0;

  /** Members, in the order of the text. Those of one object are a list, in the order in which they are written. */
  private readonly nameStarts: number[] = [];
  private readonly nameEnds: number[] = [];
  private readonly valueStarts: number[] = [];
  private readonly valueEnds: number[] = [];
  private readonly nextMembers: number[] = [];
  /** The first object that begins within the value or after it. */
  private readonly nextObjects: number[] = [];

  /** Objects, in the order in which they begin. */
  private readonly objectStarts: number[] = [];
  private readonly objectEnds: number[] = [];
  private readonly firstMembers: number[] = [];
  /** The first object that begins after this one's end. */
  private readonly followers: number[] = [];

  constructor(text: string, exclude: readonly string[]) {
    this.text = text;
    this.excluded = new Set(exclude);
    this.deepestExcluded = exclude.reduce((deepest, pointer) => Math.max(deepest, pointer.split('/').length - 1), 0);
  }

  /** Finds all objects and puts their members in order. False when the text is no JSON. */
  *read(): Generator<void, boolean> {
    const { text, valueEnds } = this;
    // Of each container that is open: its object, or none for an array; the member that is being read; the last one in its list.
    const objects: number[] = [];
    const members: number[] = [];
    const lastMembers: number[] = [];
    // For pointers: the name of the member, or the index of the element, that is being read.
    const path: (string | number)[] = [];
    let expected: Expected = 'value';
    let at = 0;
    for (;;) {
      if (++this.steps % stepsPerSlice === 0) yield;
      const code = text.charCodeAt(at);
      if (code === space || code === lineFeed || code === carriageReturn || code === tab) {
        this.isCanonical = false;
        at++;
        continue;
      }
      const top = objects.length - 1;
      if (expected === 'what follows') {
        if (top < 0) return at >= text.length;
        const isObject = objects[top] !== none;
        if (isObject && valueEnds[members[top]!] === none) valueEnds[members[top]!] = at;
        if (code === comma) {
          if (!isObject) path[top] = (path[top] as number) + 1;
          expected = isObject ? 'name' : 'value';
          at++;
          continue;
        }
        if (code !== (isObject ? closeBrace : closeBracket)) return false;
      }
      const closes = expected === 'what follows' || expected === 'value or ]' || expected === 'name or }';
      if (closes && code === (objects[top] === none ? closeBracket : closeBrace)) {
        const object = objects.pop()!;
        members.pop();
        lastMembers.pop();
        path.pop();
        at++;
        if (object !== none) {
          this.objectEnds[object] = at;
          this.followers[object] = this.objectStarts.length;
          if (!this.isInOrder(object)) yield* this.sortMembers(object);
        }
        expected = 'what follows';
        continue;
      }
      if (expected === 'name' || expected === 'name or }') {
        if (code !== quote) return false;
        const near = this.readString(at + 1);
        const end = near < none ? yield* this.stringEnd(at) : near;
        const valueAt = end === none ? none : this.afterColon(end);
        if (valueAt === none) return false;
        const member = this.nameStarts.length;
        this.nameStarts.push(at);
        this.nameEnds.push(end);
        this.valueStarts.push(valueAt);
        this.valueEnds.push(none);
        this.nextMembers.push(none);
        this.nextObjects.push(this.objectStarts.length);
        members[top] = member;
        path[top] = top < this.deepestExcluded ? this.nameOf(member) : '';
        if (top < this.deepestExcluded && this.excluded.has(pointerTo(path))) this.isCanonical = false;
        else {
          if (lastMembers[top] === none) this.firstMembers[objects[top]!] = member;
          else this.nextMembers[lastMembers[top]!] = member;
          lastMembers[top] = member;
        }
        at = valueAt;
        expected = 'value';
        continue;
      }
      if (code === openBrace || code === openBracket) {
        const isObject = code === openBrace;
        objects.push(isObject ? this.objectStarts.length : none);
        members.push(none);
        lastMembers.push(none);
        path.push(0);
        if (isObject) {
          this.objectStarts.push(at);
          this.objectEnds.push(none);
          this.firstMembers.push(none);
          this.followers.push(none);
        }
        expected = isObject ? 'name or }' : 'value or ]';
        at++;
        continue;
      }
      const near = code === quote ? this.readString(at + 1) : this.literalEnd(at);
      at = near < none ? yield* this.stringEnd(at) : near;
      if (at === none) return false;
      expected = 'what follows';
    }
  }

  /** Writes the canonical form. Goes down into an object by a list of its own, so that no depth is too deep. */
  *write(sink: Sink): Generator<void, void> {
    const { text, objectStarts } = this;
    if (this.isCanonical) return yield* this.writeRange(0, text.length, sink);
    // Ranges of the text, and lists of members, that are begun; a range has its end, a list none.
    const ends = [text.length];
    const places = [0];
    const objects = [0];
    while (ends.length > 0) {
      if (++this.steps % stepsPerSlice === 0) yield;
      const top = ends.length - 1;
      const end = ends[top]!;
      const place = places[top]!;
      const object = objects[top]!;
      if (end !== none) {
        const begin = objectStarts[object] ?? end;
        yield* this.writeRange(place, Math.min(begin, end), sink);
        if (begin >= end) {
          [ends, places, objects].map((stack) => stack.pop());
          continue;
        }
        sink('{');
        places[top] = this.objectEnds[object]!;
        objects[top] = this.followers[object]!;
        ends.push(none);
        places.push(this.firstMembers[object]!);
        // Of a list: whether it has begun.
        objects.push(0);
      } else if (place === none) {
        sink('}');
        [ends, places, objects].map((stack) => stack.pop());
      } else {
        if (object === 1) sink(',');
        objects[top] = 1;
        places[top] = this.nextMembers[place]!;
        yield* this.writeRange(this.nameStarts[place]!, this.nameEnds[place]!, sink);
        sink(':');
        ends.push(this.valueEnds[place]!);
        places.push(this.valueStarts[place]!);
        objects.push(this.nextObjects[place]!);
      }
    }
  }

  /** A range in which no object lies. */
  private *writeRange(start: number, end: number, sink: Sink): Generator<void, void> {
    const { text } = this;
    if (this.isCanonical) {
      for (let at = start; at < end; ) {
        const until = wholeCharacters(text, Math.min(at + charactersPerStep, end), end);
        sink(text.slice(at, until));
        at = until;
        if (at < end) yield;
      }
      return;
    }
    for (let at = start; at < end; ) {
      if (++this.steps % stepsPerSlice === 0) yield;
      const code = text.charCodeAt(at);
      if (code === quote) {
        const close = yield* this.stringEnd(at);
        yield* this.writeString(at, close, sink);
        at = close;
      } else if (code === space || code === lineFeed || code === carriageReturn || code === tab) at++;
      else {
        const until = this.plainEnd(at, end);
        sink(text.slice(at, until));
        at = until;
      }
    }
  }

  private *writeString(start: number, end: number, sink: Sink): Generator<void, void> {
    const { text } = this;
    sink('"');
    for (let at = start + 1; at < end - 1; ) {
      let until = at;
      let hasEscape = false;
      let isHalf = false;
      // No part ends within an escape, nor between the halves of a pair.
      while (until < end - 1 && (until - at < charactersPerStep || isHalf)) {
        const code = text.charCodeAt(until);
        const isEscape = code === backslash;
        const isLong = isEscape && text.charAt(until + 1) === 'u';
        const unit = isLong ? Number.parseInt(text.slice(until + 2, until + 6), 16) : code;
        hasEscape ||= isEscape;
        isHalf = unit >= 0xd800 && unit < 0xdc00;
        until += isLong ? 6 : isEscape ? 2 : 1;
      }
      const part = text.slice(at, until);
      sink(hasEscape ? JSON.stringify(JSON.parse(`"${part}"`)).slice(1, -1) : part);
      at = until;
      if (at < end - 1) yield;
    }
    sink('"');
  }

  /** Up to the next string, white space or step. */
  private plainEnd(start: number, end: number): number {
    const { text } = this;
    const limit = Math.min(end, start + charactersPerStep);
    let at = start;
    while (at < limit && text.charCodeAt(at) > space && text.charCodeAt(at) !== quote) at++;
    return at;
  }

  /** Behind the closing quote of a string; none when it is none. */
  private *stringEnd(start: number): Generator<void, number> {
    let place = this.readString(start + 1);
    while (place < none) {
      yield;
      place = this.readString(-place);
    }
    return place;
  }

  /** Reads on within a string: the place behind its closing quote, none, or, after many characters, minus the place to go on at. */
  private readString(from: number): number {
    const { text } = this;
    const limit = from + charactersPerStep;
    let at = from;
    for (; at < limit; at++) {
      const code = text.charCodeAt(at);
      if (code === quote) return at + 1;
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

  private afterColon(end: number): number {
    const { text } = this;
    let at = end;
    while (isSpace(text.charCodeAt(at))) at++;
    if (at > end) this.isCanonical = false;
    return text.charCodeAt(at) === colon ? at + 1 : none;
  }

  /** Behind a number, true, false or null; none when it is none of them. */
  private literalEnd(start: number): number {
    const { text } = this;
    for (const word of ['true', 'false', 'null']) if (text.startsWith(word, start)) return start + word.length;
    let at = start;
    if (text.charAt(at) === '-') at++;
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

  private digitsEnd(start: number): number {
    let at = start;
    for (let code = this.text.charCodeAt(at); code >= 0x30 && code <= 0x39; code = this.text.charCodeAt(++at));
    return at;
  }

  private nameOf(member: number): string {
    const lexeme = this.text.slice(this.nameStarts[member]!, this.nameEnds[member]!);
    return lexeme.includes('\\') ? (JSON.parse(lexeme) as string) : lexeme.slice(1, -1);
  }

  /** Whether the members of a small object are in the order of their names already, as most are. */
  private isInOrder(object: number): boolean {
    let previous = '';
    for (let member = this.firstMembers[object]!, count = 0; member !== none; member = this.nextMembers[member]!) {
      const name = this.nameOf(member);
      if (name < previous || ++count > smallObject) return false;
      previous = name;
    }
    return true;
  }

  /** Puts the members of an object in the order of their names: a merge sort from below, which keeps equal names in their order. */
  private *sortMembers(object: number): Generator<void, void> {
    const { firstMembers, nextMembers } = this;
    const members: number[] = [];
    const names: string[] = [];
    let order: number[] = [];
    let isSorted = true;
    for (let member = firstMembers[object]!; member !== none; member = nextMembers[member]!) {
      if (++this.steps % stepsPerSlice === 0) yield;
      const index = members.push(member) - 1;
      order.push(names.push(this.nameOf(member)) - 1);
      if (index > 0 && names[index]! < names[index - 1]!) isSorted = false;
    }
    if (isSorted) return;
    this.isCanonical = false;
    for (let width = 1; width < order.length; width *= 2) {
      const merged: number[] = [];
      for (let start = 0; start < order.length; start += 2 * width) {
        const middle = Math.min(start + width, order.length);
        const end = Math.min(start + 2 * width, order.length);
        let left = start;
        let right = middle;
        while (left < middle || right < end) {
          if (++this.steps % stepsPerSlice === 0) yield;
          const takesLeft = right >= end || (left < middle && names[order[left]!]! <= names[order[right]!]!);
          merged.push(takesLeft ? order[left++]! : order[right++]!);
        }
      }
      order = merged;
    }
    firstMembers[object] = members[order[0]!]!;
    for (let index = 0; index < order.length; index++) {
      if (++this.steps % stepsPerSlice === 0) yield;
      nextMembers[members[order[index]!]!] = index + 1 < order.length ? members[order[index + 1]!]! : none;
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
