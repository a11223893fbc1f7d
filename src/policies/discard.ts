/** Discard: handles values that the caller of a strategy does not get. */
import { takeUnjudged } from '../core/errors.js';
import type { Events } from '../core/events.js';
import type { Outcome } from '../core/outcome.js';

export interface Discarding {
  readonly events: Events;
  readonly onDiscard: ((value: unknown) => void) | undefined;
}

/**
 * Passes on the value of an outcome that the caller does not get. For an error it is the value that a `handles` could not judge, including that of a
 * guard further inside.
 */
export function discard({ events, onDiscard }: Discarding, outcome: Outcome): void {
  if (onDiscard === undefined) return;
  const value = outcome.ok ? outcome.value : takeUnjudged(outcome.error);
  if (outcome.ok || value !== undefined) events.contain('onDiscard', () => onDiscard(value));
}
