/** Where the demo's workers keep shared state: an SQLite file, the memory of one process, or a Redis or Postgres of the user. */
import type { EventEmitter } from 'node:events';
import { Agent } from 'node:http';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { postgresStore } from '../../stores/postgres.js';
import { type IoredisClient, redisStore } from '../../stores/redis.js';
import { sqliteStore } from '../../stores/sqlite.js';
import type { Store } from '../../stores/store.js';
import { post } from './http.js';
import { storeBehind } from './shared-memory.js';

export type StorePlace =
  | { readonly kind: 'sqlite'; readonly file: string }
  | { readonly kind: 'memory'; readonly port: number }
  | { readonly kind: 'redis' | 'postgres'; readonly url: string; readonly run: string };

export async function openStore(place: StorePlace, path: string): Promise<Store> {
  if (place.kind === 'sqlite') {
    const { DatabaseSync } = process.getBuiltinModule('node:sqlite');
    const database = new DatabaseSync(place.file);
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL');
    return sqliteStore(database, { prefix: path, timeout: '2s' });
  }
  if (place.kind === 'memory') {
    const agent = new Agent({ keepAlive: true });
    return storeBehind((question, signal) => post(agent, place.port, `/${path}`, question, signal));
  }
  const prefix = `demo-${place.run}-${path}`;
  if (place.kind === 'redis') {
    const { Redis } = driver('ioredis') as {
      Redis: new (url: string, options: object) => IoredisClient & EventEmitter;
    };
    const client = new Redis(place.url, { autoResendUnfulfilledCommands: false });
    let problem: unknown;
    client.on('error', (error: unknown) => {
      problem = error;
    });
    const store = redisStore(client, { prefix, timeout: '2s' });
    // Checked first: with an unreachable store the demo would show nothing but errors for a minute.
    await store.read('ready').catch((error: unknown) => {
      throw problem ?? error;
    });
    return store;
  }
  const { Pool } = driver('pg') as { Pool: new (options: object) => Parameters<typeof postgresStore>[0] };
  const store = postgresStore(new Pool({ connectionString: place.url }), { prefix, timeout: '2s' });
  await store.migrate();
  return store;
}

/** The driver is the user's, so it is resolved from the folder in which the demo was started. */
function driver(name: string): unknown {
  try {
    return createRequire(join(process.cwd(), 'demo.js'))(name);
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'MODULE_NOT_FOUND') throw error;
    throw new Error(`"${name}" is not installed in ${process.cwd()}: npm install ${name}`, { cause: error });
  }
}
