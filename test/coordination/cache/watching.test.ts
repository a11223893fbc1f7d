import { describe, expect, it } from 'vitest';
import type { Backing, KeyWatch } from '../../../src/coordination/cache/backing.js';
import { Watching } from '../../../src/coordination/cache/watching.js';

/** A store that reports changes, as far as its watches are ready. */
function setUp() {
  const watches = new Map<string, { changes: number; isReady: boolean }>();
  const released: string[] = [];
  const backing = {
    watch(_kind: 'key' | 'tag', text: string) {
      const watch = watches.get(text) ?? { changes: 0, isReady: true };
      watches.set(text, watch);
      return watch as KeyWatch;
    },
    release(watch: KeyWatch) {
      for (const [text, one] of watches) if (one === (watch as unknown)) released.push(text);
    },
  } as Partial<Backing> as Backing;
  const tell = (text: string) => {
    watches.get(text)!.changes++;
  };
  return { watching: new Watching(backing, 'key'), watches, released, tell };
}

describe('what a flight is told of changes', () => {
  it('is complete only if the key was being watched when the store was asked', () => {
    const { watching, watches } = setUp();
    expect(watching.isWhole).toBe(false);
    watching.note();
    expect(watching.isWhole).toBe(false);
    watching.key();
    expect(watching.isWhole).toBe(false);
    watching.note();
    expect(watching.isWhole).toBe(true);
    watches.get('key')!.isReady = false;
    watching.note();
    expect(watching.isWhole).toBe(false);
  });

  it('is not complete if one of the tags is not watched, and tags alone do not make it complete', () => {
    const { watching, watches } = setUp();
    watching.tags(['blue']);
    expect(watching.isWhole).toBe(false);
    watching.key();
    watching.note();
    watching.tags(['blue', 'red']);
    expect(watching.isWhole).toBe(true);
    watches.get('red')!.isReady = false;
    watching.tags(['blue', 'red']);
    expect(watching.isWhole).toBe(false);
  });

  it('counts every change of the key and the tags since the store was asked', () => {
    const { watching, tell } = setUp();
    watching.key();
    tell('key');
    watching.note();
    expect(watching.hasHeard).toBe(false);
    watching.tags(['blue']);
    expect(watching.hasHeard).toBe(false);
    tell('key');
    expect(watching.hasHeard).toBe(true);
    tell('blue');
    expect(watching.hasHeard).toBe(true);
    watching.note();
    expect(watching.hasHeard).toBe(false);
    tell('blue');
    expect(watching.hasHeard).toBe(true);
  });

  it('is kept when the tags turn out to be others, whatever was reported for those, before and after', () => {
    for (const before of [0, 1, 2]) {
      for (const after of [0, 1, 2, 3, 4]) {
        const { watching, tell } = setUp();
        watching.key();
        tell('key');
        watching.note();
        watching.tags(['blue']);
        for (let told = 0; told < before; told++) tell('key');
        watching.tags(['red']);
        for (let told = 0; told < after; told++) tell(told % 2 === 0 ? 'key' : 'red');
        expect([before, after, watching.hasHeard]).toEqual([before, after, before + after > 0]);
      }
    }
  });

  it('ends for tags that are no longer needed, and for all at the end', () => {
    const { watching, released } = setUp();
    watching.key();
    watching.tags(['blue', 'red']);
    watching.tags(['green']);
    expect(released).toEqual(['blue', 'red']);
    watching.end();
    expect(released).toEqual(['blue', 'red', 'green', 'key']);
    const other = setUp();
    other.watching.end();
    expect(other.released).toEqual([]);
  });
});
