/**
 * Durations: a number of milliseconds or a literal such as `'250ms'`, checked once, when a policy is built.
 */

/** A time span: a number of milliseconds, or a literal with its unit. */
export type Duration = number | `${number}${'ms' | 's' | 'm' | 'h' | 'd'}`;

const unitsMs: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const literal = /^(\d{1,15}(?:\.\d{1,9})?)(ms|s|m|h|d)$/;

/** The value in milliseconds, or undefined if it is not a duration. Negative values, NaN and Infinity are not durations. */
export function parseDuration(value: unknown): number | undefined {
  if (typeof value === 'number') return Number.isFinite(value) && value >= 0 ? value : undefined;
  if (typeof value !== 'string') return undefined;
  const match = literal.exec(value);
  if (match === null) return undefined;
  return Number(match[1]) * unitsMs[match[2]!]!;
}

/**
 * The milliseconds of a duration.
 *
 * @throws RangeError when the value is not a duration.
 */
export function toMs(value: Duration): number {
  const ms = parseDuration(value);
  if (ms === undefined)
    throw new RangeError(`a duration is a number of milliseconds or a literal such as '5s', got ${String(value)}`);
  return ms;
}
