/** One of the processes: 25 callers ask for one key when the parent says so. */
import { DatabaseSync } from 'node:sqlite';
import { cache, type Store } from 'holdfast';
import { redisStore } from 'holdfast/redis';
import { sqliteStore } from 'holdfast/sqlite';
import { Redis } from 'ioredis';

const [how, place] = process.argv.slice(2) as ['without' | 'with', string];
const ttlMs = 500;
let loads = 0;

/** The expensive load: it takes 100 ms, and longer for a database that is asked 200 times at once. */
async function load(): Promise<string> {
  loads++;
  await new Promise((resolve) => setTimeout(resolve, 100));
  return 'the front page';
}

const { store, end } = open();

function open(): { readonly store: Store; readonly end: () => void } {
  if (/^\d+$/.test(place)) {
    const clients = [1, 2].map(() => new Redis(Number(place), '127.0.0.1', { autoResendUnfulfilledCommands: false }));
    const [client, subscriber] = clients as [Redis, Redis];
    return {
      store: redisStore(client, { prefix: 'stampede', subscriber }),
      end: () => clients.map((one) => one.disconnect()),
    };
  }
  const db = new DatabaseSync(place);
  // With the naive approach, 200 writers wait for each other.
  return { store: sqliteStore(db, { timeout: '1m' }), end: () => db.close() };
}

/** The usual code: look up, load, store. */
async function lookLoadStore(key: string): Promise<string> {
  const entry = await store.read(key);
  if (entry !== undefined) return new TextDecoder().decode(entry.value);
  const value = await load();
  await store.write(key, new TextEncoder().encode(value), { ttlMs });
  return value;
}

const pages = cache<string>({ store, ttl: ttlMs, load, l2Timeouts: { read: '5s', write: '5s' } });
const get = how === 'with' ? (key: string) => pages.get(key) : lookLoadStore;

process.on('message', async () => {
  loads = 0;
  const startedMs = performance.now();
  await Promise.all(Array.from({ length: 25 }, () => get('front')));
  process.send?.({ loads, slowestMs: performance.now() - startedMs });
});
process.once('disconnect', async () => {
  await pages.close();
  end();
});
// The first use opens the database, or connects.
await store.read('warm').catch(() => {});
process.send?.('ready');
