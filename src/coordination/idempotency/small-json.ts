/**
 * Small JSON: the canonical form of an ordinary small document, in one pass.
 *
 * Promise: what it answers is what {@link canonicalJson} writes, at a quarter of the price. What it does not care for (escapes, depth, what is
 * no JSON) it leaves to that.
 */

const deepest = 32;
/** A number, true, false or null, from a place on. */
const literal = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;

/** Undefined: not for this pass. */
export function smallCanonicalJson(text: string): string | undefined {
  const document = new Document(text);
  const canonical = document.value(0);
  if (canonical === undefined || document.skipSpace() < text.length) return undefined;
  return canonical;
}

class Document {
  private readonly text: string;
  private at = 0;

  constructor(text: string) {
    this.text = text;
  }

  /** The value that begins here, behind white space. */
  value(depth: number): string | undefined {
    const { text } = this;
    const from = this.skipSpace();
    const code = text.charCodeAt(from);
    if (code === 0x22) return this.string();
    if (code === 0x7b) return depth < deepest ? this.object(depth) : undefined;
    if (code === 0x5b) return depth < deepest ? this.array(depth) : undefined;
    literal.lastIndex = from;
    if (!literal.test(text)) return undefined;
    this.at = literal.lastIndex;
    return text.slice(from, this.at);
  }

  /** The place of what comes behind white space. */
  skipSpace(): number {
    const { text } = this;
    let code = text.charCodeAt(this.at);
    while (code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09) code = text.charCodeAt(++this.at);
    return this.at;
  }

  /** With its quotes. */
  private string(): string | undefined {
    const { text } = this;
    const from = this.at;
    for (let at = from + 1; ; at++) {
      const code = text.charCodeAt(at);
      if (code === 0x22) {
        this.at = at + 1;
        return text.slice(from, at + 1);
      }
      // At the end of the text it is NaN.
      if (!(code >= 0x20) || code === 0x5c) return undefined;
    }
  }

  private array(depth: number): string | undefined {
    this.at++;
    if (this.isNext(0x5d)) return '[]';
    let written = '[';
    for (;;) {
      const value = this.value(depth + 1);
      if (value === undefined) return undefined;
      written += value;
      if (this.isNext(0x5d)) return `${written}]`;
      if (!this.isNext(0x2c)) return undefined;
      written += ',';
    }
  }

  private object(depth: number): string | undefined {
    this.at++;
    if (this.isNext(0x7d)) return '{}';
    const names: string[] = [];
    const members: string[] = [];
    let isSorted = true;
    let last = '';
    for (;;) {
      if (this.text.charCodeAt(this.skipSpace()) !== 0x22) return undefined;
      const lexeme = this.string();
      if (lexeme === undefined || !this.isNext(0x3a)) return undefined;
      const value = this.value(depth + 1);
      if (value === undefined) return undefined;
      // The closing quote must not count: a blank and a "!" are less.
      const name = lexeme.slice(1, -1);
      isSorted &&= name >= last;
      last = name;
      names.push(name);
      members.push(`${lexeme}:${value}`);
      if (this.isNext(0x7d)) break;
      if (!this.isNext(0x2c)) return undefined;
    }
    if (!isSorted) {
      const order = names.map((_, index) => index);
      // Equal names stay in their order.
      order.sort((one, other) => (names[one]! < names[other]! ? -1 : names[one] === names[other] ? 0 : 1));
      return `{${order.map((index) => members[index]).join(',')}}`;
    }
    let written = `{${members[0]}`;
    for (let index = 1; index < members.length; index++) written += `,${members[index]}`;
    return `${written}}`;
  }

  private isNext(code: number): boolean {
    if (this.text.charCodeAt(this.skipSpace()) !== code) return false;
    this.at++;
    return true;
  }
}
