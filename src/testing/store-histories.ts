/** Store histories: clients of one store that run random verbs on the same keys concurrently, recorded for the history checker. */
import { StoreError } from '../core/errors.js';
import type { Entry, Store } from '../stores/store.js';
import { History } from './history/index.js';
import { type SeededRandom, seededRandom } from './random.js';
import { bytes, minute, text } from './store-bench.js';
import type { StoreModelEntry, StoreOperation, StoreResult } from './store-model.js';

/** Lets each client run a few random verbs on the same two keys concurrently. */
export async function playHistory(
  clients: readonly Store[],
  seed: number,
): Promise<History<StoreOperation, StoreResult>> {
  const history = new History<StoreOperation, StoreResult>();
  const random = seededRandom(seed);
  const keys = [`${seed}/x`, `${seed}/y`];
  await Promise.all(
    clients.map(async (store, index) => {
      const client = `client ${index}`;
      const own = random.fork(client);
      /** The version of each key that this client saw last. */
      const seenVersions = new Map<string, number>();
      for (let count = 0; count < 10; count++) {
        const key = own.pick(keys);
        const operation = draw(own, `${index}.${count}`, seenVersions.get(key) ?? 0);
        for (let hops = own.integer(0, 3); hops > 0; hops--) await undefined;
        const result = await record(history, store, client, key, operation);
        const version = versionIn(result);
        if (version !== undefined) seenVersions.set(key, version);
      }
    }),
  );
  return history;
}

/** The next verb of a client, sometimes with a condition that will not hold. */
export function draw(random: SeededRandom, value: string, seenVersion: number): StoreOperation {
  const chance = random();
  if (chance < 0.25) return { type: 'read' };
  const ifVersion = random.pick([undefined, 0, seenVersion, seenVersion]);
  return chance < 0.8 ? { type: 'write', value, ifVersion } : { type: 'remove', ifVersion };
}

async function record(
  history: History<StoreOperation, StoreResult>,
  store: Store,
  client: string,
  key: string,
  operation: StoreOperation,
): Promise<StoreResult> {
  const open = history.invoke({ client, key, operation });
  try {
    const result = await perform(store, key, operation);
    open.ok(result);
    return result;
  } catch (error) {
    if (error instanceof StoreError && error.applied === 'no') open.failed();
    else if ((error as Partial<StoreError> | undefined)?.code === 'ERR_STORE') open.unknown();
    else throw error;
    return undefined;
  }
}

/** Runs the verb, and returns its result in the form of `storeModel`. */
export async function perform(store: Store, key: string, operation: StoreOperation): Promise<StoreResult> {
  if (operation.type === 'read') return modelEntry(await store.read(key));
  const { ifVersion } = operation;
  const condition = ifVersion === undefined ? {} : { ifVersion };
  if (operation.type === 'remove') return store.remove(key, condition);
  const answer = await store.write(key, bytes(operation.value), { ttlMs: 10 * minute, ...condition });
  return answer.ok ? { ok: true, version: answer.version } : { ok: false, entry: modelEntry(answer.entry) };
}

function modelEntry(entry: Entry | undefined): StoreModelEntry | undefined {
  return entry && { value: text(entry.value), version: entry.version };
}

/** The version of the key that a result shows. */
export function versionIn(result: StoreResult): number | undefined {
  if (typeof result !== 'object') return undefined;
  return 'version' in result ? result.version : 'entry' in result ? result.entry?.version : undefined;
}
