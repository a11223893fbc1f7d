/**
 * Acts: what the upstream does to its callers, and when. Both copies of the upstream follow the same script.
 */

/** How likely each fault is for one call, from 0 to 1; the rest is answered. */
export interface Faults {
  readonly reset: number;
  readonly unavailable: number;
  readonly hang: number;
}

export interface Act {
  readonly name: string;
  /** What happens, for the reader of the report. */
  readonly story: string;
  /** How much of the whole run it takes, from 0 to 1. */
  readonly share: number;
  /** `'down'`: nobody listens, so connections are refused. */
  readonly weather: Faults | 'down';
}

/** How long a hung call takes to be answered after all. */
export const hangMs = 3_000;

export const acts: readonly Act[] = [
  { name: 'calm', story: 'all is well', share: 0.2, weather: { reset: 0, unavailable: 0, hang: 0 } },
  {
    name: 'flaky',
    story: '10 % of the calls are reset after the work, 12 % get 503 (half with Retry-After: 1)',
    share: 0.24,
    weather: { reset: 0.1, unavailable: 0.12, hang: 0 },
  },
  { name: 'outage', story: 'nobody listens: every connection is refused', share: 0.06, weather: 'down' },
  {
    name: 'hanging',
    story: `15 % of the calls do their work and then hang for ${hangMs / 1_000} s`,
    share: 0.28,
    weather: { reset: 0, unavailable: 0, hang: 0.15 },
  },
  { name: 'recovery', story: 'all is well again', share: 0.22, weather: { reset: 0, unavailable: 0, hang: 0 } },
];

/** When each act begins, in milliseconds from the start of a run; one more entry for the end. */
export function actBoundaries(durationMs: number): readonly number[] {
  const boundaries = [0];
  for (const { share } of acts) boundaries.push((boundaries.at(-1) ?? 0) + share * durationMs);
  return boundaries;
}

/** The act that plays at a time; the last one goes on until everybody has been answered. */
export function actIndexAt(elapsedMs: number, durationMs: number): number {
  const following = actBoundaries(durationMs).findIndex((beginsMs) => beginsMs > elapsedMs);
  return following === -1 ? acts.length - 1 : Math.max(0, following - 1);
}
