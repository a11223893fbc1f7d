/**
 * Verb checks: what every store checks before it begins, of its options and of the arguments of a verb.
 *
 * Promise: if a check throws, nothing has been touched. The mistake is named in the same words whatever the store.
 */
import { StoreError, type StoreFailure } from '../core/errors.js';
import { isBytes, isWellFormed } from '../core/kinds.js';
import { integer, withDefault } from '../core/options.js';
import { ConsumeRate } from './consume.js';
import {
  type ConsumeOptions,
  longestTtlMs,
  type StoreCallOptions,
  type StoreChange,
  type StoreRemoveOptions,
  type StoreWriteOptions,
} from './store.js';
import { Watcher, type Watchers } from './watchers.js';

/** The longest key, in bytes of UTF-8. */
const longestKeyBytes = 512;

/** The limit of one `readMany`: its reply may be a thousand times the largest value. */
const mostKeys = 1000;

/** An option of every store. 1 MiB holds any record of this package; larger values belong elsewhere. */
export const maxValueBytesField = /* @__PURE__ */ withDefault(
  /* @__PURE__ */ integer({ min: 1, max: 1_073_741_824 }),
  1_048_576,
);

/** An option of stores that share a server. It allows none of the characters that separate the prefix from the key. */
export const prefixField = /* @__PURE__ */ withDefault(
  {
    allowed: 'a string of 1 to 64 letters, digits and characters of "_-.:/"',
    parse: (value: unknown) =>
      typeof value === 'string' && /^[A-Za-z0-9_\-.:/]{1,64}$/.test(value) ? value : undefined,
  },
  'holdfast',
);

/** The checks of the arguments of each verb. */
export class VerbChecks {
  private readonly store: string;
  private readonly maxValueBytes: number;

  constructor(store: string, maxValueBytes: number) {
    this.store = store;
    this.maxValueBytes = maxValueBytes;
  }

  read(key: unknown, options: StoreCallOptions | undefined): void {
    if (options !== undefined && options !== null) {
      for (const name in options) if (name !== 'signal') throw this.unknownOption('read', name);
      throwIfAborted(options.signal);
    }
    this.key('read', key);
  }

  write(key: unknown, value: unknown, options: StoreWriteOptions): void {
    // Plain JavaScript may omit the options.
    const given: Partial<StoreWriteOptions> = options ?? {};
    for (const name in given) {
      if (name !== 'ttlMs' && name !== 'ifVersion' && name !== 'evictable' && name !== 'signal') {
        throw this.unknownOption('write', name);
      }
    }
    throwIfAborted(given.signal);
    this.key('write', key);
    if (!isBytes(value)) throw this.invalid('write', `the value must be a Uint8Array, got ${kindOf(value)}`);
    if (value.byteLength > this.maxValueBytes) {
      const advice = 'keep a reference instead, or raise "maxValueBytes"';
      throw this.invalid('write', `the value has ${value.byteLength} bytes, at most ${this.maxValueBytes}; ${advice}`);
    }
    const { ttlMs, evictable } = given;
    if (typeof ttlMs !== 'number' || !(ttlMs >= 1 && ttlMs <= longestTtlMs)) {
      throw this.invalid('write', `"ttlMs" must be from 1 to ${longestTtlMs} milliseconds, got ${String(ttlMs)}`);
    }
    if (evictable !== undefined && typeof evictable !== 'boolean') {
      throw this.invalid('write', `"evictable" must be true or false, got ${kindOf(evictable)}`);
    }
    this.version('write', given.ifVersion);
  }

  remove(key: unknown, options: StoreRemoveOptions | undefined): void {
    if (options !== undefined && options !== null) {
      for (const name in options) {
        if (name !== 'ifVersion' && name !== 'signal') throw this.unknownOption('remove', name);
      }
      throwIfAborted(options.signal);
      this.version('remove', options.ifVersion);
    }
    this.key('remove', key);
  }

  readMany(keys: unknown, options: StoreCallOptions | undefined): void {
    if (options !== undefined && options !== null) {
      for (const name in options) if (name !== 'signal') throw this.unknownOption('readMany', name);
      throwIfAborted(options.signal);
    }
    if (!Array.isArray(keys)) throw this.invalid('readMany', `the keys must be a list, got ${kindOf(keys)}`);
    if (keys.length > mostKeys) throw this.invalid('readMany', `${keys.length} keys were given, at most ${mostKeys}`);
    for (const key of keys) this.key('readMany', key);
  }

  consume(key: unknown, options: ConsumeOptions): ConsumeRate {
    const given: Partial<ConsumeOptions> = options ?? {};
    for (const name in given) {
      if (name !== 'limit' && name !== 'periodMs' && name !== 'burst' && name !== 'cost' && name !== 'signal') {
        throw this.unknownOption('consume', name);
      }
    }
    throwIfAborted(given.signal);
    this.key('consume', key);
    const { limit, periodMs, burst = limit, cost = 1 } = given;
    this.number('limit', limit, 1, Number.MAX_SAFE_INTEGER);
    this.number('periodMs', periodMs, 1, longestTtlMs);
    this.number('burst', burst, 1, Number.MAX_SAFE_INTEGER);
    // More than the burst could never be granted.
    this.number('cost', cost, 0, burst!);
    const rate = new ConsumeRate(options);
    if (rate.wholeMs > longestTtlMs)
      throw this.invalid('consume', 'the whole burst would take more than 10 years to come back');
    return rate;
  }

  /** A watch that may start, or one that has already failed. */
  watch(key: string, onChange: (change: StoreChange) => void, watchers: Watchers, isClosed: boolean): Watcher {
    const watcher = new Watcher(this.store, key, onChange);
    try {
      this.key('watch', key);
      if (typeof onChange !== 'function')
        throw this.invalid('watch', `the listener must be a function, got ${kindOf(onChange)}`);
      if (isClosed) throw this.failure('watch', 'closed', 'the store is closed');
      if (watchers.isFull) throw this.failure('watch', 'full', `${watchers.size} watches are open; close some`);
    } catch (error) {
      watcher.fail(error);
    }
    return watcher;
  }

  private number(name: string, value: unknown, min: number, max: number): void {
    if (typeof value === 'number' && value >= min && value <= max) return;
    throw this.invalid('consume', `"${name}" must be a number from ${min} to ${max}, got ${String(value)}`);
  }

  private key(operation: string, key: unknown): void {
    if (typeof key !== 'string') throw this.invalid(operation, `the key must be a string, got ${kindOf(key)}`);
    if (key.length === 0) throw this.invalid(operation, 'the key is empty');
    if (!isWellFormed(key)) throw this.invalid(operation, 'the key is no well-formed Unicode');
    // A UTF-16 code unit takes at most three bytes in UTF-8.
    if (key.length * 3 > longestKeyBytes && utf8Length(key) > longestKeyBytes) {
      throw this.invalid(operation, `the key has ${utf8Length(key)} bytes, at most ${longestKeyBytes}; hash it`);
    }
  }

  private version(operation: string, version: unknown): void {
    if (version === undefined || (Number.isSafeInteger(version) && (version as number) >= 0)) return;
    throw this.invalid(operation, `"ifVersion" must be a version or 0, got ${String(version)}`);
  }

  private unknownOption(operation: string, name: string): StoreError {
    return this.invalid(operation, `unknown option "${name}"`);
  }

  private invalid(operation: string, detail: string): StoreError {
    return this.failure(operation, 'invalid', detail);
  }

  private failure(operation: string, reason: StoreFailure, detail: string): StoreError {
    return new StoreError({ store: this.store, operation, reason, applied: 'no', detail });
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw signal.reason;
}

/** For well-formed text only. */
function utf8Length(text: string): number {
  let bytes = 0;
  for (const character of text) {
    const point = character.codePointAt(0)!;
    bytes += point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  }
  return bytes;
}

function kindOf(value: unknown): string {
  return value === null ? 'null' : typeof value;
}
