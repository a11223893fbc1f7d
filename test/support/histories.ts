/**
 * How many histories of concurrent clients are played, and from which seed: a few in every run, many with `npm run histories`. `HOLDFAST_HISTORIES`
 * and `HOLDFAST_SEED` override both; the same two values replay a run.
 */
import { randomInt } from 'node:crypto';

const asked = Number(process.env.HOLDFAST_HISTORIES ?? 0);

/** The same seed in every normal run; a random one in each long run, which prints it. */
export const firstSeed = Number(process.env.HOLDFAST_SEED ?? (asked > 0 ? randomInt(1_000_000_000) : 1));

/** The timeout of a test that plays histories. */
export const historiesTimeoutMs = asked > 0 ? 3_600_000 : 300_000;

if (asked > 0) console.log(`histories: ${asked}, HOLDFAST_SEED=${firstSeed}`);

export function historyCount(usual: number): number {
  return asked > 0 ? asked : usual;
}
