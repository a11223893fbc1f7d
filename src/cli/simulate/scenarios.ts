/** The four scenarios that `simulate` plays, and what a thread is told to play one and tells of it. */
import type { CompositionWarning } from '../../core/composition.js';
import type { Report, Scenario, Second } from '../../testing/overload/overload.js';

/** A scenario as the user knows it. */
export interface NamedScenario {
  readonly name: 'brown-out' | 'spike' | 'slow' | 'dead';
  /** What goes wrong, in words. */
  readonly fault: string;
  readonly scenario: Scenario;
  readonly disturbanceSeconds: number;
}

export const scenarios: readonly NamedScenario[] = [
  { name: 'brown-out', fault: 'the dependency takes ten times as long', scenario: 'slow', disturbanceSeconds: 10 },
  { name: 'spike', fault: 'ten times as many users come', scenario: 'spike', disturbanceSeconds: 20 },
  { name: 'slow', fault: 'every answer comes a second later', scenario: 'late', disturbanceSeconds: 20 },
  { name: 'dead', fault: 'every call fails at once', scenario: 'down', disturbanceSeconds: 20 },
];

export const beforeSeconds = 20;
export const afterSeconds = 40;

/** The world that the scenarios take place in. */
export interface Settings {
  readonly seed: number;
  /** What the dependency can do, in calls per second. */
  readonly capacity: number;
  /** What it takes for a call that does not wait, on average. */
  readonly latencyMs: number;
  /** Users in ordinary times, as a share of the capacity. */
  readonly load: number;
  readonly patienceMs: number;
}

/** Calls that the dependency works on at once. */
export function workersOf({ capacity, latencyMs }: Settings): number {
  return Math.max(1, Math.round((capacity * latencyMs) / 1_000));
}

/** What a thread is told. */
export interface Job {
  readonly url: string;
  readonly exportName: string | undefined;
  readonly scenario: NamedScenario;
  readonly settings: Settings;
}

/** What it tells. */
export type Answer = { readonly played: PlayedScenario } | { readonly problem: string };

/** An error, in words, and whether a policy of holdfast, or one that was written for it, gave it. */
export interface Complaint {
  readonly text: string;
  readonly isPolicys: boolean;
}

/** What came of one scenario. */
export interface PlayedScenario {
  readonly name: NamedScenario['name'];
  readonly report: Report;
  readonly seconds: readonly Second[];
  /** Users who never heard anything, not even an error. */
  readonly unended: number;
  /** What most of the users got who were not served although nothing was wrong. */
  readonly complaint: Complaint | undefined;
  /** What `explain()` doubts; the same in each scenario. */
  readonly warnings: readonly CompositionWarning[];
}
