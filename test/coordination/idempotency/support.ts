/** What the tests of idempotency share: an engine in virtual time, and stores that fail or only have the three verbs. */
import type { Begun, IdempotencyOptions } from '../../../src/coordination/idempotency/idempotency.js';
import {
  type HoldfastEvent,
  type IdempotencyEvent,
  idempotency,
  memoryStore,
  type Store,
  StoreError,
} from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';

export function setUp(options: Partial<IdempotencyOptions> = {}, wrap: (store: Store) => Store = (store) => store) {
  const clock = virtualClock();
  const store = memoryStore({ clock });
  const events: IdempotencyEvent[] = [];
  const on = (event: HoldfastEvent) => {
    if (event.type === 'idempotency') events.push(event);
  };
  const once = idempotency({ store: wrap(store), clock, on, random: () => 0.5, lease: '3s', ...options });
  const outcomes = () => events.map(({ outcome }) => outcome);
  return { clock, store, once, events, outcomes };
}

export const scope = { scope: 'shop' };
export const raw = { scope: 'shop', operation: 'POST /orders', key: 'k' };

/** What a store of the tests fails with. */
export function storeError(applied: 'no' | 'unknown', reason: 'failed' | 'busy' | 'invalid' = 'failed') {
  return new StoreError({ store: 'test', operation: 'write', reason, applied, detail: 'injected' });
}

/** A process that is gone once it has begun: nothing moves its clock. */
export const lostIn = (store: Store, options: Partial<IdempotencyOptions> = {}) =>
  idempotency({ store, clock: virtualClock(), lease: '3s', ...options });

/** A store whose answers can be withheld. */
export function unreliable(inner: Store) {
  const faults: ('fails' | 'lost' | 'hangs' | 'works')[] = [];
  let verbs = 0;
  async function around<T>(verb: () => Promise<T>): Promise<T> {
    verbs++;
    const fault = faults.shift();
    if (fault === 'hangs') return new Promise(() => {});
    if (fault === 'fails') throw storeError('no');
    const answer = await verb();
    if (fault === 'lost') throw storeError('unknown');
    return answer;
  }
  const store: Store = {
    read: (key, options) => around(() => inner.read(key, options)),
    write: (key, value, options) => around(() => inner.write(key, value, options)),
    remove: (key, options) => around(() => inner.remove(key, options)),
  };
  return {
    store,
    faults,
    get verbs() {
      return verbs;
    },
  };
}

/** A store that has only the three verbs, and whose every answer is awaited. */
export function plain(inner: Store): Store {
  return {
    read: async (...given) => inner.read(...given),
    write: async (...given) => inner.write(...given),
    remove: async (...given) => inner.remove(...given),
  };
}

/** What a begin that runs is given. */
export function handleOf(begun: Begun) {
  if (!('handle' in begun) || begun.handle === undefined) throw new Error(begun.kind);
  return begun.handle;
}

/** An engine on a store whose answers can be withheld, both on the same clock. */
export function setUpUnreliable(options: Parameters<typeof setUp>[0] = {}) {
  const faulties: ReturnType<typeof unreliable>[] = [];
  const world = setUp(options, (store) => {
    const faulty = unreliable(store);
    faulties.push(faulty);
    return faulty.store;
  });
  return { ...world, faulty: faulties[0]! };
}
