/** The four scenarios of `simulate`, and the messages to and from the thread that plays one. */
import type { CompositionWarning } from '../../core/composition.js';
import type { Report, Scenario, Second } from '../../testing/overload/overload.js';

/** A scenario as the user knows it. */
export interface NamedScenario {
  readonly name: 'brown-out' | 'spike' | 'slow' | 'dead';
  /** A description of the fault. */
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

export const afterSeconds = 40;

/** The simulated environment of the scenarios. */
export interface Settings {
  readonly seed: number;
  /** Capacity of the dependency, in calls per second. */
  readonly capacity: number;
  /** Mean latency of a call that does not wait, in milliseconds. */
  readonly latencyMs: number;
  /** Users in normal times, as a share of the capacity. */
  readonly load: number;
  readonly patienceMs: number;
}

/**
 * The time before the fault. Whether all is well then is told by users who come after the first quarter, which is a cold start, and whose patience
 * ends before the fault; they come in 10 s at least.
 */
export function beforeSecondsOf({ patienceMs }: Settings): number {
  return Math.max(20, Math.ceil((10 + patienceMs / 1_000) / 0.75));
}

/** Calls that the dependency processes at once. */
export function workersOf({ capacity, latencyMs }: Settings): number {
  return Math.max(1, Math.round((capacity * latencyMs) / 1_000));
}

/** The message to a thread. */
export interface Job {
  readonly url: string;
  readonly exportName: string | undefined;
  readonly scenario: NamedScenario;
  readonly settings: Settings;
}

/** The message from a thread. */
export type Answer = { readonly played: PlayedScenario } | { readonly problem: string };

/** An error in words, and whether it came from a policy of holdfast or one written for it. */
export interface Complaint {
  readonly text: string;
  readonly isPolicys: boolean;
}

/** The result of one scenario. */
export interface PlayedScenario {
  readonly name: NamedScenario['name'];
  readonly report: Report;
  readonly seconds: readonly Second[];
  /** Users that never got an answer, not even an error. */
  readonly unended: number;
  /** What most of the users got that were not served although nothing was wrong. */
  readonly complaint: Complaint | undefined;
  /** The warnings of `explain()`; the same in each scenario. */
  readonly warnings: readonly CompositionWarning[];
}
