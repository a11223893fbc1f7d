/**
 * Canonical JSON: maps all JSON texts of the same data to one text, working on the text itself.
 *
 * Promise: members are sorted by name, by code unit; members of equal name keep their order. White space is removed, and each string is
 * escaped in one way. Numbers keep their digits: 1.0 differs from 1, and nothing above 2^53 is rounded. However deep or wide a document
 * is, it takes linear memory and n log n time, and the work can be suspended about every millisecond.
 * After: RFC 8785 (JSON Canonicalization Scheme) for the order of names; unlike there, numbers stay as they are written.
 */
import { IntegerTable } from './integer-table.js';

/** Receives the canonical text as ranges of texts. No range ends inside a character. */
export type Sink = (text: string, start: number, end: number) => void;

/** How much work is done without a yield or a check. Tests make the portions small. */
export interface Portions {
  /** The work between two yields, counted in characters: a millisecond or two. */
  readonly slice: number;
  /** How many characters, of a string or between strings, are scanned or emitted at once. At least 12: two escapes. */
  readonly stride: number;
}

const usual: Portions = { slice: 300_000, stride: 65_536 };
/** The fixed cost of a step, besides the characters it scans. */
const stepWork = 20;

/**
 * Writes the canonical form in slices, and yields between them. Returns false, and writes nothing, if the text is not JSON.
 *
 * @param text - Well-formed Unicode.
 * @param exclude - JSON pointers (RFC 6901) to members that are left out.
 */
export function* canonicalJson(
  text: string,
  sink: Sink,
  exclude: readonly string[] = [],
  portions: Portions = usual,
): Generator<void, boolean> {
  const document = new Document(text, exclude, portions);
  if (!(yield* document.read())) return false;
  yield* document.write(sink);
  return true;
}

/** Whether this is a JSON pointer to a member: `~` may only precede 0 or 1. */
export function isPointer(value: unknown): value is string {
  return typeof value === 'string' && /^(?:\/(?:[^~/]|~[01])*)+$/.test(value);
}

/** Instead of a row or a position in the text: there is none. */
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

// Only an attacker sends numbers of unbounded length: one with more digits than this does not count as JSON.
const literal = /true|false|null|-?(?:0|[1-9]\d{0,65535})(?:\.\d{1,65536})?(?:[eE][+-]?\d{1,65536})?/y;
const escapeSequence = /\\(?:["\\/bfnrt]|u[\da-fA-F]{4})/y;

// Row of a member: where its name starts and ends, and where its value ends; the next member of its object, at first in document order, then in the order of
// the names; the first object that starts after its name.
const nameStart = 0;
const nameEnd = 1;
const valueEnd = 2;
const nextMember = 3;
const nextObject = 4;
const memberWidth = 5;

// Row of an object: where it ends, its first member, the first object that starts after its end.
const objectEnd = 0;
const firstMember = 1;
const follower = 2;
const objectWidth = 3;

// Row of an open container: its object, or none for an array; the member, or the index of the element, being read; the last member in its
// list; whether a name has come that sorts before an earlier one.
const ofObject = 0;
const current = 1;
const last = 2;
const isUnsorted = 3;
const openWidth = 4;

// Row of a range being written: where it ends, or none for the members of an object; the current position, in the text or in the list; for a range
// the next object, for an object whether its first member has been written.
const rangeEnd = 0;
const place = 1;
const extra = 2;
const writingWidth = 3;

type Expected = 'value' | 'value or ]' | 'name' | 'name or }' | 'colon' | 'what follows';

/** A text, and where its objects and members lie. Arrays and plain values are just ranges of the text. */
class Document {
  private readonly text: string;
  private readonly portions: Portions;
  private readonly excluded: ReadonlySet<string>;
  /** Pointers to the containers on the way to the excluded members. */
  private readonly leading = new Set<string>();
  /** The pointers of the open containers, from the root on, as far as they lead to excluded members. */
  private readonly path: string[] = [];
  private work = 0;
  /** The positions up to which the two names being compared are equal. */
  private left = 0;
  private right = 0;
  private readonly open = new IntegerTable(openWidth);
  private readonly members = new IntegerTable(memberWidth);
  private readonly objects = new IntegerTable(objectWidth);

  constructor(text: string, exclude: readonly string[], portions: Portions) {
    this.text = text;
    this.portions = portions;
    this.excluded = new Set(exclude);
    for (const pointer of exclude) {
      for (let at = 0; at !== -1; at = pointer.indexOf('/', at + 1)) this.leading.add(pointer.slice(0, at));
    }
  }

  /** Finds all objects and sorts their members. False if the text is not JSON. */
  *read(): Generator<void, boolean> {
    const { text, open, members, objects } = this;
    let expected: Expected = 'value';
    for (let at = 0; ; ) {
      if (this.isSliceDone(stepWork)) yield;
      const code = text.charCodeAt(at);
      if (isSpace(code)) {
        at++;
        continue;
      }
      const top = open.length - 1;
      const object = top === none ? none : open.get(top, ofObject);
      const isObject = object !== none;
      if (expected === 'what follows') {
        if (top === none) return at >= text.length;
        if (isObject) members.set(open.get(top, current), valueEnd, at);
        if (code === comma) {
          if (isObject) expected = 'name';
          else {
            open.set(top, current, open.get(top, current) + 1);
            expected = 'value';
          }
          at++;
          continue;
        }
      }
      if (code === closeBrace || code === closeBracket) {
        if (expected !== (isObject ? 'name or }' : 'value or ]') && expected !== 'what follows') return false;
        if (isObject !== (code === closeBrace)) return false;
        at++;
        if (isObject) {
          objects.set(object, objectEnd, at);
          objects.set(object, follower, objects.length);
          if (open.get(top, isUnsorted) === 1) yield* this.sort(object);
        }
        open.length = top;
        this.path.length = Math.min(this.path.length, top);
        expected = 'what follows';
      } else if (expected === 'what follows') return false;
      else if (expected === 'colon') {
        if (code !== colon) return false;
        at++;
        expected = 'value';
      } else if (code === quote) {
        let end = this.readString(at + 1);
        for (; end < none; end = this.readString(-end)) if (this.isSliceDone(0)) yield;
        if (end === none) return false;
        const isName: boolean = expected === 'name' || expected === 'name or }';
        if (isName) this.addMember(top, members.add(at, end, none, none, objects.length));
        at = end;
        expected = isName ? 'colon' : 'what follows';
      } else if (expected === 'name' || expected === 'name or }') return false;
      else if (code === openBrace || code === openBracket) {
        this.enter();
        at++;
        const isOfObject = code === openBrace;
        open.add(isOfObject ? objects.add(none, none, none) : none, isOfObject ? none : 0, none, 0);
        expected = isOfObject ? 'name or }' : 'value or ]';
      } else {
        literal.lastIndex = at;
        if (!literal.test(text)) return false;
        this.work += literal.lastIndex - at;
        at = literal.lastIndex;
        expected = 'what follows';
      }
    }
  }

  /** Writes the canonical form. The stack of open objects is a table of its own, so no document is too deep. */
  *write(sink: Sink): Generator<void, void> {
    const { text, members, objects } = this;
    const writing = new IntegerTable(writingWidth);
    writing.add(text.length, 0, 0);
    while (writing.length > 0) {
      if (this.isSliceDone(stepWork)) yield;
      const top = writing.length - 1;
      const end = writing.get(top, rangeEnd);
      let at = writing.get(top, place);
      if (end !== none) {
        while (at < end && text.charCodeAt(at) !== openBrace) {
          if (this.isSliceDone(stepWork)) yield;
          if (text.charCodeAt(at) === quote) {
            sink('"', 0, 1);
            let close = this.readString(at + 1);
            for (at++; close < none; close = this.readString(at)) {
              this.writePart(at, -close, sink);
              at = -close;
              if (this.isSliceDone(0)) yield;
            }
            this.writePart(at, close - 1, sink);
            sink('"', 0, 1);
            at = close;
          } else if (isSpace(text.charCodeAt(at))) at++;
          else {
            const until = this.plainEnd(at, end);
            sink(text, at, until);
            at = until;
          }
        }
        if (at >= end) {
          writing.length = top;
          continue;
        }
        sink('{', 0, 1);
        const object = writing.get(top, extra);
        writing.set(top, place, objects.get(object, objectEnd));
        writing.set(top, extra, objects.get(object, follower));
        writing.add(none, objects.get(object, firstMember), 0);
      } else if (at === none) {
        sink('}', 0, 1);
        writing.length = top;
      } else {
        if (writing.get(top, extra) === 1) sink(',', 0, 1);
        writing.set(top, place, members.get(at, nextMember));
        writing.set(top, extra, 1);
        writing.add(members.get(at, valueEnd), members.get(at, nameStart), members.get(at, nextObject));
      }
    }
  }

  /** Whether it is time to yield. */
  private isSliceDone(work: number): boolean {
    this.work += work;
    if (this.work < this.portions.slice) return false;
    this.work = 0;
    return true;
  }

  /** Appends a member to the list of its object, unless it is excluded. */
  private addMember(top: number, member: number): void {
    const { open, members, objects } = this;
    open.set(top, current, member);
    if (this.path.length === open.length && this.excluded.has(this.pointerAt(top))) return;
    const previous = open.get(top, last);
    if (previous === none) objects.set(open.get(top, ofObject), firstMember, member);
    else {
      members.set(previous, nextMember, member);
      // Those of which it is not known yet are sorted too.
      if (this.isAfter(previous, member) !== false) open.set(top, isUnsorted, 1);
    }
    open.set(top, last, member);
  }

  /** Called when a container begins. The path gets no longer than the pointers, however deep and wide a document is. */
  private enter(): void {
    const { open, path, leading } = this;
    if (path.length < open.length) return;
    const pointer = open.length === 0 ? '' : this.pointerAt(open.length - 1);
    if (leading.has(pointer)) path.push(pointer);
  }

  /** The pointer to the member or element being read, in a container that leads to excluded members. */
  private pointerAt(top: number): string {
    const { open, members, text } = this;
    const step = open.get(top, current);
    if (open.get(top, ofObject) === none) return `${this.path[top]}/${step}`;
    const lexeme = text.slice(members.get(step, nameStart), members.get(step, nameEnd));
    this.work += lexeme.length;
    const name = JSON.parse(lexeme) as string;
    return `${this.path[top]}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
  }

  /** Writes a part of a string. */
  private writePart(start: number, end: number, sink: Sink): void {
    const part = this.text.slice(start, end);
    if (!part.includes('\\')) return sink(this.text, start, end);
    const escaped = JSON.stringify(JSON.parse(`"${part}"`));
    sink(escaped, 1, escaped.length - 1);
  }

  /** The end of a plain run: the next string, object or white space, or the end of the stride. */
  private plainEnd(start: number, end: number): number {
    const { text } = this;
    const limit = Math.min(end, start + this.portions.stride);
    let at = start;
    for (let code = text.charCodeAt(at); at < limit && code > space && code !== quote && code !== openBrace; ) {
      code = text.charCodeAt(++at);
    }
    this.work += at - start;
    return at;
  }

  /**
   * Continues to read a string. Returns the position after its closing quote; none if it is malformed; or, at the end of a stride, minus the position at
   * which to continue, which lies neither inside an escape nor between the halves of a surrogate pair.
   */
  private readString(from: number): number {
    const { text } = this;
    const limit = from + this.portions.stride;
    let at = from;
    let unit = from;
    while (at < limit) {
      const code = text.charCodeAt(at);
      if (code === quote) {
        this.work += at - from;
        return at + 1;
      }
      // Past the end of the text the code is NaN.
      if (!(code >= space)) return none;
      unit = at++;
      if (code !== backslash) continue;
      escapeSequence.lastIndex = unit;
      if (!escapeSequence.test(text)) return none;
      at = escapeSequence.lastIndex;
    }
    this.work += at - from;
    return (this.unitAt(unit) & 0xfc00) === 0xd800 ? -unit : -at;
  }

  /**
   * Whether a name sorts after another one. Compares them in place: a string for each of millions of names would be too much. Undefined: they are
   * equal for a stride, and `isStillAfter` continues.
   */
  private isAfter(one: number, other: number): boolean | undefined {
    this.left = this.members.get(one, nameStart) + 1;
    this.right = this.members.get(other, nameStart) + 1;
    return this.isStillAfter();
  }

  private isStillAfter(): boolean | undefined {
    for (const limit = this.left + this.portions.stride; this.left < limit; ) {
      const unit = this.unitAt(this.left);
      const otherUnit = this.unitAt(this.right);
      if (unit !== otherUnit) return unit > otherUnit;
      if (unit === none) return false;
      this.left += this.unitLength(this.left);
      this.right += this.unitLength(this.right);
    }
    return undefined;
  }

  /** The code unit written at this position of a string; for the closing quote none, which sorts before all others. */
  private unitAt(at: number): number {
    const { text } = this;
    const code = text.charCodeAt(at);
    this.work++;
    if (code === quote) return none;
    if (code !== backslash) return code;
    this.work += stepWork;
    return (JSON.parse(`"${text.slice(at, at + this.unitLength(at))}"`) as string).charCodeAt(0);
  }

  private unitLength(at: number): number {
    const { text } = this;
    return text.charCodeAt(at) !== backslash ? 1 : text.charAt(at + 1) === 'u' ? 6 : 2;
  }

  /** A stable bottom-up merge sort of the list, which can be suspended anywhere. */
  private *sort(object: number): Generator<void, void> {
    const { members, objects } = this;
    let width = 1;
    for (let runs = 2; runs > 1; width *= 2) {
      runs = 0;
      let written = none;
      let left = objects.get(object, firstMember);
      while (left !== none) {
        runs++;
        let right = left;
        let lefts = 0;
        for (; lefts < width && right !== none; lefts++) {
          if (this.isSliceDone(1)) yield;
          right = members.get(right, nextMember);
        }
        let rights = width;
        while (lefts > 0 || (rights > 0 && right !== none)) {
          if (this.isSliceDone(stepWork)) yield;
          let takesRight: boolean | undefined = lefts === 0;
          if (!takesRight && rights > 0 && right !== none) {
            takesRight = this.isAfter(left, right);
            for (; takesRight === undefined; takesRight = this.isStillAfter()) if (this.isSliceDone(0)) yield;
          }
          const taken = takesRight ? right : left;
          if (takesRight) {
            right = members.get(right, nextMember);
            rights--;
          } else {
            left = members.get(left, nextMember);
            lefts--;
          }
          if (written === none) objects.set(object, firstMember, taken);
          else members.set(written, nextMember, taken);
          written = taken;
        }
        left = right;
      }
      members.set(written, nextMember, none);
    }
  }
}

function isSpace(code: number): boolean {
  return code === space || code === lineFeed || code === carriageReturn || code === tab;
}
