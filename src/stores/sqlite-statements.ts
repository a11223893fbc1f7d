/** SQLite statements: the schema, and one statement for each verb. */

/** What `sqliteStore` needs of a database: `DatabaseSync` of node:sqlite and `Database` of better-sqlite3 have it. */
export interface SqliteDatabase {
  prepare(sql: string): SqliteStatement;
  exec(sql: string): unknown;
  /** node:sqlite, from Node 22.16. */
  readonly isTransaction?: boolean;
  /** better-sqlite3. */
  readonly inTransaction?: boolean;
}

/**
 * A prepared statement of either library.
 *
 * The rest parameters are not readonly: `@types/better-sqlite3` infers from them what a statement binds, and takes a readonly array for a single value.
 */
export interface SqliteStatement {
  all(...values: SqliteValue[]): unknown[];
  /** node:sqlite, from Node 22.16. */
  setReturnArrays?(isOn: boolean): void;
  run(...values: SqliteValue[]): { readonly changes: number | bigint };
}

type SqliteValue = string | number | null | Uint8Array;

// The value is the last column: a large one is spread over pages that are then followed only to read the value itself.
const schema = `
CREATE TABLE IF NOT EXISTS holdfast_entries (
  version INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT NOT NULL UNIQUE,
  written_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  value BLOB NOT NULL
)`;

// SQLite's clock has whole milliseconds and truncates, so an entry lives through its last one: it is never gone early.
const now = `(SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)`;

// Columns are named even where the name is the same: with other pragmas SQLite would put the table before it.
const readSql = `
SELECT value AS value, version AS version, now - written_ms AS age, expires_ms - now AS ttl
FROM holdfast_entries, ${now} WHERE key = ? AND expires_ms >= now`;

const writeSql = `
WITH given(key, value, ttl, condition) AS (VALUES (?, ?, ?, ?))
INSERT OR REPLACE INTO holdfast_entries (key, written_ms, expires_ms, value)
SELECT key, now, now + ttl, coalesce(value, x'') FROM given, ${now}
WHERE condition IS NULL OR condition = coalesce(
  (SELECT version FROM holdfast_entries AS held WHERE held.key = given.key AND held.expires_ms >= now), 0)
RETURNING version AS version`;

const removeSql = `
DELETE FROM holdfast_entries
WHERE key = ? AND version = coalesce(?, version) AND expires_ms >= (SELECT now FROM ${now})`;

const scanSql = `
SELECT count(*) AS rows, max(version) AS last, sum(expires_ms < now) AS expired
FROM (SELECT version, expires_ms FROM holdfast_entries WHERE version > ? ORDER BY version LIMIT ?), ${now}`;

const sweepSql = `
DELETE FROM holdfast_entries
WHERE version > ? AND version <= ? AND expires_ms < (SELECT now FROM ${now})`;

// The first column changes with commits of other connections, the second with changes of this one.
const movedSql = 'SELECT data_version AS others, total_changes() AS own FROM pragma_data_version()';

// The connection has another such table if it has a temporary one with AUTOINCREMENT.
const lastSql = `SELECT coalesce(max(seq), 0) AS version FROM main.sqlite_sequence WHERE name = 'holdfast_entries'`;

const versionSql = 'SELECT version AS version FROM holdfast_entries WHERE key = ?';

export interface Statements {
  readonly moved: SqliteStatement;
  readonly last: SqliteStatement;
  readonly version: SqliteStatement;
  readonly read: SqliteStatement;
  readonly write: SqliteStatement;
  readonly remove: SqliteStatement;
  readonly scan: SqliteStatement;
  readonly sweep: SqliteStatement;
}

/** Creates the table if it does not exist, and prepares all statements. */
export function setUp(db: SqliteDatabase): Statements {
  db.exec('PRAGMA busy_timeout = 0');
  // WAL mode is persistent, and shared by all connections. An in-memory database keeps a mode of its own.
  db.exec('PRAGMA journal_mode = WAL');
  db.exec(schema);
  return {
    read: prepared(db, readSql),
    write: prepared(db, writeSql),
    remove: prepared(db, removeSql),
    scan: prepared(db, scanSql),
    sweep: prepared(db, sweepSql),
    moved: prepared(db, movedSql),
    last: prepared(db, lastSql),
    version: prepared(db, versionSql),
  };
}

/** Rows are read by column name, even if the database was opened with `returnArrays`. */
function prepared(db: SqliteDatabase, sql: string): SqliteStatement {
  const statement = db.prepare(sql);
  statement.setReturnArrays?.(false);
  return statement;
}

export interface Row {
  readonly value: Uint8Array;
  readonly version: number | bigint;
  readonly age: number | bigint;
  readonly ttl: number | bigint;
}

export interface Scanned {
  readonly rows: number | bigint;
  readonly last: number | bigint | null;
  readonly expired: number | bigint | null;
}

export interface Moves {
  readonly others: number | bigint;
  readonly own: number | bigint;
}

export function versionOf(rows: unknown[]): number {
  const [row] = rows as Pick<Row, 'version'>[];
  return Number(row?.version ?? 0);
}
