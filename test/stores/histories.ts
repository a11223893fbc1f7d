/** Histories of clients of one server, on a network that breaks, as the history checker wants them. */
import { StoreError } from 'holdfast';
import {
  type FaultProxy,
  History,
  type SeededRandom,
  type StoreModelEntry,
  type StoreOperation,
  type StoreResult,
  seededRandom,
} from 'holdfast/testing';
import type { ClosableStore, Entry } from '../../src/stores/store.js';

const bytes = (text: string) => new TextEncoder().encode(text);
const text = (value: Uint8Array | undefined) => value && new TextDecoder().decode(value);

/** Four clients at two keys, and a network that breaks a few times on the way. */
export async function playHistory(stores: readonly ClosableStore[], proxy: FaultProxy, seed: number) {
  const history = new History<StoreOperation, StoreResult>();
  const random = seededRandom(seed);
  let lost = 0;
  let left = stores.length;
  const clients = stores.map(async (store, index) => {
    const own = random.fork(`client ${index}`);
    const seen = new Map<string, number>();
    for (let count = 0; count < 8; count++) {
      const key = `${seed}/${own.pick(['x', 'y'])}`;
      const operation = draw(own, `${index}.${count}`, seen.get(key) ?? 0);
      const open = history.invoke({ client: `client ${index}`, key, operation });
      try {
        const result = await perform(store, key, operation);
        open.ok(result);
        const version = versionIn(result);
        if (version !== undefined) seen.set(key, version);
      } catch (error) {
        if (!(error instanceof StoreError)) throw error;
        if (error.applied === 'no') open.failed();
        else {
          open.unknown();
          lost++;
        }
        // It is connected again soon; until then its verbs would only fail.
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
    left--;
  });
  const faults = (async () => {
    const own = random.fork('network');
    while (left > 0) {
      await new Promise((resolve) => setTimeout(resolve, own.integer(1, 6)));
      if (own() < 0.5) proxy.reset();
      else {
        await proxy.inject({
          kind: 'cut',
          direction: own.pick(['requests', 'replies']),
          afterBytes: own.integer(0, 200),
        });
        await new Promise((resolve) => setTimeout(resolve, 2));
        await proxy.heal();
      }
    }
  })();
  await Promise.all([...clients, faults]);
  return { history, lost };
}

function draw(random: SeededRandom, value: string, seenVersion: number): StoreOperation {
  const chance = random();
  if (chance < 0.3) return { type: 'read' };
  const ifVersion = random.pick([undefined, 0, seenVersion, seenVersion]);
  return chance < 0.8 ? { type: 'write', value, ifVersion } : { type: 'remove', ifVersion };
}

async function perform(store: ClosableStore, key: string, operation: StoreOperation): Promise<StoreResult> {
  if (operation.type === 'read') return modelEntry(await store.read(key));
  const { ifVersion } = operation;
  if (operation.type === 'remove') return store.remove(key, { ifVersion });
  const answer = await store.write(key, bytes(operation.value), { ttlMs: 600_000, ifVersion });
  return answer.ok ? answer : { ok: false, entry: modelEntry(answer.entry) };
}

function modelEntry(entry: Entry | undefined): StoreModelEntry | undefined {
  return entry && { value: text(entry.value)!, version: entry.version };
}

function versionIn(result: StoreResult): number | undefined {
  if (typeof result !== 'object') return undefined;
  return 'version' in result ? result.version : result.entry?.version;
}
