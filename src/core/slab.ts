/**
 * Slab: room for many small byte strings in one buffer, since a buffer for each costs more than what is done with it.
 *
 * Promise: no two of them share a byte, and none is given out twice; all are zero. One that somebody keeps holds its slab, so a slab is
 * small, and what is large has a buffer of its own.
 */

const slabBytes = 8192;
const largestInSlab = 1024;

export class Slab {
  private buffer = new ArrayBuffer(0);
  private used = 0;

  take(length: number): Uint8Array<ArrayBuffer> {
    if (length > largestInSlab) return new Uint8Array(length);
    if (this.used + length > this.buffer.byteLength) {
      this.buffer = new ArrayBuffer(slabBytes);
      this.used = 0;
    }
    const taken = new Uint8Array(this.buffer, this.used, length);
    this.used += length;
    return taken;
  }
}
