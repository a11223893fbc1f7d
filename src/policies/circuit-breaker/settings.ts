/** Settings: the checked options of a circuit breaker, flattened so that two sets can be compared field by field. */
import type { Clock } from '../../core/clock.js';
import type { HoldfastEvent } from '../../core/events.js';
import type { Handles } from '../../core/outcome.js';
import type { Group } from './group.js';

export interface Settings {
  readonly windowKind: 'time' | 'calls' | 'consecutive';
  /** The width of a bucket in milliseconds, or the number of calls. */
  readonly windowSize: number;
  /** This many consecutive failures open the circuit, whatever the window says. */
  readonly failuresInARow: number;
  readonly minimumCalls: number;
  readonly failureRate: number;
  /** Infinity when slow calls do not count. */
  readonly slowCallRate: number;
  readonly slowCallMs: number;
  readonly openForMs: number;
  readonly maxOpenForMs: number;
  /** The longest opening that a failure can ask for. */
  readonly longestHintMs: number;
  readonly permits: number;
  readonly successes: number;
  readonly probeTimeoutMs: number | undefined;
  /** 0: no ramp-up. */
  readonly rampUpMs: number;
  readonly handles: Handles;
  readonly random: () => number;
  readonly shadow: boolean;
  readonly stack: boolean;
  readonly on: ((event: HoldfastEvent) => void) | undefined;
  readonly clock: Clock | undefined;
  /** The registry that the breaker belongs to. */
  readonly group: Group | undefined;
}

/** Settings of a member of a group. */
export interface GroupSettings extends Settings {
  /** The breaker's settings outside the group. */
  readonly alone: Settings;
}

export function sameSettings(one: Settings, other: Settings): boolean {
  return (Object.keys(one) as (keyof Settings)[]).every((key) => one[key] === other[key]);
}
