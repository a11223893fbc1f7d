/**
 * Cells: places for byte strings that are kept for a while and then given back, side by side in pages. A buffer for each would cost a third
 * of all that an idempotency key costs in memory, and the garbage collector as much again.
 *
 * Promise: from `take` to `free` a cell belongs to one owner; a page of which nothing is in use is let go, but for one of each size.
 */

/** Small, so that one byte string that stays long holds little else. */
const pageBytes = 8192;
const step = 64;
const largest = 1024;

/** Some cells of one size. */
export class Page {
  readonly bytes = new Uint8Array(pageBytes);
  readonly pages: Pages;
  /** Offsets of cells that were given back. */
  readonly freed: number[] = [];
  /** From here on no cell has been in use. */
  fresh = 0;
  used = 0;
  /** Place among the pages with room; -1: there is none in it. */
  index = -1;

  constructor(pages: Pages) {
    this.pages = pages;
  }

  /** Where a cell of it begins. */
  take(): number {
    const { freed, pages } = this;
    this.used++;
    let offset = freed.pop();
    if (offset === undefined) {
      offset = this.fresh;
      this.fresh += pages.cellBytes;
    }
    if (freed.length === 0 && this.fresh + pages.cellBytes > pageBytes) pages.remove(this);
    return offset;
  }

  free(offset: number): void {
    const { freed, pages } = this;
    this.used--;
    freed.push(offset);
    if (this.index < 0) pages.add(this);
    if (this.used === 0 && pages.length > 1) pages.remove(this);
  }
}

/** The pages that have room, of cells of one size. */
class Pages {
  readonly cellBytes: number;
  private readonly withRoom: Page[] = [];

  constructor(cellBytes: number) {
    this.cellBytes = cellBytes;
  }

  get length(): number {
    return this.withRoom.length;
  }

  open(): Page {
    const last = this.withRoom.at(-1);
    if (last !== undefined) return last;
    const page = new Page(this);
    this.add(page);
    return page;
  }

  add(page: Page): void {
    page.index = this.withRoom.length;
    this.withRoom.push(page);
  }

  remove(page: Page): void {
    const last = this.withRoom.pop()!;
    if (last !== page) {
      this.withRoom[page.index] = last;
      last.index = page.index;
    }
    page.index = -1;
  }
}

export class Cells {
  private readonly sizes: Pages[] = [];

  constructor() {
    // Some sixths or less of a cell stay empty, but for the shortest byte strings.
    for (let cellBytes = step; cellBytes <= largest; cellBytes += cellBytes < 256 ? step : 2 * step) {
      const pages = new Pages(cellBytes);
      while (this.sizes.length * step < cellBytes) this.sizes.push(pages);
    }
  }

  /** A page with room for so many bytes; undefined: so many are better kept by themselves. */
  pageFor(length: number): Page | undefined {
    return length > largest ? undefined : this.sizes[Math.max(0, Math.ceil(length / step) - 1)]!.open();
  }
}
