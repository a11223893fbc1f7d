/**
 * Integer table: growable rows of 32-bit integers, cheap when they are few and cheap when there are millions.
 *
 * Promise: growing copies nothing, and what has been written is nothing that a garbage collection has to look at, so that neither
 * holds up the event loop.
 */

const headLength = 1_024;
const pageBits = 16;
const pageLength = 0x1_0000;

export class IntegerTable {
  /** How many rows there are. A row that is taken away by it is written anew by the next `add`. */
  length = 0;
  private readonly width: number;
  private readonly head: number[] = [];
  private readonly pages: Int32Array[] = [];

  constructor(width: number) {
    this.width = width;
  }

  get(row: number, column: number): number {
    const index = row * this.width + column;
    return index < headLength ? this.head[index]! : this.pages[index >> pageBits]![index & (pageLength - 1)]!;
  }

  set(row: number, column: number, value: number): void {
    const index = row * this.width + column;
    if (index < headLength) {
      this.head[index] = value;
      return;
    }
    this.pages[index >> pageBits] ??= new Int32Array(pageLength);
    this.pages[index >> pageBits]![index & (pageLength - 1)] = value;
  }

  /** Adds a row, and answers which it is. */
  add(...values: readonly number[]): number {
    const row = this.length++;
    let column = 0;
    for (const value of values) this.set(row, column++, value);
    return row;
  }
}
