import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Cells, type Page } from '../../src/stores/cells.js';

describe('Cells', () => {
  it('never gives a byte to two owners, in whatever order cells are taken and given back', () => {
    const length = fc.constantFrom(0, 60, 190, 700, 1024);
    const step = fc.record({ length, isGivenBack: fc.nat(3).map((one) => one === 0), which: fc.nat() });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 400, size: 'max' }), (steps) => {
        const cells = new Cells();
        const taken: { page: Page; offset: number; length: number; mark: number }[] = [];
        for (const [mark, { length, isGivenBack, which }] of steps.entries()) {
          if (isGivenBack && taken.length > 0) {
            const [{ page, offset }] = taken.splice(which % taken.length, 1) as [(typeof taken)[0]];
            page.free(offset);
            continue;
          }
          const page = cells.pageFor(length)!;
          const offset = page.take();
          page.bytes.subarray(offset).fill(mark, 0, length);
          taken.push({ page, offset, length, mark: mark & 0xff });
        }
        for (const { page, offset, length, mark } of taken) {
          expect(offset + length).toBeLessThanOrEqual(page.bytes.length);
          expect(page.bytes.subarray(offset, offset + length).every((byte) => byte === mark)).toBe(true);
        }
      }),
      { numRuns: 100, seed: 20261129 },
    );
  });

  it('reuses cells that were given back, and releases empty pages', () => {
    const cells = new Cells();
    const fill = () =>
      Array.from({ length: 320 }, () => {
        const page = cells.pageFor(200)!;
        return { page, offset: page.take() };
      });
    const first = fill();
    const pages = new Set(first.map(({ page }) => page));
    expect(pages.size).toBe(10);
    for (const { page, offset } of first) page.free(offset);
    const again = new Set(fill().map(({ page }) => page));
    expect([...again].filter((page) => pages.has(page))).toHaveLength(1);
  });

  it('has none for large byte strings', () => {
    expect(new Cells().pageFor(1025)).toBeUndefined();
  });
});
