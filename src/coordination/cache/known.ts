/**
 * Known: the store's entry of a key, decoded, with its times converted to this process's clock.
 *
 * Promise: wherever the value is served, held or rewritten, its age counts from one instant, that of its fill.
 */

import type { Placing, Windows } from './held.js';
import type { Filled } from './record.js';

/** When a value stops being fresh, and its whole time to live. */
export interface Freshness {
  readonly freshMs: number;
  readonly ttlMs: number;
}

/** A value of the store, decoded and found usable. */
export interface Known<V> extends Placing<V> {
  readonly filled: Filled;
}

export function freshnessOf<V>({ filled, filledAtMs }: Placing<V>): Freshness {
  return { freshMs: filledAtMs + filled.freshMs, ttlMs: filled.freshMs };
}

/** How long a value is of any use, from its fill. */
export function usefulMs({ freshMs, staleMs, errorMs }: Windows): number {
  return Math.max(freshMs, staleMs, errorMs);
}

/** How long it will still be of any use; negative if it is not. */
export function leftMs<V>({ filled, filledAtMs }: Known<V>, nowMs: number): number {
  return filledAtMs + usefulMs(filled) - nowMs;
}

/** The value as it goes into the next version of its record: with its present age; undefined once it is of no use. */
export function agedTo<V>(known: Known<V> | undefined, nowMs: number): Filled | undefined {
  if (known === undefined || leftMs(known, nowMs) <= 0) return undefined;
  return { ...known.filled, ageMs: nowMs - known.filledAtMs };
}
