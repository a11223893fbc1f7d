/** Job: a digest that one process of the cluster at a time writes into a ledger, line by line. All of the processes try to. */
import { mutex } from '../../coordination/mutex/mutex.js';
import { sleepOn } from '../../testing/virtual-clock.js';
import type { Path, ShopParts } from './shop.js';

/** How long a lock outlives its owner. */
export const lockTtlMs = 1_000;
const linesPerRun = 6;
const lineMs = 100;

/** Writes digests until the signal aborts. Never rejects. */
export async function runJobs(path: Path, owner: string, parts: ShopParts, signal: AbortSignal): Promise<void> {
  const digest = path === 'naked' ? naked(owner, parts) : guarded(owner, parts);
  for (let run = 1; !signal.aborted; run++) {
    await digest(`${owner} ${run}`, signal).catch(() => {});
    await sleepOn(parts.clock, 50);
  }
}

type Digest = (run: string, signal: AbortSignal) => Promise<void>;

/** `SET key me NX PX 1000`, work, `DEL key`. */
function naked(owner: string, { clock, store, bank }: ShopParts): Digest {
  return async (run) => {
    const taken = await store.write('lock', new TextEncoder().encode(owner), { ttlMs: lockTtlMs, ifVersion: 0 });
    if (!taken.ok) return;
    for (let line = 0; line < linesPerRun; line++) {
      await bank({ kind: 'ledger', owner, run });
      await sleepOn(clock, lineMs);
    }
    await store.remove('lock');
  };
}

function guarded(owner: string, { clock, random, store, bank }: ShopParts): Digest {
  const locks = mutex({ name: 'digest', store, ttl: lockTtlMs, clock, random });
  return (run, signal) =>
    locks.run(
      'digest',
      async ({ lease, fence }) => {
        for (let line = 0; line < linesPerRun; line++) {
          // The process may have been frozen since the last line. If another process holds the lock now, this throws.
          lease.assertHeld();
          await bank({ kind: 'ledger', owner, run, fence });
          await sleepOn(clock, lineMs);
        }
      },
      { signal },
    );
}
