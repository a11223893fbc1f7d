/**
 * Where the records are: an SQLite file by default, which serves all processes of one machine; with SHOP_STORE=redis://host:port a server
 * that machines share.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { Store } from 'holdfast';
import { redisStore } from 'holdfast/redis';
import { sqliteStore } from 'holdfast/sqlite';
import { Redis } from 'ioredis';

export interface OpenStore {
  readonly name: string;
  readonly store: Store;
  close(): Promise<void>;
}

export function openStore(address = process.env.SHOP_STORE ?? ''): OpenStore {
  if (address.startsWith('redis://')) {
    const client = new Redis(address);
    const close = async () => void (await client.quit());
    return { name: 'Redis', store: redisStore(client, { prefix: `shop-${process.pid}` }), close };
  }
  if (address !== '') throw new Error(`SHOP_STORE must be empty or begin with redis://, it is ${address}`);
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-shop-'));
  const db = new DatabaseSync(join(folder, 'shop.db'));
  const close = async () => {
    db.close();
    rmSync(folder, { recursive: true, force: true });
  };
  return { name: 'SQLite', store: sqliteStore(db), close };
}
