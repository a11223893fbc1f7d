/** Failures of Redis: translates the errors of servers and clients, and tells whether anything may have been done. */
import { messageOf, StoreError, type StoreFailure } from '../core/errors.js';

const noPermission = 'the user lacks a permission; docs/stores.md lists all that are needed';

const noCommand = 'the server lacks a command: it was renamed, or the server is older than Redis 6.2';

const aNode = 'the server is a node of a cluster; give the store a cluster client';

const subscribed = 'the client has subscribed to something, and can do nothing else; give the store one of its own';

/** What a server or client replies when it has done nothing, and what may help. */
const refusals: readonly (readonly [says: string, reason: StoreFailure, advice: string])[] = [
  ['READONLY', 'failed', 'this server is a replica; let the client follow the primary, by Sentinel or Cluster'],
  ['LOADING', 'busy', 'the server is still loading its data; try again'],
  ['BUSY', 'busy', "somebody else's script keeps the server busy"],
  ['OOM', 'full', 'the server has no memory left under "maxmemory"; raise it, or shorten the ttl of entries'],
  [
    'MISCONF Errors writing to the AOF file: No space left',
    'full',
    'the disk of the server is full; it takes writes again by itself when there is room',
  ],
  ['MISCONF', 'failed', 'the server cannot save to its disk and therefore takes no writes; see its log'],
  ['NOREPLICAS', 'failed', 'too few replicas are connected for "min-replicas-to-write"'],
  ['MASTERDOWN', 'failed', 'this server is a replica that has lost its primary'],
  ['CLUSTERDOWN', 'failed', 'the cluster does not serve all of its slots'],
  ['TRYAGAIN', 'busy', 'the slot is on its way to another node; try again'],
  ['NOAUTH', 'failed', 'the client has to give a password'],
  ['NOPERM', 'failed', noPermission],
  ["ERR The user executing the script can't", 'failed', noPermission],
  ['ERR ACL failure in script', 'failed', noPermission],
  ['ERR unknown command', 'failed', noCommand],
  ['ERR Unknown command', 'failed', noCommand],
  ['ERR Unknown Redis command', 'failed', noCommand],
  ['MOVED', 'failed', aNode],
  ['CROSSSLOT', 'failed', aNode],
  ["ERR Can't execute", 'failed', subscribed],
  ['Connection in subscriber mode', 'failed', subscribed],
  ['The queue is full', 'busy', 'the client has as many commands under way as it may, by "commandsQueueMaxLength"'],
  [
    'Timeout waiting for a client',
    'busy',
    'the pool has no connection to give; raise its "maximum", or look for code that never releases one',
  ],
  ['WRONGTYPE', 'schema', 'the key holds data of another program; use another "prefix"'],
];

/** Redis 6 and older put the script first, and the name of the refusal after a dash. */
const refused = new RegExp(`(?:^|-)(${refusals.map(([says]) => says).join('|')})\\b`);

export function failureOf(operation: string, error: unknown): StoreError {
  // Errors are logged, and a value may be secret. The message and the stack for an unknown command contain its arguments, and ioredis keeps them all.
  const said = messageOf(error);
  const message = said.replace(/, with args beginning with:.*/s, '');
  const cause = message === said ? withoutArguments(error) : undefined;
  const says = refused.exec(message)?.[1];
  const refusal = refusals.find((known) => known[0] === says);
  if (refusal !== undefined) return failure(operation, refusal[1], `${refusal[2]}: ${message}`, cause);
  // The errors of the clients for a command that they have not sent.
  if (/isn't writeable|client is (closed|offline)/i.test(message)) return failure(operation, 'closed', message, cause);
  // The second is the `commandTimeout` of ioredis.
  const reason = /closed/.test(message) ? 'closed' : /^Command timed out/.test(message) ? 'timeout' : 'failed';
  return lost(operation, message, cause, reason);
}

/** Changes the error itself, because nobody else gets the error of a command of ours. */
function withoutArguments(error: unknown): unknown {
  const { command } = (error ?? {}) as { readonly command?: { readonly name: string } };
  return command === undefined ? error : Object.assign(error as object, { command: { name: command.name } });
}

export function failure(operation: string, reason: StoreFailure, detail: string, cause?: unknown): StoreError {
  return new StoreError({ store: 'redis', operation, reason, applied: 'no', detail, cause });
}

/** For a verb that may have been applied; a read changes nothing in any case. */
export function lost(operation: string, detail: string, cause?: unknown, reason: StoreFailure = 'failed'): StoreError {
  const applied = operation === 'read' || operation === 'readMany' || operation === 'watch' ? 'no' : 'unknown';
  return new StoreError({ store: 'redis', operation, reason, applied, detail, cause });
}
