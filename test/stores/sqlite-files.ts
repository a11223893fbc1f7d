/** Files and databases for the tests of the SQLite store, with every library that is installed here. */
import { rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { SqliteDatabase } from '../../src/stores/sqlite.js';
import { temporaryFolder } from '../support/temporary-folder.ts';

export type OpenDatabase = SqliteDatabase & { close(): unknown };

export interface Driver {
  readonly title: string;
  readonly open: (path: string) => OpenDatabase;
}

/** better-sqlite3 is a binary for each platform, so it is tested only where that binary exists. In CI a missing one is an error. */
function betterSqlite3(): Driver[] {
  const require = createRequire(import.meta.url);
  try {
    const Database = require('better-sqlite3') as new (path: string) => OpenDatabase;
    new Database(':memory:').close();
    return [{ title: 'better-sqlite3', open: (path) => new Database(path) }];
  } catch (error) {
    if (process.env.CI) throw error;
    console.log(`Skipped: better-sqlite3 is not available: ${(error as Error).message}.`);
    return [];
  }
}

export const nodeSqlite: Driver = { title: 'node:sqlite', open: (path) => new DatabaseSync(path) };
export const drivers: readonly Driver[] = [nodeSqlite, ...betterSqlite3()];

/** The path of a database in a folder of its own, which is removed at the end of the block. */
export function temporaryDatabase(): { readonly path: string } & Disposable {
  const folder = temporaryFolder('sqlite');
  return { path: join(folder, 'store.db'), [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) };
}
