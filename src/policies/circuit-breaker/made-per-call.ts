/**
 * Made per call: detects circuit breakers that are created for each call or request instead of once.
 *
 * Such a breaker sees one call and never opens, and nothing else would reveal it. Breakers that a registry keeps, one per key, are not such a
 * mistake.
 */
import { type Clock, systemClock } from '../../core/clock.js';

/** A program that starts does not create this many breakers of one name within a second; calls do. */
const suspectPerSecond = 100;

const counts = new Map<string, number>();
const told = new Set<string>();
let secondEndsMs = 0;

/** Records that a breaker of this name was created. A custom clock is a simulation, where an hour may pass in a second. */
export function noteMade(name: string, clock: Clock = systemClock): void {
  if (clock !== systemClock) return;
  const nowMs = systemClock.now();
  if (nowMs >= secondEndsMs) {
    counts.clear();
    secondEndsMs = nowMs + 1_000;
  }
  const count = (counts.get(name) ?? 0) + 1;
  counts.set(name, count);
  // Each name is reported once; if there is no end of names, reporting stops.
  if (count < suspectPerSecond || told.has(name) || told.size > 100) return;
  told.add(name);
  const text =
    `circuitBreaker: ${count} breakers named "${name}" were made within a second; one that is made for a call never opens. ` +
    'Make it once, or one per key with keyed()';
  globalThis.process?.emitWarning?.(text, { code: 'HOLDFAST_BREAKER_PER_CALL' });
}

/** Records that a breaker was put into a registry, which keeps it. */
export function noteKept(name: string, clock: Clock = systemClock): void {
  const count = counts.get(name);
  if (clock === systemClock && count !== undefined) counts.set(name, count - 1);
}
