/**
 * Key jar: stable idempotency keys for jobs that are restarted.
 *
 * Promise: one business operation has one key, whichever process asks for it and how often; a key that the receiver may have forgotten is
 * an error, and never silently replaced by a new one.
 */

import type { Duration } from '../../core/duration.js';
import { InDoubtError } from '../../core/errors.js';
import {
  checkArgument,
  checkOptions,
  duration,
  having,
  impossibleOption,
  text,
  withDefault,
} from '../../core/options.js';
import { longestTtlMs, type Store } from '../../stores/store.js';
import { keyHashOf } from './hashing.js';
import { checkRefusals } from './refusals.js';

/**
 * Derives the idempotency key of a business operation: always the same, so that nothing needs to be stored.
 *
 * For operations that happen only once, such as paying an invoice. If an operation may rightly happen again, such as a second order of the
 * same goods, put something into `businessId` that tells the two apart.
 *
 * @param businessId - The subject, such as `'invoice 4711'`; 1 to 200 characters.
 * @param operation - What is done with it, such as `'pay'`; 1 to 200 characters.
 * @throws {@link OptionsError} `ERR_OPTIONS`, when one of them is not such a text.
 * @example
 * ```ts
 * import { keyFrom } from 'holdfast/fetch';
 *
 * console.log(keyFrom('invoice 4711', 'pay') === keyFrom('invoice 4711', 'pay')); // true
 * ```
 */
export function keyFrom(businessId: string, operation: string): string {
  checkArgument('keyFrom', 'businessId', businessId, text());
  checkArgument('keyFrom', 'operation', operation, text());
  return keyHashOf(undefined, 'key', String(operation.length), operation + businessId);
}

/** Options of {@link keyJar}. */
export interface KeyJarOptions {
  /** Where the keys are kept; use a store that survives a restart, such as that of holdfast/sqlite. */
  readonly store: Store;
  /** The greatest age of a key that may still be sent: less than the receiver remembers it. Default 23 h; from 1 ms to 24.8 days. */
  readonly maxKeyAge?: Duration | undefined;
  /** How long a key is kept unless `forget` is called, so that too old a key is recognized. Default 30 days; up to 10 years. */
  readonly ttl?: Duration | undefined;
  /** Names the jar in errors; jars with different names have separate keys. Default `'keyJar'`. */
  readonly name?: string | undefined;
}

/** What {@link keyJar} returns. */
export interface KeyJar {
  /**
   * The key of a business operation: random on the first call, the same from then on.
   *
   * @throws {@link InDoubtError} `ERR_IN_DOUBT`, reason `'too-old'`: find out what happened to the operation, then `forget` the key.
   * @throws {@link StoreError} `ERR_STORE`.
   */
  key(businessId: string, options?: { readonly signal?: AbortSignal | undefined }): Promise<string>;
  /** Call it when the operation is over: the next one with this name gets another key. Resolves with whether there was a key. */
  forget(businessId: string): Promise<boolean>;
}

/**
 * Keeps idempotency keys in a store, so that a restarted job sends the same key as before.
 *
 * @param options - `store` (required), `maxKeyAge`, `ttl`, `name`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { memoryStore } from 'holdfast';
 * import { keyJar } from 'holdfast/fetch';
 *
 * const jar = keyJar({ store: memoryStore() });
 * const first = await jar.key('pay invoice 4711');
 * console.log(first === (await jar.key('pay invoice 4711'))); // true
 * await jar.forget('pay invoice 4711'); // when the answer is there
 * ```
 */
export function keyJar(options: KeyJarOptions): KeyJar {
  const { store, maxKeyAge, ttl, name } = checkOptions('keyJar', options, {
    store: having<Store>('a store such as memoryStore() or redisStore(client)', 'read', 'write', 'remove'),
    maxKeyAge: withDefault(duration({}), 82_800_000),
    ttl: withDefault(duration({ max: longestTtlMs }), 30 * 86_400_000),
    name: withDefault(text(), 'keyJar'),
  });
  if (ttl <= maxKeyAge)
    throw impossibleOption('keyJar', 'ttl', options.ttl, `longer than "maxKeyAge", ${maxKeyAge} ms`);
  const storeKey = (businessId: string) => {
    checkArgument(name, 'businessId', businessId, text());
    return `key-jar:${keyHashOf(undefined, 'jar', String(name.length), name + businessId)}`;
  };

  return {
    async key(businessId, { signal } = {}) {
      const made = globalThis.crypto.randomUUID();
      const place = storeKey(businessId);
      for (let refusals = 0; ; refusals++) {
        checkRefusals(refusals);
        const answer = await store.write(place, new TextEncoder().encode(made), { ttlMs: ttl, ifVersion: 0, signal });
        if (answer.ok) return made;
        // The key expired or was removed in between.
        if (answer.entry === undefined) continue;
        const { value, ageMs } = answer.entry;
        if (ageMs <= maxKeyAge) return new TextDecoder().decode(value);
        const detail = `the key of "${businessId}" is ${Math.round(ageMs)} ms old ("maxKeyAge" is ${maxKeyAge} ms): find out what became of the operation, then forget the key`;
        throw new InDoubtError({ policy: name, reason: 'too-old', detail });
      }
    },
    async forget(businessId) {
      return store.remove(storeKey(businessId));
    },
  };
}
