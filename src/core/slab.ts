/**
 * Slab: space for many small byte strings in one buffer, because a buffer for each costs more than the work done with it.
 *
 * Promise: no two pieces share a byte, and no byte is given out twice; all bytes are zero. A piece that is kept keeps its whole slab in memory, so a
 * slab is small, and a large piece gets a buffer of its own.
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
