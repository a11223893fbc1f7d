import { describe, expect, it } from 'vitest';
import { Slab } from '../../src/core/slab.js';

describe('Slab', () => {
  it('hands out zeroed bytes that nothing else uses, small pieces side by side', () => {
    const slab = new Slab();
    const lengths = [1, 1024, 0, 1000, 1025, 4000, ...Array.from({ length: 40 }, (_, index) => index * 25)];
    const taken = lengths.map((length) => slab.take(length));
    for (const [index, bytes] of taken.entries()) {
      expect(bytes).toEqual(new Uint8Array(lengths[index]!));
      bytes.fill(index + 1);
    }
    for (const [index, bytes] of taken.entries()) expect(bytes.every((byte) => byte === index + 1)).toBe(true);
    expect(lengths.slice(0, 6).map((_, index) => taken[index]!.buffer.byteLength)).toEqual([
      ...[8192, 8192, 8192, 8192, 1025, 4000],
    ]);
    expect(new Set(taken.map(({ buffer }) => buffer)).size).toBeLessThan(8);
  });

  it('fills a buffer to the last byte', () => {
    const slab = new Slab();
    const buffers = Array.from({ length: 9 }, () => slab.take(1024).buffer);
    expect([new Set(buffers.slice(0, 8)).size, new Set(buffers).size]).toEqual([1, 2]);
  });
});
