/**
 * Known: what the store has of a key, decoded, in an instant of this process's clock.
 *
 * Promise: its age is counted from one instant, that of its fill, wherever it is shown, held or written again.
 */

import type { Placing, Windows } from './held.js';
import type { Filled } from './record.js';

/** When a value stops being fresh, and how long it was fresh in all. */
export interface Freshness {
  readonly freshMs: number;
  readonly ttlMs: number;
}

/** A value that the store has, decoded and judged. */
export interface Known<V> extends Placing<V> {
  readonly filled: Filled;
}

export function freshnessOf<V>({ filled, filledAtMs }: Placing<V>): Freshness {
  return { freshMs: filledAtMs + filled.freshMs, ttlMs: filled.freshMs };
}

/** For how long a value is of any use. */
export function usefulMs({ freshMs, staleMs, errorMs }: Windows): number {
  return Math.max(freshMs, staleMs, errorMs);
}

/** For how long it will still be of any use; less than nothing when it is not. */
export function leftMs<V>({ filled, filledAtMs }: Known<V>, nowMs: number): number {
  return filledAtMs + usefulMs(filled) - nowMs;
}

/** As it goes into the next version of its record: older, and gone once it is of no use. */
export function agedTo<V>(known: Known<V> | undefined, nowMs: number): Filled | undefined {
  if (known === undefined || leftMs(known, nowMs) <= 0) return undefined;
  return { ...known.filled, ageMs: nowMs - known.filledAtMs };
}
