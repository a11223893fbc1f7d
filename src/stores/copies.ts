/** Copies: bytes that nobody else holds, side by side in slabs. */
import { Slab } from '../core/slab.js';

export class Copies {
  private readonly slab = new Slab();

  /** A copy of what lies from `start` on, up to `end`. */
  of(value: Uint8Array, start = 0, end = value.byteLength): Uint8Array {
    const copy = this.slab.take(end - start);
    copy.set(end - start === value.byteLength ? value : value.subarray(start, end));
    return copy;
  }
}
