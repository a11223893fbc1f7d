import { DatabaseSync } from 'node:sqlite';

/**
 * A database that is never synced to the disk. Data handed to the system survives a killed or frozen process. Only a power loss needs a sync, and a
 * sync waits for everything that others write to the disk, and keeps all others out of the file meanwhile.
 */
export function unsynced(path: string): DatabaseSync {
  const db = new DatabaseSync(path);
  // Another process may be opening the file right now; a store sets its own timeout afterwards.
  db.exec('PRAGMA busy_timeout = 10000; PRAGMA synchronous = OFF');
  return db;
}
