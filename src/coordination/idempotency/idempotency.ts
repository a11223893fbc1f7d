/**
 * Idempotency: one effect per key. An operation repeated with the same key runs once, and every call gets that result.
 *
 * Promise: of any number of equal calls one runs, and the others get its result. No other caller gets it, because the scope is part of
 * the key. A process that dies blocks its keys for one lease at most; what happens then is decided by `onLost`.
 */
import { showBriefly } from '../../core/brief.js';
import { type Clock, systemClock } from '../../core/clock.js';
import type { Duration } from '../../core/duration.js';
import { InDoubtError, InFlightError, KeyReusedError, messageOf } from '../../core/errors.js';
import { Events, type HoldfastEvent } from '../../core/events.js';
import {
  checkArgument,
  checkOptions,
  duration,
  type Field,
  func,
  having,
  impossibleOption,
  integer,
  oneOf,
  optional,
  show,
  text,
  withDefault,
} from '../../core/options.js';
import { longestTtlMs, type Store } from '../../stores/store.js';
import type { IdempotencyHandle, TransactionHandle } from './attempt.js';
import { isPointer } from './canonical-json.js';
import { type BeginRequest, type Begun, Engine, type OperationKey, part } from './engine.js';
import { fingerprint, ownFingerprint } from './fingerprint.js';
import type { IdempotencyCounts } from './operations.js';
import { decodeOutcome, encodeError, encodeValue, jsonSerializer, type ResultSerializer } from './outcomes.js';
import { type IdempotencyEncryption, sealing } from './sealing.js';

export type { AdapterHandle, IdempotencyHandle, TransactionHandle } from './attempt.js';
export { isPointer } from './canonical-json.js';
export type { BeginRequest, Begun, OperationKey } from './engine.js';
export { fingerprint, ownFingerprint } from './fingerprint.js';
export type { IdempotencyCounts } from './operations.js';
export type { ResultSerializer } from './outcomes.js';
export type { IdempotencyEncryption } from './sealing.js';
export { largeBytes, nextTurn } from './turns.js';

/** Options of {@link idempotency}. */
export interface IdempotencyOptions {
  /** Where the records are kept: a store shared by all processes that may receive the same call. */
  readonly store: Store;
  /** How long a record is kept after its last write; longer than `lease`, up to 10 years. Default 24 h. */
  readonly ttl?: Duration | undefined;
  /** How long a dead process blocks its keys; a live one renews after each third of it. Default 30 s; from 100 ms. */
  readonly lease?: Duration | undefined;
  /**
   * What happens to an operation whose process is lost. `'rerun'`: the next call runs it again. `'resume'`: likewise, and its phases must
   * be the same as before. `'refuse'`: the key is in doubt until `resolve` is called. Default `'rerun'`; for money that moves outside
   * of phases choose `'refuse'`.
   */
  readonly onLost?: 'rerun' | 'resume' | 'refuse' | undefined;
  /**
   * Attempts that may end without a result, failed or lost, before the key is in doubt until `resolve` is called, since repeating
   * does not seem to help. An attempt that called `release()` does not count. Raise it if a queue counts its own retries, or clients retry through long outages. Default 10; from 1 to 1,000,000.
   */
  readonly attempts?: number | undefined;
  /** How long a call waits for the same operation running elsewhere before it fails with `InFlightError`. Default `'off'`: not at all. `'5s'` suits most. */
  readonly wait?: Duration | 'off' | undefined;
  /** How long the store may take to begin an operation, and to end it. Default 500 ms; from 1 ms to 24.8 days. */
  readonly storeTimeout?: Duration | undefined;
  /** What happens while the store is down: `'refuse'` runs nothing, `'run'` runs unprotected. Default `'refuse'`. */
  readonly onStoreDown?: 'refuse' | 'run' | undefined;
  /** The largest result that is stored, in bytes; a larger one goes to its caller only. Default 1 MiB; from 0 to 1 GiB. */
  readonly maxBodyBytes?: number | undefined;
  /**
   * Which part of the input counts: all but some members, given as JSON pointers such as `'/sentAt'`; or a function that returns the same
   * text or bytes for inputs that count as the same. Default: all of it.
   */
  readonly fingerprint?:
    | { readonly exclude: readonly string[] }
    | ((input: unknown) => string | Uint8Array)
    | undefined;
  /** Turns results into bytes and back. Default JSON. */
  readonly serializer?: ResultSerializer | undefined;
  /** Hashes keys with this secret, so that a reader of the store cannot guess them. At least 16 bytes. Records under another secret are not found. */
  readonly secret?: string | Uint8Array | undefined;
  /** Encrypts results and phases in the store; records stored in the clear are then not accepted. Default: none. */
  readonly encryption?: IdempotencyEncryption | undefined;
  /** Names the engine in errors and events, and the operation of calls that name none. Default `'idempotency'`. */
  readonly name?: string | undefined;
  /** Receives the events. An exception in it is contained and reported once as a warning. */
  readonly on?: ((event: HoldfastEvent) => void) | undefined;
  /** Measures waits and renewals; a record's age is the store's. Default `systemClock`. */
  readonly clock?: Clock | undefined;
  /** Spreads retries of renewals. Default `Math.random`. */
  readonly random?: (() => number) | undefined;
}

/** Identifies the owner of a key and the operation. */
export interface IdempotencyScope {
  /** The owner of the key: the tenant or user as the server knows it, never as the caller claims. Without it one caller could get another's result. */
  readonly scope: string;
  /** The operation: the same key in another operation is another key. Default: the engine's `name`. */
  readonly operation?: string | undefined;
}

/** Options of {@link Idempotency.run} and {@link Idempotency.transaction}. */
export interface IdempotencyRunOptions extends IdempotencyScope {
  /**
   * What the operation depends on: any JSON value, or bytes. A `Map` or any other value that JSON cannot represent is an {@link OptionsError}, and so
   * are `NaN` and the infinities. The same key with another input is refused. Default: nothing.
   */
  readonly input?: unknown;
  /** Ends the wait for an operation running elsewhere. */
  readonly signal?: AbortSignal | undefined;
}

/** How a doubt is settled: with the result that was found out, or with `release`, if nothing had happened, so that the next call runs. */
export type IdempotencyResolution = IdempotencyScope & ({ readonly result: unknown } | { readonly release: true });

/** What {@link idempotency} returns. */
export interface Idempotency {
  /**
   * Runs a function once per key, and resolves with its result, or with that of the call that ran.
   *
   * Every call, including the first, gets the result decoded from its stored bytes. What the function throws is not stored, unless it was sealed
   * before; the next call with the key runs again, up to `attempts` times. A refusal (`isRejected`) counts as any other error, since what came before it may
   * have had an effect; if nothing had, call `release()`.
   *
   * @throws {@link InFlightError} `ERR_IN_FLIGHT` while it runs elsewhere; {@link KeyReusedError} `ERR_KEY_REUSED` for another input;
   * {@link InDoubtError} `ERR_IN_DOUBT` when its outcome is unknown; {@link KeyMissingError} `ERR_KEY_MISSING` for a key that is empty or
   * longer than 255 characters; {@link StoreError} `ERR_STORE` when the store is down; and what the function throws.
   */
  run<T>(
    key: string,
    fn: (handle: IdempotencyHandle) => T | PromiseLike<T>,
    options: IdempotencyRunOptions,
  ): Promise<T>;
  /**
   * Like {@link Idempotency.run}, in one transaction of the store's own database: the function's writes there and its result are committed
   * together or not at all, so there is no lease, and a crash leaves no doubt.
   *
   * @param client - On SQLite the store's own database: the transaction begins and ends with this call, and the function is
   * synchronous. On Postgres the client of your transaction: you begin it, commit it when this call resolves, and roll it back when it rejects.
   * @throws {@link OptionsError} `ERR_OPTIONS` when the store has no transactions; else as `run`.
   */
  transaction<T>(
    client: object,
    key: string,
    fn: (handle: TransactionHandle) => T,
    options: IdempotencyRunOptions,
  ): Promise<Awaited<T>>;
  /** Settles the doubt about a key. False when it is not in doubt: it runs, has a result, or is unknown. */
  resolve(key: string, resolution: IdempotencyResolution): Promise<boolean>;
  /**
   * Resolves when no call of this engine is under way, no handler runs, and none of their ends waits to be recorded. On shutdown await it after the
   * server is closed, and before the store is: a handler whose client has left still works. It waits for a handler that never ends, too, so bound it
   * where that may happen: `Promise.race([engine.idle(), sleep(10_000)])`. Work that begins afterwards is not waited for.
   */
  idle(): Promise<void>;
  /** The outcomes of all calls so far, by operation; at most 1,000 operations are told apart. */
  counts(): Readonly<Record<string, IdempotencyCounts>>;
  /** @internal For adapters. Synchronous if the store answers at once. */
  begin(request: BeginRequest): Begun | Promise<Begun>;
  /** @internal For adapters, which store results as bytes of their own. Without a result, the next call runs. */
  resolveBytes(key: OperationKey, result: Uint8Array | undefined): Promise<boolean>;
}

/**
 * Runs an operation once per key and gives every call with that key the same result.
 *
 * For operations that must not happen twice although their callers retry: payments, orders, queue messages. Not for reads. It cannot
 * by itself make an effect in another system happen only once: send that system {@link IdempotencyHandle.downstreamKey}.
 *
 * @param options - `store` (required), `ttl`, `lease`, `onLost`, `attempts`, `wait`, `storeTimeout`, `onStoreDown`, `maxBodyBytes`, `fingerprint`,
 * `serializer`, `secret`, `encryption`, `name`, `on`, `clock`, `random`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { idempotency, memoryStore } from 'holdfast';
 *
 * const once = idempotency({ store: memoryStore(), name: 'charge' });
 * let charged = 0;
 * const charge = () => once.run('order 7', async () => ({ charged: ++charged }), { scope: 'shop 1', input: { cents: 250 } });
 * console.log(await charge(), await charge()); // { charged: 1 } { charged: 1 }
 * ```
 */
export function idempotency(options: IdempotencyOptions): Idempotency {
  const checked = checkOptions('idempotency', options, {
    store: having<Store>('a store such as memoryStore() or redisStore(client)', 'read', 'write', 'remove'),
    ttl: withDefault(duration({ max: longestTtlMs }), 86_400_000),
    lease: withDefault(duration({ min: 100 }), 30_000),
    onLost: withDefault<'rerun' | 'resume' | 'refuse'>(oneOf(['rerun', 'resume', 'refuse']), 'rerun'),
    attempts: withDefault(integer({ min: 1, max: 1_000_000 }), 10),
    wait: withDefault<number | 'off'>(waitField, 'off'),
    storeTimeout: withDefault(duration({}), 500),
    onStoreDown: withDefault<'refuse' | 'run'>(oneOf(['refuse', 'run']), 'refuse'),
    maxBodyBytes: withDefault(integer({ min: 0, max: 1_073_741_824 }), 1_048_576),
    fingerprint: optional(fingerprintField),
    serializer: withDefault(
      having<ResultSerializer>('a serializer with encode and decode', 'encode', 'decode'),
      jsonSerializer,
    ),
    secret: optional(secretField()),
    encryption: optional(encryptionField()),
    name: withDefault(text(), 'idempotency'),
    on: optional(func<(event: HoldfastEvent) => void>()),
    clock: withDefault(
      having<Clock>('a clock such as systemClock', 'now', 'wallNow', 'schedule', 'cancel'),
      systemClock,
    ),
    random: withDefault(func<() => number>(), Math.random),
  });
  const { name, on, wait, ttl, lease, storeTimeout, encryption, ...rest } = checked;
  if (ttl <= lease)
    throw impossibleOption('idempotency', 'ttl', options.ttl, `longer than "lease", which is ${lease} ms`);
  const engine = new Engine({
    ...{ ...rest, name, ttlMs: ttl, leaseMs: lease, storeTimeoutMs: storeTimeout },
    ...{ waitMs: wait === 'off' ? 0 : wait, sealing: sealing(encryption), events: new Events(name, on) },
  });
  showBriefly(Functions.prototype, (functions) => ({ name: functions.engine.settings.name }));
  return new Functions(engine, checked.fingerprint);
}

class Functions implements Idempotency {
  /** @internal */ readonly engine: Engine;
  private readonly whatCounts: IdempotencyOptions['fingerprint'];

  constructor(engine: Engine, whatCounts: IdempotencyOptions['fingerprint']) {
    this.engine = engine;
    this.whatCounts = whatCounts;
  }

  begin(request: BeginRequest): Begun | Promise<Begun> {
    return this.engine.begin(request);
  }

  resolveBytes(key: OperationKey, result: Uint8Array | undefined): Promise<boolean> {
    return this.engine.resolve(key, result);
  }

  idle(): Promise<void> {
    return this.engine.idle();
  }

  counts(): Readonly<Record<string, IdempotencyCounts>> {
    return this.engine.operations.counts();
  }

  run<T>(
    key: string,
    fn: (handle: IdempotencyHandle) => T | PromiseLike<T>,
    options: IdempotencyRunOptions,
  ): Promise<T> {
    return this.engine.work(() => this.runOnce(key, fn, options));
  }

  private async runOnce<T>(
    key: string,
    fn: (handle: IdempotencyHandle) => T | PromiseLike<T>,
    options: IdempotencyRunOptions,
  ): Promise<T> {
    const { serializer } = this.engine.settings;
    checkArgument(this.engine.settings.name, 'fn', fn, func());
    const begun = await this.engine.begin(await this.requestOf(key, options));
    if (!('handle' in begun) || begun.handle === undefined) return this.answer(begun) as T;
    const { handle } = begun;
    let value: T;
    try {
      value = await fn(handle);
      if (handle.decision === undefined) handle.assertPhasesKept();
    } catch (thrown) {
      if (handle.decision !== 'keep') await handle.abandon();
      else {
        const { bytes, error } = attempted(() => encodeError(thrown));
        await handle.complete(bytes, error);
      }
      throw thrown;
    }
    if (handle.decision === 'release') {
      await handle.abandon();
      return value;
    }
    const { bytes, error } = attempted(() => encodeValue(serializer, value));
    const completion = await handle.complete(bytes, error);
    // Another attempt may have run it in the meantime: the next call with the key gets the result that counts.
    if (completion === 'lost') throw handle.signal.reason;
    return begun.kind === 'store-down' || bytes === undefined || completion === 'too-large'
      ? value
      : (this.answerOf(bytes) as T);
  }

  transaction<T>(
    client: object,
    key: string,
    fn: (handle: TransactionHandle) => T,
    options: IdempotencyRunOptions,
  ): Promise<Awaited<T>> {
    return this.engine.work(() => this.transactOnce(client, key, fn, options));
  }

  private async transactOnce<T>(
    client: object,
    key: string,
    fn: (handle: TransactionHandle) => T,
    options: IdempotencyRunOptions,
  ): Promise<Awaited<T>> {
    checkArgument(this.engine.settings.name, 'fn', fn, func());
    const { serializer } = this.engine.settings;
    const request = await this.requestOf(key, options);
    const encode = (value: unknown) => encodeValue(serializer, value);
    const begun = await this.engine.transaction(client, request, fn, encode);
    if (begun.kind !== 'done') return this.answer(begun) as Awaited<T>;
    return (begun.fits ? this.answerOf(begun.bytes) : begun.value) as Awaited<T>;
  }

  async resolve(key: string, resolution: IdempotencyResolution): Promise<boolean> {
    const { name, serializer } = this.engine.settings;
    const { scope, operation, result, release } = checkOptions(name, resolution, {
      ...scopeFields(name),
      result: optional(anything),
      release: optional(onlyTrue),
    });
    if ('result' in resolution === (release ?? false)) {
      throw impossibleOption(name, 'result', result, 'there, or "release: true" in its place');
    }
    return this.engine.resolve({ scope, operation, key }, release ? undefined : encodeValue(serializer, result));
  }

  private async requestOf(key: string, options: IdempotencyRunOptions): Promise<BeginRequest> {
    const { name } = this.engine.settings;
    const { scope, operation, input, signal } = checkOptions(name, options, {
      ...scopeFields(name),
      input: optional(anything),
      signal: optional(having<AbortSignal>('an AbortSignal', 'addEventListener', 'removeEventListener')),
    });
    return { scope, operation, key, signal, fingerprint: await this.fingerprintOf(input) };
  }

  private fingerprintOf(input: unknown): Uint8Array | Promise<Uint8Array> {
    const { whatCounts } = this;
    if (typeof whatCounts === 'function') return ownFingerprint(whatCounts(input));
    if (input === undefined) return fingerprint({ head: [] });
    const exclude = whatCounts?.exclude;
    if (ArrayBuffer.isView(input)) {
      return fingerprint({ head: [], body: new Uint8Array(input.buffer, input.byteOffset, input.byteLength) });
    }
    const text = this.jsonOf(input);
    // After that, because it refuses cycles.
    this.refuseUnseen(input, 'input');
    return fingerprint({ head: [], body: text, isJson: true, exclude });
  }

  private jsonOf(input: unknown): string | undefined {
    try {
      return JSON.stringify(input);
    } catch (error) {
      // A bigint, a cycle, or a `toJSON` that throws.
      throw impossibleOption(this.engine.settings.name, 'input', input, sayable, `one that fails: ${messageOf(error)}`);
    }
  }

  /**
   * JSON represents a `Map`, or any object with private state only, as an object without members, and NaN and the infinities as null: two
   * different inputs would count as the same.
   */
  private refuseUnseen(part: unknown, path: string): void {
    if (typeof part !== 'object' || part === null) {
      if (typeof part !== 'function' && typeof part !== 'symbol' && !isNullInJson(part)) return;
    } else {
      if (ArrayBuffer.isView(part)) return;
      if (typeof (part as { toJSON?: unknown }).toJSON === 'function' && !isNullInJson(part)) return;
      const names = Object.keys(part);
      for (const name of names) {
        const member = (part as Record<string, unknown>)[name];
        if (typeof member === 'object' || isNullInJson(member)) this.refuseUnseen(member, `${path}.${name}`);
      }
      if (names.length > 0 || Array.isArray(part) || isPlain(part)) return;
    }
    throw impossibleOption(this.engine.settings.name, path, part, sayable);
  }

  /** The result of a call that ran nothing. */
  private answer(begun: Begun): unknown {
    const policy = this.engine.settings.name;
    switch (begun.kind) {
      case 'replay':
        return this.answerOf(begun.result);
      case 'busy':
        throw new InFlightError({ policy, retryAfterMs: begun.retryAfterMs });
      case 'mismatch':
        throw new KeyReusedError({ policy });
      case 'in-doubt': {
        const { cause } = begun;
        const detail =
          cause === undefined
            ? 'the process that ran the operation with this key was lost, or it failed too often; call resolve when its outcome is known'
            : 'what is stored under this key cannot be read; call resolve when the outcome is known';
        throw new InDoubtError({ policy, reason: cause === undefined ? 'unknown' : 'unreadable', detail, cause });
      }
      case 'result-not-stored': {
        const { cause } = begun;
        const why =
          cause === undefined ? 'could not be stored: it was too large, or not serializable' : 'cannot be opened';
        const detail = `the operation with this key has run, and its result ${why}`;
        throw new InDoubtError({ policy, reason: cause === undefined ? 'not-stored' : 'unreadable', detail, cause });
      }
      case 'store-down':
        throw begun.error;
      default:
        return undefined;
    }
  }

  private answerOf(bytes: Uint8Array): unknown {
    const { name, serializer } = this.engine.settings;
    let outcome: ReturnType<typeof decodeOutcome>;
    try {
      outcome = decodeOutcome(serializer, bytes);
    } catch (cause) {
      const detail = 'the operation with this key has run, and the serializer cannot read its result';
      throw new InDoubtError({ policy: name, reason: 'unreadable', detail, cause });
    }
    if (!outcome.ok) throw outcome.error;
    return outcome.value;
  }
}

/** What an input must be. */
const sayable = 'what JSON can say, or bytes; for all else there is the option "fingerprint"';

/** Whether JSON says `null` for it: NaN, the infinities, and a `Date` that is none. */
function isNullInJson(value: unknown): boolean {
  return (typeof value === 'number' || value instanceof Date) && !Number.isFinite(+value);
}

function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function attempted(encode: () => Uint8Array): { readonly bytes?: Uint8Array; readonly error?: unknown } {
  try {
    return { bytes: encode() };
  } catch (error) {
    return { error };
  }
}

const leastSecretBytes = 16;
const encryptionKeyBytes = 32;
const longestKeyNameBytes = 64;

const anything: Field<unknown> = { allowed: 'anything', parse: (value) => value };
const onlyTrue: Field<true> = { allowed: 'true', parse: (value) => (value === true ? true : undefined) };

/** The engine checks scope and operation, for every way to begin. */
function scopeFields(name: string) {
  return {
    scope: { allowed: `${part.allowed}, in the options of the call`, parse: (value: unknown) => value as string },
    operation: withDefault<string>({ ...part, parse: (value) => value as string }, name),
  };
}

const waitField: Field<number | 'off'> = {
  allowed: "a duration such as '5s', or 'off'",
  parse: (value) => (value === 'off' ? 'off' : duration({}).parse(value)),
};

const fingerprintField: Field<NonNullable<IdempotencyOptions['fingerprint']>> = {
  allowed: "a function, or { exclude } with JSON pointers such as '/sentAt'",
  parse(value) {
    if (typeof value === 'function') return value as (input: unknown) => string | Uint8Array;
    const exclude: unknown = (value as { exclude?: unknown } | null)?.exclude;
    return Array.isArray(exclude) && exclude.every(isPointer) ? { exclude: [...exclude] } : undefined;
  },
};

const secretField = (): Field<Uint8Array> => ({
  shown: (value) => (typeof value === 'string' ? `a text of ${value.length} characters` : show(value)),
  allowed: `at least ${leastSecretBytes} bytes, as text or as a Uint8Array`,
  parse(value) {
    const bytes = typeof value === 'string' ? new TextEncoder().encode(value) : value;
    return bytes instanceof Uint8Array && bytes.length >= leastSecretBytes ? Uint8Array.from(bytes) : undefined;
  },
});

const encryptionField = (): Field<IdempotencyEncryption> => ({
  allowed: `{ current, keys } with ${encryptionKeyBytes} bytes or 'plain' per key, names of 1 to ${longestKeyNameBytes} ASCII characters, and current one of them`,
  parse(value) {
    const { current, keys } = (value ?? {}) as { current?: unknown; keys?: unknown };
    if (typeof current !== 'string' || typeof keys !== 'object' || keys === null || !Object.hasOwn(keys, current))
      return;
    const copies: Record<string, Uint8Array | 'plain'> = {};
    for (const [name, key] of Object.entries(keys)) {
      const isKey = key === 'plain' || (key instanceof Uint8Array && key.length === encryptionKeyBytes);
      if (!isKey || !/^[\x21-\x7e]{1,64}$/.test(name)) return;
      copies[name] = key === 'plain' ? key : Uint8Array.from(key);
    }
    return { current, keys: copies };
  },
});
