/** Failures of SQLite: translates the errors of the libraries, and tells whether anything may have been done. */
import { messageOf, StoreError, type StoreFailure } from '../core/errors.js';

/** Primary result codes that node:sqlite gives as numbers, by the names that better-sqlite3 uses. */
const codeNames: Readonly<Record<number, string>> = {
  ...{ 1: 'SQLITE_ERROR', 3: 'SQLITE_PERM', 5: 'SQLITE_BUSY', 6: 'SQLITE_LOCKED', 8: 'SQLITE_READONLY' },
  ...{ 10: 'SQLITE_IOERR', 11: 'SQLITE_CORRUPT', 13: 'SQLITE_FULL', 14: 'SQLITE_CANTOPEN', 18: 'SQLITE_TOOBIG' },
  ...{ 19: 'SQLITE_CONSTRAINT', 23: 'SQLITE_AUTH', 26: 'SQLITE_NOTADB' },
};

const surelyNotApplied = new Set([
  ...['SQLITE_PERM', 'SQLITE_READONLY', 'SQLITE_CANTOPEN', 'SQLITE_TOOBIG', 'SQLITE_CONSTRAINT', 'SQLITE_AUTH'],
  'SQLITE_NOTADB',
]);

/** What may help. */
const advice: Readonly<Record<string, string>> = {
  SQLITE_READONLY: 'this connection, or its file, takes no writes; open it for writing',
  SQLITE_CORRUPT: 'the file is damaged; restore it from a backup',
  SQLITE_NOTADB: 'the file is something else, or damaged; give the store one of its own',
};

/** A value that no store writes: SQLite takes any kind of value in any column. */
export class ForeignValue extends Error {}

/** The primary result code; undefined if the error does not come from SQLite itself, such as that of a closed connection. */
function codeOf(error: unknown): string | undefined {
  const { code, errcode } = (error ?? {}) as { readonly code?: unknown; readonly errcode?: unknown };
  if (typeof errcode === 'number') return codeNames[errcode & 0xff] ?? `SQLITE_${errcode & 0xff}`;
  return typeof code === 'string' ? /^SQLITE_[A-Z]+/.exec(code)?.[0] : undefined;
}

export function isLocked(error: unknown): boolean {
  const code = codeOf(error);
  // While somebody iterates over the rows of a query, better-sqlite3 runs nothing else on the connection, and SQLite does not change to WAL mode.
  const isIterating = /busy executing a query|into wal mode from within a transaction/.test(messageOf(error));
  return code === 'SQLITE_BUSY' || code === 'SQLITE_LOCKED' || isIterating;
}

/** Somebody may have dropped the table, or closed and reopened the connection. */
export function isTableGone(cause: unknown): boolean {
  const code = codeOf(cause);
  return code === undefined || code === 'SQLITE_ERROR';
}

export function failureOf(operation: string, cause: unknown): StoreError {
  if (cause instanceof ForeignValue) {
    return failure(operation, 'schema', 'the value of this key is no BLOB: another program has written it', cause);
  }
  const code = codeOf(cause);
  const detail = messageOf(cause);
  if (code === undefined) return failure(operation, 'closed', `the database is not usable: ${detail}`, cause);
  if (code === 'SQLITE_ERROR') {
    return failure(operation, 'schema', `table holdfast_entries is not as expected: ${detail}`, cause);
  }
  if (code === 'SQLITE_FULL') return failure(operation, 'full', `the disk is full: ${detail}`, cause);
  if (isLocked(cause)) return failure(operation, 'busy', `the database is locked: ${detail}`, cause);
  // When reading or syncing fails, it is unknown how much of a commit has reached the disk.
  const isUncertain =
    (operation === 'write' || operation === 'remove' || operation === 'transaction') && !surelyNotApplied.has(code);
  const help = advice[code];
  const told = help === undefined ? detail : `${help}: ${detail}`;
  return failure(operation, 'failed', told, cause, isUncertain ? 'unknown' : 'no');
}

export function failure(
  operation: string,
  reason: StoreFailure,
  detail: string,
  cause?: unknown,
  applied: StoreError['applied'] = 'no',
): StoreError {
  return new StoreError({ store: 'sqlite', operation, reason, applied, detail, cause });
}
