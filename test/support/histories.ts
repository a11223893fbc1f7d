/**
 * How many histories of concurrent clients are played, and from which seed: a few in every run, `npm run histories` for many.
 * `HOLDFAST_HISTORIES` and `HOLDFAST_SEED` say otherwise; the same two replay a run.
 */
import { randomInt } from 'node:crypto';

const asked = Number(process.env.HOLDFAST_HISTORIES ?? 0);

/** The same seeds in every usual run; others in each long one, which says them. */
export const firstSeed = Number(process.env.HOLDFAST_SEED ?? (asked > 0 ? randomInt(1_000_000_000) : 1));

/** For a test that plays histories. */
export const historiesTimeoutMs = asked > 0 ? 3_600_000 : 300_000;

if (asked > 0) console.log(`histories: ${asked}, HOLDFAST_SEED=${firstSeed}`);

export function historyCount(usual: number): number {
  return asked > 0 ? asked : usual;
}
