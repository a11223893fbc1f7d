/**
 * Integers: a growable list of 32-bit integers that is cheap when it is short and cheap when it has millions.
 *
 * Promise: growing copies nothing, and what has been written is nothing that a garbage collection has to look at, so that neither
 * holds up the event loop.
 */

const headLength = 1_024;
const pageBits = 16;
const pageLength = 0x1_0000;

export class Integers {
  length = 0;
  private readonly head: number[] = [];
  private readonly pages: Int32Array[] = [];

  get(index: number): number {
    return index < headLength ? this.head[index]! : this.pages[index >> pageBits]![index & (pageLength - 1)]!;
  }

  set(index: number, value: number): void {
    if (index < headLength) this.head[index] = value;
    else this.pages[index >> pageBits]![index & (pageLength - 1)] = value;
  }

  push(value: number): void {
    const index = this.length++;
    if (index >= headLength) this.pages[index >> pageBits] ??= new Int32Array(pageLength);
    this.set(index, value);
  }
}
