/** Copies: copies of bytes that nobody else refers to, side by side in slabs. */
import { Slab } from '../core/slab.js';

export class Copies {
  private readonly slab = new Slab();

  /** A copy of the bytes from `start` to `end`. */
  of(value: Uint8Array, start = 0, end = value.byteLength): Uint8Array {
    const copy = this.slab.take(end - start);
    copy.set(end - start === value.byteLength ? value : value.subarray(start, end));
    return copy;
  }
}
