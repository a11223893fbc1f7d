/** What both shops of the demo share: the bank, the store, and the connection to the demo. */
import { DatabaseSync } from 'node:sqlite';
import { cache, standard } from 'holdfast';
import { sqliteStore } from 'holdfast/sqlite';

interface Settings {
  readonly path: 'naked' | 'protected';
  readonly bankPort: number;
  readonly patienceMs: number;
  readonly store: { readonly kind: string; readonly file: string };
}

const settings = JSON.parse(process.env.HOLDFAST_DEMO_PART ?? '{}') as Settings;
if (settings.store?.kind !== 'sqlite')
  throw new Error('these shops keep their records in SQLite; leave --redis and --postgres out');

export const isProtected = settings.path === 'protected';

const database = new DatabaseSync(settings.store.file);
database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL');
export const store = sqliteStore(database, { prefix: settings.path, timeout: '2s' });

async function bank(request: object, signal?: AbortSignal): Promise<unknown> {
  const response = await fetch(`http://127.0.0.1:${settings.bankPort}/${settings.path}`, {
    method: 'POST',
    body: JSON.stringify(request),
    signal: signal ?? null,
  });
  if (!response.ok) throw new Error(`the bank says ${response.status}`);
  return response.json();
}

/** As most people write it. */
async function tryAgain(request: object): Promise<unknown> {
  for (let triesLeft = 3; ; triesLeft--) {
    try {
      return await bank(request);
    } catch (error) {
      if (triesLeft === 0) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

const calls = standard({ name: 'bank', deadline: settings.patienceMs, timeout: settings.patienceMs / 2 });

export const quote = () =>
  isProtected ? calls.execute(({ signal }) => bank({ kind: 'quote' }, signal)) : tryAgain({ kind: 'quote' });

const products = cache({
  name: 'product',
  store,
  ttl: 500,
  staleWhileRevalidate: 200,
  load: () => calls.execute(({ signal }) => bank({ kind: 'product' }, signal)),
});

let known: { readonly value: unknown; readonly endsAtMs: number } | undefined;

async function lookAndLoad(): Promise<unknown> {
  if (known !== undefined && Date.now() < known.endsAtMs) return known.value;
  const value = await tryAgain({ kind: 'product' });
  known = { value, endsAtMs: Date.now() + 500 };
  return value;
}

export const product = () => (isProtected ? products.get('kelp') : lookAndLoad());

/** Checks whether the order was charged before it charges. */
export async function lookAndCharge(order: string): Promise<unknown> {
  const key = `order ${order}`;
  const entry = await store.read(key);
  if (entry !== undefined) return JSON.parse(new TextDecoder().decode(entry.value));
  const receipt = await tryAgain({ kind: 'charge', order });
  await store.write(key, new TextEncoder().encode(JSON.stringify(receipt)), { ttlMs: 86_400_000 });
  return receipt;
}

export const charge = (order: string, key: string) =>
  calls.execute(({ signal }) => bank({ kind: 'charge', order, key }, signal), { unsafe: true, idempotencyKey: key });

/** Tells the demo where this shop listens, and ends when the demo does, and only then. */
export function opened(port: number): void {
  process.on('disconnect', () => process.exit());
  if (!process.connected) process.exit();
  // A terminal signals the whole group on Ctrl-C and when it is closed.
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => {});
  process.send?.({ kind: 'ready', value: { port } });
}
