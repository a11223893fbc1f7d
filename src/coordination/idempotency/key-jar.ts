/**
 * Key jar: idempotency keys that are the same tomorrow, for jobs that are started again.
 *
 * Promise: one business operation has one key, whichever process asks for it and how often; a key that the other side may have forgotten is
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
import type { Store } from '../../stores/store.js';
import { keyHashOf } from './hashing.js';
import { checkRefusals } from './refusals.js';

/**
 * The idempotency key of a business operation: the same whenever it is asked for, so that nothing need be stored.
 *
 * For operations that happen once for ever: the payment of an invoice. What may rightly happen again, such as a second order of the
 * same goods, needs something in `businessId` that tells the two apart.
 *
 * @param businessId - What it is about, such as `'invoice 4711'`; 1 to 200 characters.
 * @param operation - What is done with it, such as `'pay'`; 1 to 200 characters.
 * @throws {@link OptionsError} `ERR_OPTIONS`, when one of them is no such text.
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
  /** Where the keys are kept; one that survives a restart, such as that of holdfast/sqlite. */
  readonly store: Store;
  /** How old a key may be and still be sent: less than the other side remembers it. Default 23 h; from 1 ms to 24.8 days. */
  readonly maxKeyAge?: Duration;
  /** How long a key that nobody forgets is kept, so that one that is too old is known for it. Default 30 days; up to 10 years. */
  readonly ttl?: Duration;
  /** Names the jar in errors; jars of different names have keys of their own. Default `'keyJar'`. */
  readonly name?: string;
}

/** What {@link keyJar} makes. */
export interface KeyJar {
  /**
   * The key of a business operation: made at random when it is first asked for, and the same from then on.
   *
   * @throws {@link InDoubtError} `ERR_IN_DOUBT`, reason `'too-old'`: find out what became of the operation, then `forget` the key.
   * @throws {@link StoreError} `ERR_STORE`.
   */
  key(businessId: string, options?: { readonly signal?: AbortSignal }): Promise<string>;
  /** The operation is over: the next one of that name gets another key. Whether there was one. */
  forget(businessId: string): Promise<boolean>;
}

/**
 * Keeps idempotency keys in a store, so that a job that is started again sends the same key as before.
 *
 * @param options - `store` (required), `maxKeyAge`, `ttl`, `name`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
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
    ttl: withDefault(duration({ max: 10 * 365 * 86_400_000 }), 30 * 86_400_000),
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
        // It went away in between.
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
