/**
 * Snapshot: a circuit in durations instead of instants, so that another process, or this one later, can go on from it.
 */

const states = ['closed', 'open', 'half-open', 'ramping', 'isolated', 'forced-closed'] as const;

/** Where a circuit is. `'isolated'` and `'forced-closed'` are an operator's word and last until `reset()`. */
export type CircuitState = (typeof states)[number];

/** A circuit as `JSON.stringify` keeps it. */
export interface CircuitSnapshot {
  readonly v: 1;
  readonly state: CircuitState;
  /** Changes of state so far. */
  readonly generation: number;
  /** How long the latest opening lasts, in milliseconds; 0 when there was none. */
  readonly openForMs: number;
  /** Time in the present state; 0 for one that was never left. */
  readonly elapsedMs: number;
  /** Openings in the present series: each is longer than the one before. */
  readonly openings: number;
  /** What is counted in the present state; all 0 where results do not count. */
  readonly window: {
    readonly calls: number;
    readonly failures: number;
    readonly slow: number;
    readonly failuresInARow: number;
  };
  /** Results that came after a change of state and therefore counted nowhere. */
  readonly staleResults: number;
}

const longestMs = 2_147_483_647;

/** Whether a value from outside is a snapshot that makes sense, as far as `restore` goes by it. */
export function isSnapshot(value: unknown): value is CircuitSnapshot {
  if (typeof value !== 'object' || value === null) return false;
  const { v, state, generation, openForMs, elapsedMs, openings } = value as Partial<Record<string, unknown>>;
  return (
    v === 1 &&
    (states as readonly unknown[]).includes(state) &&
    isCount(generation) &&
    isCount(openings) &&
    isDuration(openForMs, longestMs) &&
    isDuration(elapsedMs, Number.MAX_SAFE_INTEGER)
  );
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isDuration(value: unknown, maxMs: number): boolean {
  return typeof value === 'number' && value >= 0 && value <= maxMs;
}
