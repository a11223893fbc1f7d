/** Another process on the same file. It does what messages tell it, or writes in a loop until it is killed. */
import { type SqliteStore, sqliteStore } from '../../src/stores/sqlite.js';
import { unsynced } from '../support/unsynced.ts';

export interface Asked {
  readonly id: number;
  readonly verb: 'read' | 'write' | 'remove';
  readonly key: string;
  readonly value?: string;
  readonly ifVersion?: number;
}

const [path, mode] = process.argv.slice(2) as [string, string];
const store = sqliteStore(unsynced(path), { timeout: '10s' });
// The parent may end first.
process.on('disconnect', () => process.exit());
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

if (mode === 'loop') await writeForEver(store);
else process.on('message', (asked: Asked) => void answer(asked));

async function writeForEver(target: SqliteStore): Promise<void> {
  for (let count = 1; ; count++) {
    // Each byte of a value is the same, and each pair of keys is written in one transaction.
    const value = new Uint8Array(20_000).fill(count);
    const answer = await target.write('key', value, { ttlMs: 600_000 });
    if (!answer.ok) throw new Error('an unconditional write was refused');
    await target.native.transaction((view) => {
      for (const key of ['left', 'right']) view.write(key, value, { ttlMs: 600_000 });
    });
    // Nothing else here waits for anything, so what a full pipe does not accept would never be sent.
    await new Promise((sent) => process.send!(answer.version, sent));
  }
}

async function answer({ id, verb, key, value = '', ifVersion }: Asked): Promise<void> {
  const condition = ifVersion === undefined ? {} : { ifVersion };
  const show = (entry: { value: Uint8Array; version: number } | undefined) =>
    entry && { value: hex(entry.value), version: entry.version };
  try {
    if (verb === 'read') process.send?.({ id, result: show(await store.read(key)) });
    else if (verb === 'remove') process.send?.({ id, result: await store.remove(key, condition) });
    else {
      const given = await store.write(key, Buffer.from(value, 'hex'), { ttlMs: 600_000, ...condition });
      process.send?.({ id, result: given.ok ? given : { ok: false, entry: show(given.entry) } });
    }
  } catch (error) {
    process.send?.({ id, error: String(error) });
  }
}
