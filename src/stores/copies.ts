/** Copies: bytes that nobody else holds, side by side in slabs. */
import { Slab } from '../core/slab.js';

export class Copies {
  private readonly slab = new Slab();

  /** A copy of what lies from `start` on. */
  of(value: Uint8Array, start = 0): Uint8Array {
    const copy = this.slab.take(value.byteLength - start);
    copy.set(start === 0 ? value : value.subarray(start));
    return copy;
  }
}
