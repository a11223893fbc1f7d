/**
 * Idempotency: one effect per key. An operation that is repeated with the same key runs once, and answers what it answered then.
 *
 * Promise: of any number of equal calls one runs, and the others get its result; another caller never does, because the scope is part of
 * the key; a process that dies blocks its key for one lease at most, and what then happens is `onLost`'s choice.
 */
import { type Clock, systemClock } from '../../core/clock.js';
import type { Duration } from '../../core/duration.js';
import { InDoubtError, InFlightError, KeyMissingError, KeyReusedError } from '../../core/errors.js';
import { Events, type HoldfastEvent } from '../../core/events.js';
import {
  checkOptions,
  duration,
  func,
  having,
  integer,
  oneOf,
  optional,
  text,
  withDefault,
} from '../../core/options.js';
import type { Store } from '../../stores/store.js';
import type { IdempotencyHandle } from './attempt.js';
import { type BeginRequest, type Begun, Engine, type ResultSerializer } from './engine.js';
import { fingerprint } from './fingerprint.js';

export type { AdapterHandle, Completion, IdempotencyHandle } from './attempt.js';
export type { BeginRequest, Begun, ResultSerializer } from './engine.js';
export { type FingerprintInput, fingerprint } from './fingerprint.js';

/** Options of {@link idempotency}. */
export interface IdempotencyOptions {
  /** Where the records are. A store that all processes share that may get the same request. */
  readonly store: Store;
  /** How long a record is kept after its last write. Default 24 h; longer than `lease`. */
  readonly ttl?: Duration;
  /** How long a process that has died blocks its keys: it renews at each third of it. Default 30 s; from 100 ms. */
  readonly lease?: Duration;
  /**
   * What happens when the process that ran an operation is lost. `'rerun'`: the next call runs it again. `'resume'`: likewise, and its
   * phases must be the same. `'refuse'`: the key is in doubt until somebody calls `resolve`. Default `'rerun'`; `'refuse'` for money without phases.
   */
  readonly onLost?: 'rerun' | 'resume' | 'refuse';
  /** How long to wait for an operation that runs elsewhere; `'off'` answers at once. Default `'off'`; '5s' serves most. */
  readonly wait?: Duration | 'off';
  /** How long the store may take to begin or end an operation. Default 500 ms. */
  readonly storeTimeout?: Duration;
  /** What happens while the store is down: `'refuse'` runs nothing, `'run'` runs unprotected. Default `'refuse'`. */
  readonly onStoreDown?: 'refuse' | 'run';
  /** The largest result that is stored, in bytes. Default 1 MiB; from 0. */
  readonly maxBodyBytes?: number;
  /** Names the engine in errors and events, and the operation of calls that name none. Default `'idempotency'`. */
  readonly name?: string;
  readonly on?: (event: HoldfastEvent) => void;
  readonly clock?: Clock;
}

/** Options of one {@link Idempotency.run}. */
export interface IdempotencyRunOptions {
  /** Whose key it is: a tenant or user as the server knows it, never what the caller says of itself. Required. */
  readonly scope: string;
  /** What the operation depends on; the same key with another input is refused. Whatever JSON can say, or text, or bytes. */
  readonly input?: unknown;
  /** What is done: the same key stands for another operation in another one. Default: the engine's `name`. */
  readonly operation?: string;
  /** Ends the waiting for an operation that runs elsewhere. */
  readonly signal?: AbortSignal;
}

/** What {@link idempotency} makes. */
export interface Idempotency {
  /** Runs a function once per key, and answers with its result, or that of the call that ran. */
  run<T>(
    key: string,
    fn: (handle: IdempotencyHandle) => T | PromiseLike<T>,
    options: IdempotencyRunOptions,
  ): Promise<T>;
  /** @internal For adapters. */
  begin(request: BeginRequest): Promise<Begun>;
}

export function idempotency(options: IdempotencyOptions): Idempotency {
  const checked = checkOptions('idempotency', options, {
    store: having<Store>('a store such as memoryStore()', 'read', 'write', 'remove'),
    ttl: withDefault(duration({}), 86_400_000),
    lease: withDefault(duration({ min: 100 }), 30_000),
    onLost: withDefault<'rerun' | 'resume' | 'refuse'>(oneOf(['rerun', 'resume', 'refuse']), 'rerun'),
    wait: withDefault<number | 'off'>(
      {
        allowed: "a duration such as '5s', or 'off'",
        parse: (value) => (value === 'off' ? 'off' : duration({}).parse(value)),
      },
      'off',
    ),
    storeTimeout: withDefault(duration({}), 500),
    onStoreDown: withDefault<'refuse' | 'run'>(oneOf(['refuse', 'run']), 'refuse'),
    maxBodyBytes: withDefault(integer({ min: 0 }), 1_048_576),
    name: withDefault(text(), 'idempotency'),
    on: optional(func<(event: HoldfastEvent) => void>()),
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule'), systemClock),
  });
  const { name, on, wait, ttl, lease, storeTimeout, ...rest } = checked;
  const engine = new Engine({
    ...{ ...rest, name, ttlMs: ttl, leaseMs: lease, storeTimeoutMs: storeTimeout },
    ...{ waitMs: wait === 'off' ? 0 : wait, secret: undefined, serializer: json, random: Math.random },
    events: new Events(name, on),
  });
  return new Functions(engine);
}

const json: ResultSerializer = {
  encode: (value) => new TextEncoder().encode(JSON.stringify(value)),
  decode: (bytes) => JSON.parse(new TextDecoder().decode(bytes)),
};

class Functions implements Idempotency {
  private readonly engine: Engine;

  constructor(engine: Engine) {
    this.engine = engine;
  }

  begin(request: BeginRequest): Promise<Begun> {
    return this.engine.begin(request);
  }

  async run<T>(
    key: string,
    fn: (handle: IdempotencyHandle) => T | PromiseLike<T>,
    options: IdempotencyRunOptions,
  ): Promise<T> {
    const { name, serializer } = this.engine.settings;
    if (typeof key !== 'string' || key === '') throw new KeyMissingError({ policy: name, detail: 'the key is empty' });
    const { scope, operation = name, signal, input } = options;
    const begun = await this.engine.begin({
      ...{ scope, operation, key, signal },
      fingerprint: await fingerprint({ head: [], body: JSON.stringify(input), isJson: true }),
    });
    switch (begun.kind) {
      case 'replay':
        return serializer.decode(begun.result) as T;
      case 'busy':
        throw new InFlightError({ policy: name, retryAfterMs: begun.retryAfterMs });
      case 'mismatch':
        throw new KeyReusedError({ policy: name });
      case 'in-doubt':
        throw new InDoubtError({ policy: name, reason: 'unknown', detail: 'in doubt', cause: begun.cause });
      case 'result-not-stored':
        throw new InDoubtError({ policy: name, reason: 'not-stored', detail: 'not stored', cause: begun.cause });
      case 'store-down':
        if (begun.handle === undefined) throw begun.error;
        return await fn(begun.handle);
    }
    const { handle } = begun;
    let value: T;
    try {
      value = await fn(handle);
    } catch (error) {
      await handle.abandon();
      throw error;
    }
    await handle.complete(serializer.encode(value));
    return value;
  }
}
