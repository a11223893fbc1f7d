/**
 * Integer table: growable rows of 32-bit integers, cheap for a few rows and for millions.
 *
 * Promise: growing copies nothing, and the garbage collector does not scan the contents, so neither blocks the event loop.
 */

const headLength = 1_024;
const pageBits = 16;
const pageLength = 0x1_0000;

export class IntegerTable {
  /** The number of rows. Decrease it to drop rows; the next `add` overwrites them. */
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

  /** Adds a row and returns its index. */
  add(...values: readonly number[]): number {
    const row = this.length++;
    let column = 0;
    for (const value of values) this.set(row, column++, value);
    return row;
  }
}
