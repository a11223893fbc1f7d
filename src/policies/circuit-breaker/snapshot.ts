/** Snapshot: the state of a circuit in durations instead of instants, so that another process, or a later run, can resume from it. */

const states = ['closed', 'open', 'half-open', 'ramping', 'isolated', 'forced-closed'] as const;

/** The state of a circuit. `'isolated'` and `'forced-closed'` are set by an operator and last until `reset()`. */
export type CircuitState = (typeof states)[number];

/** A circuit, in a form that `JSON.stringify` preserves. */
export interface CircuitSnapshot {
  readonly v: 1;
  readonly state: CircuitState;
  /** Changes of state so far. */
  readonly generation: number;
  /** How long the latest opening lasts, in milliseconds; 0 when there was none. */
  readonly openForMs: number;
  /** Time in the current state; 0 for a state that was never left. */
  readonly elapsedMs: number;
  /** Openings in the current series: each is longer than the one before. */
  readonly openings: number;
  /** The counts in the current state; all 0 where results do not count. */
  readonly window: {
    readonly calls: number;
    readonly failures: number;
    readonly slow: number;
    readonly failuresInARow: number;
  };
  /** Stale results: they arrived after a change of state and count nowhere else. */
  readonly staleResults: number;
}

const longestMs = 2_147_483_647;

/** Whether a foreign value is a consistent snapshot, as far as `restore` uses it. */
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
