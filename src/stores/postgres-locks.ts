/**
 * Postgres locks: advisory locks of the server, either inside the caller's transaction or on a dedicated session that is a lease.
 *
 * Promise: a transaction's lock ends with the transaction, so the lock and the writes succeed or fail together. The server drops a session's lock when it has
 * not heard from the owner for a `ttl`; the owner learns of the loss before that. The server's own queue makes both fair.
 * After: Postgres, "Advisory Locks", `lock_timeout`, `idle_session_timeout` (14 or later); Gray and Cheriton, "Leases" (1989).
 */
import { showBriefly } from '../core/brief.js';
import { type Clock, callbackTimer, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { LockUnavailableError, messageOf } from '../core/errors.js';
import {
  checkArgument,
  checkOptions,
  duration,
  having,
  impossibleOption,
  optional,
  withDefault,
} from '../core/options.js';
import { connectionOf, type PgListener, type PostgresTransaction } from './postgres-drivers.js';
import { failure, failureOf } from './postgres-failures.js';
import { transactionField } from './postgres-transactions.js';

/** Options of {@link transactionLock}. */
export interface TransactionLockOptions {
  /** How long the call may wait. 0: not at all; up to 24.8 days. Default `'30s'`. */
  readonly wait?: Duration | undefined;
}

/** Options of {@link sessionLock}. */
export interface SessionLockOptions extends TransactionLockOptions {
  /** How long the server keeps the lock without hearing from the owner. From 1 s; default `'10s'`. The owner contacts the server three times in that time. */
  readonly ttl?: Duration | undefined;
  /** How long before that the owner treats the lock as lost. Up to half of `ttl`; default a tenth. */
  readonly margin?: Duration | undefined;
  /** Ends the wait; a lock granted later is dropped with its connection. */
  readonly signal?: AbortSignal | undefined;
  /** Measures `ttl` for the owner. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** A lock on a dedicated connection. */
export interface SessionLock {
  readonly key: string;
  /** Aborts when the lock is lost. */
  readonly signal: AbortSignal;
  /** Whether no other owner can have it: reads the clock on each call, so that a process that was frozen finds out here. */
  held(): boolean;
  /** Milliseconds for which it can be relied on without another reply of the server; 0 when it is not held. */
  remaining(): number;
  /** Releases it and ends the connection; never rejects. `'unknown'`: the server did not confirm it; the lock ends at the latest after its `ttl`. */
  release(): Promise<'released' | 'lost' | 'unknown'>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** The SQLSTATE for a wait that exceeded `lock_timeout`. */
const lockTimeoutCode = '55P03';
const oldestVersion = 140_000;

const waitField = withDefault(duration({ min: 0 }), 30_000);
const keyField = {
  allowed: 'a string that is not empty',
  parse: (value: unknown) => (typeof value === 'string' && value.length > 0 ? value : undefined),
};

/**
 * Locks a key for the rest of a transaction that has begun on your connection: `pg_advisory_xact_lock`.
 *
 * The strongest lock for work in one database: no other owner gets it before the transaction has ended, and a transaction whose connection is lost writes nothing, so it needs no
 * fence and no lease. Works through PgBouncer in transaction mode; with postgres.js only if its option `prepare` is false, else a commit may silently be a rollback. To take the same lock in SQL, use the number that is the first eight bytes of the key's SHA-256. The same transaction
 * may lock a key again.
 *
 * @param transaction - A client of `pg` after its `BEGIN`, or what postgres.js passes to the function of `sql.begin`.
 * @throws {@link LockUnavailableError} `ERR_LOCK_UNAVAILABLE`, when it waited too long. With a `wait` the transaction has then failed: roll it back, or to a savepoint.
 * @throws {@link OptionsError} `ERR_OPTIONS` for anything but a transaction; else the server's error, as the client throws it.
 * @example
 * ```ts no-run
 * import { transactionLock } from 'holdfast/postgres';
 * import pg from 'pg';
 *
 * const client = await new pg.Pool().connect();
 * await client.query('BEGIN');
 * await transactionLock(client, 'account:7', { wait: '2s' });
 * await client.query('UPDATE accounts SET balance = balance - 1 WHERE id = 7');
 * await client.query('COMMIT');
 * client.release();
 * ```
 */
export async function transactionLock(
  transaction: PostgresTransaction,
  key: string,
  options: TransactionLockOptions = {},
): Promise<void> {
  const name = 'transactionLock';
  checkArgument(name, 'transaction', transaction, transactionField);
  const lock = numberOf(checkArgument(name, 'key', key, keyField));
  const { wait } = checkOptions(name, options, { wait: waitField });
  const ask = firstRowOf(transaction);
  // Older versions of pg do not report whether a transaction has begun. If none has, each statement is a transaction of its own and the lock ends with it.
  const inTransaction = "CASE WHEN now() = statement_timestamp() THEN 'no' ELSE 'yes' END";
  let isLocked: string | undefined;
  let isInside: string | undefined;
  if (wait === 0) {
    [isLocked, isInside] = await ask(`SELECT pg_try_advisory_xact_lock(${lock})::text, ${inTransaction}`);
  } else {
    const timeout = (value: string) => `set_config('lock_timeout', ${value}, true)`;
    const before = `(SELECT current_setting('lock_timeout') AS value OFFSET 0) AS before`;
    // Evaluated from left to right: the timeout applies to the lock only; then the transaction's former timeout is restored.
    const sql = `SELECT ${timeout(`'${Math.ceil(wait)}ms'`)}, pg_advisory_xact_lock(${lock})::text, ${timeout('before.value')}, ${inTransaction} FROM ${before}`;
    try {
      isInside = (await ask(sql)).at(-1);
      isLocked = 'true';
    } catch (error) {
      if (codeOf(error) !== lockTimeoutCode) throw error;
      throw unavailable(name, key, wait, error);
    }
  }
  if (isInside !== 'yes') throw impossibleOption(name, 'transaction', transaction, transactionField.allowed);
  if (isLocked !== 'true') throw unavailable(name, key, wait);
}

/**
 * Locks a key on a dedicated connection, for work longer than a transaction should be: `pg_advisory_lock`, made a lease by `idle_session_timeout`.
 *
 * A plain advisory lock is kept forever by an owner that is frozen, or silently cut off. Here the server ends a session that it has not heard from for a `ttl`, and the owner
 * contacts it three times in that time. It has no fence: a write under it is safe only as far as `held()` is checked first. Prefer {@link transactionLock}, or `mutex` over
 * `postgresStore`, whose leases have fences and do not need a connection each.
 *
 * @param connect - Returns a connected client of `pg`, directly to the server; it is ended with the lock.
 * @throws {@link LockUnavailableError} `ERR_LOCK_UNAVAILABLE`, when it waited too long; the reason of the signal.
 * @throws {@link StoreError} `ERR_STORE`, reason `'invalid'` behind a pooler or with Postgres before 14; else when the connection fails. Whatever `connect` throws.
 * @example
 * ```ts no-run
 * import { sessionLock } from 'holdfast/postgres';
 * import pg from 'pg';
 *
 * const connect = async () => {
 *   const client = new pg.Client();
 *   // A server may end a connection before anybody else listens, and pg would end the process.
 *   client.on('error', () => {});
 *   await client.connect();
 *   return client;
 * };
 * await using lock = await sessionLock(connect, 'nightly-import', { ttl: '10s' });
 * console.log(lock.held()); // true
 * ```
 */
export async function sessionLock(
  connect: () => Promise<PgListener>,
  key: string,
  options: SessionLockOptions = {},
): Promise<SessionLock> {
  const name = 'sessionLock';
  checkArgument(name, 'connect', connect, {
    allowed: 'a function that answers a connected client of pg',
    parse: (value: unknown) => (typeof value === 'function' ? value : undefined),
  });
  checkArgument(name, 'key', key, keyField);
  const { ttl, margin, wait, signal, clock } = checkOptions(name, options, {
    ttl: withDefault(duration({ min: 1_000 }), 10_000),
    margin: optional(duration({ min: 0 })),
    wait: waitField,
    signal: optional(having<AbortSignal>('an AbortSignal', 'addEventListener', 'removeEventListener')),
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule', 'cancel'), systemClock),
  });
  if (margin !== undefined && margin > ttl / 2) {
    throw impossibleOption(name, 'margin', margin, `at most half of "ttl", ${ttl / 2} ms`);
  }
  signal?.throwIfAborted();
  showBriefly(Session.prototype, (lock) => ({ key: lock.key, held: lock.held() }));
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal?.reason);
  });
  signal?.addEventListener('abort', onAbort);
  const connecting = (async () => new Session(await connect(), key, ttl, margin ?? ttl / 10, clock))();
  try {
    const session = await Promise.race([connecting, aborted]);
    const locked = session.lock(wait).catch((error) => {
      throw refusalOf(error, key, wait);
    });
    await Promise.race([locked, session.broken, aborted]);
    return session;
  } catch (error) {
    connecting.then(
      (session) => session.end(),
      () => {},
    );
    throw error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

class Session implements SessionLock {
  readonly key: string;
  /** Rejects when the connection breaks. */
  readonly broken: Promise<never>;
  private readonly controller = new AbortController();
  private readonly client: PgListener;
  private readonly number: string;
  private readonly ttlMs: number;
  private readonly marginMs: number;
  private readonly clock: Clock;
  private readonly background: Clock;
  private readonly ask: Ask;
  private state: 'waiting' | 'held' | 'lost' | 'released' = 'waiting';
  private pid = '';
  private sentMs = 0;
  private sentWallMs = 0;
  private onBroken!: (error: unknown) => void;
  private releasing: Promise<'released' | 'lost' | 'unknown'> | undefined = undefined;
  private readonly beat = callbackTimer(() => void this.hear());
  private readonly deadline = callbackTimer(() => this.held());

  constructor(client: PgListener, key: string, ttlMs: number, marginMs: number, clock: Clock) {
    this.client = client;
    this.key = key;
    this.number = numberOf(key);
    this.ttlMs = ttlMs;
    this.marginMs = marginMs;
    this.clock = clock;
    this.background = clock.background ?? clock;
    this.ask = firstRowOf(client);
    this.broken = new Promise((_, reject) => {
      this.onBroken = reject;
    });
    this.broken.catch(() => {});
    const gone = (error?: unknown) => {
      this.lose('the connection broke');
      this.onBroken(
        failure(
          'lock',
          'closed',
          `the connection broke: ${error === undefined ? 'it ended' : messageOf(error)}`,
          error,
        ),
      );
    };
    // They stay until the end: an error without a listener would end the process.
    client.on('error', gone);
    client.on('end', () => gone());
  }

  get signal(): AbortSignal {
    this.held();
    return this.controller.signal;
  }

  /** Acquires the lock. */
  async lock(waitMs: number): Promise<void> {
    const about = "SELECT pg_backend_pid()::text, current_setting('server_version_num')";
    const [pid, version] = await this.ask(about);
    if (Number(version) < oldestVersion)
      throw failure('lock', 'invalid', `Postgres 14 or later is needed, this is ${version}`);
    this.pid = pid!;
    // The pid that the server sent when the connection was made; a pooler sends an invented one.
    const { processID } = this.client as { readonly processID?: unknown };
    if (typeof processID === 'number') this.checkPid(`${processID}`);
    await this.ask(
      `SELECT set_config('idle_session_timeout', '${Math.ceil(this.ttlMs)}ms', false), set_config('lock_timeout', '${Math.ceil(waitMs)}ms', false)`,
    );
    if (waitMs > 0) await this.ask(`SELECT pg_advisory_lock(${this.number})::text`);
    else {
      const [isLocked] = await this.ask(`SELECT pg_try_advisory_lock(${this.number})::text`);
      if (isLocked !== 'true') throw unavailable('sessionLock', this.key, waitMs);
    }
    // The wait may have been long, so the lease counts from a new request.
    const sent = await this.confirm();
    this.state = 'held';
    this.count(sent);
    if (!this.held()) throw failure('lock', 'timeout', 'the reply came after the lease had expired');
  }

  held(): boolean {
    if (this.state === 'held' && this.leftMs() <= 0)
      this.lose(`nothing was heard of the server for ${this.ttlMs} ms, less the margin`);
    return this.state === 'held';
  }

  remaining(): number {
    return this.held() ? this.leftMs() : 0;
  }

  release(): Promise<'released' | 'lost' | 'unknown'> {
    this.releasing ??= this.giveBack();
    return this.releasing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }

  end(): void {
    this.background.cancel(this.beat);
    this.background.cancel(this.deadline);
    this.client.end().catch(() => {});
  }

  private async giveBack(): Promise<'released' | 'lost' | 'unknown'> {
    if (!this.held()) return 'lost';
    const leftMs = this.leftMs();
    this.state = 'released';
    this.background.cancel(this.beat);
    let isLate = () => {};
    const late = new Promise<undefined>((resolve) => {
      isLate = () => resolve(undefined);
    });
    const timer = callbackTimer(() => isLate());
    this.clock.schedule(timer, this.clock.now() + leftMs);
    const unlock = this.ask(`SELECT pg_advisory_unlock(${this.number})::text`).catch(() => undefined);
    const answer = await Promise.race([unlock, late]);
    this.clock.cancel(timer);
    this.end();
    return answer === undefined ? 'unknown' : answer[0] === 'true' ? 'released' : 'lost';
  }

  /** Contacts the server, whose idle timer restarts with its reply. Called every third of the ttl, so that two may fail. */
  private async hear(): Promise<void> {
    try {
      const sent = await this.confirm();
      if (this.held()) this.count(sent);
    } catch (error) {
      this.lose(messageOf(error));
    }
  }

  private async confirm(): Promise<{ readonly ms: number; readonly wallMs: number }> {
    const sent = { ms: this.clock.now(), wallMs: this.clock.wallNow() };
    const [pid] = await this.ask('SELECT pg_backend_pid()::text');
    this.checkPid(pid!);
    return sent;
  }

  private checkPid(pid: string): void {
    if (pid === this.pid) return;
    const advice = 'connect to the server itself: behind a pooler the lock would be that of somebody else’s session';
    throw failure('lock', 'invalid', `the backend was ${pid} and is ${this.pid}; ${advice}`);
  }

  private count({ ms, wallMs }: { readonly ms: number; readonly wallMs: number }): void {
    this.sentMs = ms;
    this.sentWallMs = wallMs;
    this.background.schedule(this.deadline, this.clock.now() + Math.max(0, this.leftMs()));
    this.background.schedule(this.beat, ms + this.ttlMs / 3);
  }

  /** As for every lease: on whichever clock of this process advanced further, less 1 %, 2 ms and the margin. */
  private leftMs(): number {
    const passedMs = Math.max(this.clock.now() - this.sentMs, this.clock.wallNow() - this.sentWallMs);
    const leftMs = this.ttlMs * 0.99 - 2 - this.marginMs - passedMs;
    return leftMs < 0.001 ? 0 : leftMs;
  }

  private lose(detail: string): void {
    if (this.state !== 'held') return;
    this.state = 'lost';
    this.controller.abort(failure('lock', 'closed', `the lock "${this.key}" is lost: ${detail}`));
    this.end();
  }
}

type Ask = (sql: string) => Promise<readonly string[]>;

/** Runs a statement without parameters, which takes one round trip with both libraries, and returns its first row as the server sent it. */
function firstRowOf(transaction: PostgresTransaction): Ask {
  const connection = connectionOf(transaction);
  return async (text) => {
    const [row] = connection.rowsOf(await connection.ask({ text, name: '' }, [], 'once'));
    return row ?? [];
  };
}

/** The number of the lock, the same in every process: advisory locks have no names. */
function numberOf(key: string): string {
  const { createHash } = globalThis.process.getBuiltinModule('node:crypto');
  return `'${createHash('sha256').update(key).digest().readBigInt64BE()}'::bigint`;
}

function codeOf(error: unknown): unknown {
  return (error as { readonly code?: unknown } | undefined)?.code;
}

/** The error for a session lock that was not acquired. Closing its connection also ends what it asked for. */
function refusalOf(error: unknown, key: string, waitMs: number): Error {
  if (error instanceof LockUnavailableError) return error;
  if (codeOf(error) === lockTimeoutCode) return unavailable('sessionLock', key, waitMs, error);
  return failureOf('lock', error, true);
}

function unavailable(policy: string, key: string, waitMs: number, cause?: unknown): LockUnavailableError {
  const detail = waitMs > 0 ? `it was not free for ${waitMs} ms` : 'it is not free, and the call may not wait';
  return new LockUnavailableError({ policy, key, reason: 'waited', detail, stack: true, cause });
}
