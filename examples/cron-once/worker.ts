/** One of several processes that all try to run the job at each tick. The lock and the fence let one of them do it. */
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { fencedGuard, isRejected, mutex, StaleFenceError } from 'holdfast';
import { sqliteStore } from 'holdfast/sqlite';

const [file, everyMs] = [process.argv[2]!, Number(process.argv[3])];
const db = new DatabaseSync(file);
const locks = mutex({ store: sqliteStore(new DatabaseSync(file)), ttl: '1s' });

for (;;) {
  const tick = Math.floor(Date.now() / everyMs) + 1;
  await sleep(tick * everyMs - Date.now());
  try {
    await locks.run('cron:digest', ({ signal, fence }) => digest(tick, signal, fence), { wait: everyMs * 2 });
  } catch (error) {
    // Another process had the lock all the time, or has taken over: there will be another tick.
    if (!isRejected(error) && !(error instanceof StaleFenceError)) console.error(`${process.pid}: ${error}`);
  }
}

async function digest(tick: number, signal: AbortSignal, fence: number): Promise<void> {
  const isDone = db.prepare('SELECT 1 FROM digests WHERE tick = ?').get(tick) !== undefined;
  if (isDone) return;
  process.send?.({ tick, begins: process.pid });
  await sleep(everyMs / 4, undefined, { signal });
  db.exec('BEGIN IMMEDIATE');
  try {
    // A process that has lost the lock cannot get past this row.
    const guard = fencedGuard({ resource: 'digests', fence, placeholders: '?' });
    if (db.prepare(guard.text).run(...(guard.values as [string, number])).changes === 0) {
      throw new StaleFenceError({ resource: 'digests', fence });
    }
    db.prepare('INSERT INTO digests (tick, pid) VALUES (?, ?)').run(tick, process.pid);
    db.exec('COMMIT');
  } catch (error) {
    db.exec('ROLLBACK');
    throw error;
  }
}
