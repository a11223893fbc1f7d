/**
 * Hash: 64 bits for a sequence of numbers and strings.
 *
 * Promise: the same sequence gives the same digest on every machine. It tells traces apart; it is not cryptographic.
 * After: MurmurHash3 (Austin Appleby, public domain), two lanes with different constants.
 */

const double = new DataView(new ArrayBuffer(8));

export class TraceHash {
  #low = 0x2545f491;
  #high = 0x6c8e9cf5;
  #words = 0;

  /** Adds 32 bits. */
  word(value: number): void {
    const low = Math.imul(value, 0xcc9e2d51);
    const high = Math.imul(value ^ this.#low, 0x85ebca77);
    this.#low = (Math.imul(rotate(this.#low ^ Math.imul(rotate(low, 15), 0x1b873593), 13), 5) + 0xe6546b64) | 0;
    this.#high = (Math.imul(rotate(this.#high ^ Math.imul(rotate(high, 17), 0xc2b2ae3d), 11), 5) + 0x38495ab5) | 0;
    this.#words++;
  }

  number(value: number): void {
    double.setFloat64(0, value);
    this.word(double.getInt32(0));
    this.word(double.getInt32(4));
  }

  text(value: string): void {
    this.word(value.length);
    for (let index = 0; index < value.length; index++) this.word(value.charCodeAt(index));
  }

  /** Sixteen hexadecimal digits for all that was added so far. */
  digest(): string {
    return hexadecimal(finish(this.#low ^ this.#words)) + hexadecimal(finish(this.#high ^ this.#low));
  }
}

/** 32 bits for a string. */
export function hashText(value: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < value.length; index++) hash = Math.imul(hash ^ value.charCodeAt(index), 0x01000193);
  return finish(hash);
}

/** Spreads every bit over all 32: the finalizer of MurmurHash3. */
export function finish(value: number): number {
  let hash = value;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

function rotate(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

function hexadecimal(word: number): string {
  return (word >>> 0).toString(16).padStart(8, '0');
}
