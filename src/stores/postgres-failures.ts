/** Failures of Postgres: translates the errors of servers and drivers, and tells whether anything may have been done. */
import { messageOf, StoreError, type StoreFailure } from '../core/errors.js';

/** The errors of a server that has done nothing, by the start of their SQLSTATE, and what may help. */
const refusals: readonly (readonly [code: string, reason: StoreFailure, advice: string])[] = [
  ['42P01', 'schema', 'the table is not there; run store.migrate(), or the SQL of postgresMigrations()'],
  [
    '42883',
    'schema',
    'the functions of this version are not there; run store.migrate(), or the SQL of postgresMigrations()',
  ],
  ['3F000', 'schema', 'the schema named in "table" does not exist'],
  ['42703', 'schema', 'the table is not the one that postgresMigrations() makes; use another "table"'],
  ['42804', 'schema', 'the table is not the one that postgresMigrations() makes; use another "table"'],
  ['25006', 'failed', 'this server takes no writes: it is a standby, or read-only'],
  ['53100', 'full', 'the disk of the server is full'],
  ['53200', 'full', 'the server has no memory left'],
  ['53300', 'busy', 'the server has no connection left; make pools smaller, or use a pooler'],
  ['53', 'busy', 'the server is short of something'],
  ['57P03', 'busy', 'the server is starting or stopping'],
  ['57014', 'timeout', 'the server cancelled the statement, by its "statement_timeout" or on request'],
  ['55P03', 'busy', "somebody else's transaction keeps it locked"],
  ['40', 'busy', 'the transaction had to give way to another one; try again'],
  ['42501', 'failed', 'the role may not use the table, its functions or their schema'],
  ['P0001', 'failed', 'a trigger, rule or policy on the table keeps it out'],
  ['25P04', 'timeout', 'the server ended the transaction, and its connection, by its "transaction_timeout"'],
  ['25P02', 'failed', 'a statement of this transaction has failed before'],
  ['28', 'failed', 'the server does not let this user in'],
  ['3D000', 'failed', 'the database does not exist'],
];

/** What PgBouncer says, with a code that stands for much else, when it had no connection to give: it has sent nothing on. */
const isPoolerFull = /^(query_wait_timeout|no more connections allowed)/;

/** The codes of sockets that were never connected, and of a pool of postgres.js that was ended. */
const unsentCodes = [
  'CONNECT_TIMEOUT',
  'CONNECTION_ENDED',
  'ECONNREFUSED',
  'ENOTFOUND',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EAI_AGAIN',
];

/** Takes the place of a reply that the user's settings have made unreadable. */
export class UnreadableReply extends Error {}

export function isBroken(cause: unknown): boolean {
  const { code } = cause as { code?: unknown };
  // A SQLSTATE has five characters, and so has a socket's EPIPE. Among the server's errors, only these mean that it closes the connection.
  if (typeof code !== 'string' || !/^[0-9A-Z]{5}$/.test(code) || code === 'EPIPE') return true;
  return /^(57P|08|25P0[34])/.test(code);
}

/** @param isUnsent - Whether the failure came before the statement, or undoes all of its work. */
export function failureOf(operation: string, cause: unknown, isUnsent: boolean): StoreError {
  if (cause instanceof StoreError) return cause;
  const message = messageOf(cause);
  const code = String((cause as { code?: unknown } | undefined)?.code ?? '');
  const refusal = refusals.find(([start]) => code.length === 5 && code.startsWith(start));
  if (refusal !== undefined) return failure(operation, refusal[1], `${refusal[2]}: ${message}`, cause);
  if (unsentCodes.includes(code)) return failure(operation, 'closed', message, cause);
  if (/timeout exceeded when trying to connect/i.test(message)) {
    return failure(operation, 'busy', `the pool had no connection to give; raise its size: ${message}`, cause);
  }
  if (isPoolerFull.test(message)) {
    const advice = 'the pooler had no connection to give; raise its "default_pool_size" or "max_client_conn"';
    return failure(operation, 'busy', `${advice}: ${message}`, cause);
  }
  const reason = reasonOf(cause, message);
  return isUnsent ? failure(operation, reason, message, cause) : lost(operation, message, cause, reason);
}

function reasonOf(cause: unknown, message: string): StoreFailure {
  if (cause instanceof UnreadableReply) return 'invalid';
  // The `query_timeout` of pg.
  if (/^Query read timeout/.test(message)) return 'timeout';
  return isBroken(cause) ? 'closed' : 'failed';
}

export function failure(operation: string, reason: StoreFailure, detail: string, cause?: unknown): StoreError {
  return new StoreError({ store: 'postgres', operation, reason, applied: 'no', detail, cause });
}

/** For a verb that may have been applied; a read changes nothing in any case. */
export function lost(operation: string, detail: string, cause?: unknown, reason: StoreFailure = 'failed'): StoreError {
  const applied = operation.startsWith('read') ? 'no' : 'unknown';
  return new StoreError({ store: 'postgres', operation, reason, applied, detail, cause });
}
