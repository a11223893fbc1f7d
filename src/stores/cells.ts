/**
 * Cells: storage for byte strings that are kept for a while and then given back, side by side in pages. A separate buffer for each would cost a third of all
 * the memory that an idempotency key takes, and as much again in garbage collection.
 *
 * Promise: from `take` to `free` a cell belongs to one owner. An empty page is released, except for one of each size.
 */

/** Small, so that one long-lived byte string keeps little else alive. */
const pageBytes = 8192;
const step = 64;
const largest = 1024;

/** A page of cells of one size. */
export class Page {
  readonly bytes = new Uint8Array(pageBytes);
  readonly pages: Pages;
  /** Offsets of cells that were given back. */
  readonly freed: number[] = [];
  /** The cells from here on have never been used. */
  fresh = 0;
  used = 0;
  /** Position among the pages with room; -1: this page has none. */
  index = -1;

  constructor(pages: Pages) {
    this.pages = pages;
  }

  /** Reserves a cell, and returns its offset. */
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

/** The pages with room, for one size of cell. */
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
    // Sizes are spaced so that at most a few sixths of a cell stay empty, except for the shortest byte strings.
    for (let cellBytes = step; cellBytes <= largest; cellBytes += cellBytes < 256 ? step : 2 * step) {
      const pages = new Pages(cellBytes);
      while (this.sizes.length * step < cellBytes) this.sizes.push(pages);
    }
  }

  /** A page with room for this many bytes; undefined: byte strings of this length are better kept on their own. */
  pageFor(length: number): Page | undefined {
    return length > largest ? undefined : this.sizes[Math.max(0, Math.ceil(length / step) - 1)]!.open();
  }
}
