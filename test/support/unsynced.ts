import { DatabaseSync } from 'node:sqlite';

/**
 * A database of which nothing is synced to the disk. What the system was given outlives a process that is killed or frozen; only a loss
 * of power needs a sync, and that waits for all that others write to the disk, and keeps everybody else out of the file meanwhile.
 */
export function unsynced(path: string): DatabaseSync {
  const db = new DatabaseSync(path);
  // Another process may just be opening it; a store sets its own afterwards.
  db.exec('PRAGMA busy_timeout = 10000; PRAGMA synchronous = OFF');
  return db;
}
