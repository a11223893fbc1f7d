/** A separate process with a cache before SQLite, Redis or Postgres. It does what messages tell it. */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { cache } from '../../../src/coordination/cache/cache.js';
import { postgresStore } from '../../../src/stores/postgres.js';
import { redisStore } from '../../../src/stores/redis.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';
import { drivers } from '../../stores/postgres-clients.ts';
import { unsynced } from '../../support/unsynced.ts';

export interface ChildSettings {
  /** The path of a file, or the port of a Redis or of a Postgres. */
  readonly place: string | number | { readonly postgres: number };
  readonly subscribes: boolean;
  /** A file that contains what is true now. */
  readonly source: string;
  readonly patience: 'default' | 'long';
  readonly lease: number;
  readonly onStoreDown?: 'reject' | 'replay';
}

export type Order =
  | {
      readonly id: number;
      readonly verb: 'get';
      readonly key: string;
      readonly callers: number;
      readonly loadMs: number;
    }
  | { readonly id: number; readonly verb: 'delete'; readonly key: string };

export type Told =
  | { readonly kind: 'loading'; readonly key: string }
  | { readonly kind: 'done'; readonly id: number; readonly values: readonly string[]; readonly tookMs: number }
  | { readonly kind: 'failed'; readonly id: number; readonly error: string };

const settings = JSON.parse(process.argv[2]!) as ChildSettings;
const tell = (told: Told) => process.send?.(told);

function openStore() {
  const { place, subscribes } = settings;
  if (typeof place === 'string') return sqliteStore(unsynced(place), { timeout: '10s' });
  if (typeof place === 'object') {
    const connection = drivers[0]!.connect(place.postgres, 4);
    return postgresStore(connection.pool, { timeout: '10s', listener: connection.listener });
  }
  const connect = () => {
    const client = new Redis(place, '127.0.0.1', {
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: null,
      retryStrategy: () => 50,
    });
    client.on('error', () => {});
    return client;
  };
  return redisStore(connect(), { timeout: '10s', ...(subscribes ? { subscriber: connect() } : {}) });
}

const loadMs = new Map<string, number>();
const values = cache<string>({
  store: openStore(),
  ttl: '10m',
  lease: settings.lease,
  onStoreDown: settings.onStoreDown ?? 'reject',
  // A machine that is busy with other work is not an outage.
  ...(settings.patience === 'long' ? { l2Timeouts: { read: '10s', write: '10s' } } : {}),
  load: async (key) => {
    tell({ kind: 'loading', key });
    const value = readFileSync(settings.source, 'utf8');
    await sleep(loadMs.get(key));
    return value;
  },
});

async function obey(order: Order): Promise<void> {
  const { id, key } = order;
  const startedMs = performance.now();
  try {
    let answers: string[] = [];
    if (order.verb === 'delete') await values.delete(key);
    else {
      loadMs.set(key, order.loadMs);
      answers = await Promise.all(Array.from({ length: order.callers }, () => values.get(key)));
    }
    tell({ kind: 'done', id, values: [...new Set(answers)], tookMs: performance.now() - startedMs });
  } catch (error) {
    tell({ kind: 'failed', id, error: String(error) });
  }
}

process.on('message', (order: Order) => void obey(order));
process.on('disconnect', () => process.exit());
