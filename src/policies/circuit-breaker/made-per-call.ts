/**
 * Made per call: finds out when circuit breakers are made for each call, or each request, instead of once.
 *
 * Such a breaker sees one call and never opens; nothing else would tell. Those that a registry keeps, a breaker per key, are no such mistake.
 */
import { type Clock, systemClock } from '../../core/clock.js';

/** As many of one name within a second are made by calls, not by a program that starts. */
const suspectPerSecond = 100;

const counts = new Map<string, number>();
const told = new Set<string>();
let secondEndsMs = 0;

/** A breaker of this name was made. A clock of one's own is a simulation, where an hour may pass in a second. */
export function noteMade(name: string, clock: Clock = systemClock): void {
  if (clock !== systemClock) return;
  const nowMs = systemClock.now();
  if (nowMs >= secondEndsMs) {
    counts.clear();
    secondEndsMs = nowMs + 1_000;
  }
  const count = (counts.get(name) ?? 0) + 1;
  counts.set(name, count);
  // Names without end are told of once.
  if (count < suspectPerSecond || told.has(name) || told.size > 100) return;
  told.add(name);
  const text =
    `circuitBreaker: ${count} breakers named "${name}" were made within a second; one that is made for a call never opens. ` +
    'Make it once, or one per key with keyed()';
  globalThis.process?.emitWarning?.(text, { code: 'HOLDFAST_BREAKER_PER_CALL' });
}

/** It went into a registry, which keeps it. */
export function noteKept(name: string, clock: Clock = systemClock): void {
  const count = counts.get(name);
  if (clock === systemClock && count !== undefined) counts.set(name, count - 1);
}
