/** Copies: bytes that nobody else holds, for less than a buffer of their own. */

/** One copy that somebody keeps holds its slab, so a slab is small, and a large value has a buffer of its own. */
const slabBytes = 8192;
const largestInSlab = 1024;

/** Copies that lie side by side in a slab no two of them share a byte of: a buffer for each would cost more than the read. */
export class Copies {
  private slab = new ArrayBuffer(0);
  private used = 0;

  /** A copy of what lies from `start` on. */
  of(value: Uint8Array, start = 0): Uint8Array {
    const bytes = value.byteLength - start;
    if (bytes > largestInSlab) {
      const copy = new Uint8Array(bytes);
      copy.set(start === 0 ? value : value.subarray(start));
      return copy;
    }
    if (this.used + bytes > this.slab.byteLength) {
      this.slab = new ArrayBuffer(slabBytes);
      this.used = 0;
    }
    const copy = new Uint8Array(this.slab, this.used, bytes);
    this.used += bytes;
    copy.set(start === 0 ? value : value.subarray(start));
    return copy;
  }
}
