/** The budgets of size and of import time. `node tools/gates/size.ts` shows where the bytes are. */
import { describe, expect, it } from 'vitest';
import { budgets, importMs, maxImportMs, sizeOf } from '../../tools/gates/size.ts';

describe('the bundle', () => {
  it.each(budgets)('of $title stays within $maxBytes bytes, minified and compressed', async ({ names, maxBytes }) => {
    const { bytes } = await sizeOf(names);
    expect(bytes).toBeGreaterThan(100);
    expect(bytes).toBeLessThanOrEqual(maxBytes);
  });

  it('leaves out what is not imported', async () => {
    const [small, all] = await Promise.all([sizeOf(['systemClock']), sizeOf([])]);
    expect(small.bytes).toBeLessThan(all.bytes / 3);
  });
});

describe('importing holdfast', () => {
  it(`costs a thread at most ${maxImportMs} ms`, () => {
    expect(importMs()).toBeLessThanOrEqual(maxImportMs);
  });
});
