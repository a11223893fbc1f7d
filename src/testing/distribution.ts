/**
 * Distribution: how long something takes, as given by an option.
 *
 * Promise: each value drawn is a whole number of ticks of 1/1024 ms, never negative, so sums of instants are exact.
 */
import { type Duration, parseDuration } from '../core/duration.js';
import type { Field } from '../core/options.js';
import type { SeededRandom } from './random.js';

/**
 * How long something takes: always the same; evenly spread from `min` to `max`; exponential with a `mean`, or gamma
 * when a `shape` is given too (from 0.01 to 1000, larger keeps closer to the mean); or a function that draws milliseconds.
 */
export type Distribution =
  | Duration
  | { readonly min: Duration; readonly max: Duration }
  | { readonly mean: Duration; readonly shape?: number }
  | ((random: SeededRandom) => number);

/** Draws milliseconds. */
export type Sampler = (random: SeededRandom) => number;

/** The step of virtual time: a power of two, so that adding instants loses nothing. */
export const tickMs = 1 / 1024;

/** The nearest whole tick. */
function toTicks(ms: number): number {
  return Math.round(ms / tickMs) * tickMs;
}

/** The first whole tick that is not before `ms`. */
export function upToTick(ms: number): number {
  return Math.ceil(ms / tickMs) * tickMs;
}

/** An option that is a {@link Distribution}. */
export function distribution(): Field<Sampler> {
  return {
    allowed: "a duration such as '5ms', { min, max }, { mean }, { mean, shape } or a function that draws milliseconds",
    parse: (value) => samplerOf(value as Distribution),
  };
}

function samplerOf(value: Distribution): Sampler | undefined {
  if (typeof value === 'function') return (random) => drawn(value(random));
  if (typeof value !== 'object' || value === null) {
    const ms = parseDuration(value);
    return ms === undefined ? undefined : () => toTicks(ms);
  }
  if ('min' in value) {
    const minMs = parseDuration(value.min);
    const maxMs = parseDuration(value.max);
    if (minMs === undefined || maxMs === undefined || minMs > maxMs) return undefined;
    return (random) => toTicks(random.between(minMs, maxMs));
  }
  const meanMs = parseDuration(value.mean);
  const shape = value.shape ?? 1;
  if (meanMs === undefined || !(shape >= 0.01 && shape <= 1000)) return undefined;
  return (random) => toTicks(random.gamma(meanMs, shape));
}

function drawn(ms: number): number {
  if (Number.isFinite(ms) && ms >= 0) return toTicks(ms);
  throw new RangeError(`a distribution drew ${String(ms)}, it must draw milliseconds from 0`);
}
