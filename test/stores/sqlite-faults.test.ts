/** What befalls a file of SQLite: a full disk, a backup, a VACUUM, a reader that does not end, a file that takes no writes or is no database. */
import { once } from 'node:events';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import * as nodeLibrary from 'node:sqlite';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { sqliteStore } from '../../src/stores/sqlite.js';
import type { Store } from '../../src/stores/store.js';
import { canMount, smallDisk } from '../support/servers/small-disk.ts';
import { temporaryFolder } from '../support/temporary-folder.ts';
import { drivers, type OpenDatabase, temporaryDatabase } from './sqlite-files.js';
import { bytes, failure, text } from './support.ts';

const ttlMs = 600_000;
const require = createRequire(import.meta.url);

/** Any connection to a file, of the library that is looked at: two libraries in one process do not see each other's locks. */
interface Library {
  readonly reading: (path: string) => OpenDatabase;
  readonly backUp: (db: OpenDatabase, path: string, onStep: () => void) => Promise<unknown>;
}

const libraries: Readonly<Record<string, () => Library>> = {
  'node:sqlite': () => ({
    reading: (path) => new nodeLibrary.DatabaseSync(path, { readOnly: true }),
    backUp: (db, path, progress) =>
      nodeLibrary.backup(db as nodeLibrary.DatabaseSync, path, { rate: 20, progress }) as Promise<unknown>,
  }),
  'better-sqlite3': () => {
    type Database = OpenDatabase & { backup(path: string, options: { progress(): number }): Promise<unknown> };
    const Database = require('better-sqlite3') as new (path: string, options: { readonly: boolean }) => Database;
    return {
      reading: (path) => new Database(path, { readonly: true }),
      backUp: (db, path, onStep) =>
        (db as Database).backup(path, {
          progress() {
            onStep();
            return 20;
          },
        }),
    };
  },
};

function unsynced(db: OpenDatabase): OpenDatabase {
  db.exec('PRAGMA synchronous = OFF');
  return db;
}

const isWhole = (db: OpenDatabase) =>
  expect(db.prepare('PRAGMA integrity_check').all()).toMatchObject([{ integrity_check: 'ok' }]);

const versionOf = async (written: ReturnType<Store['write']>) => {
  const answer = await written;
  return answer.ok ? answer.version : 0;
};

/** Writes and reads until `isOver`. The versions grow, and each read returns what was written last. */
async function workUntil(store: Store, isOver: () => boolean): Promise<{ last: number; times: number }> {
  let [last, times] = [0, 0];
  while (!isOver() || times < 3) {
    const version = await versionOf(store.write('busy', bytes(`${times}`), { ttlMs }));
    expect(version).toBeGreaterThan(last);
    expect(text((await store.read('busy'))?.value)).toBe(`${times}`);
    last = version;
    times++;
    await nextTurn();
  }
  return { last, times };
}

describe.each(drivers)('sqliteStore on $title', ({ title, open }) => {
  const { reading, backUp } = libraries[title]!();

  it.skipIf(!canMount)(
    'says that the disk is full, changes nothing, keeps all, and goes on when there is room',
    async () => {
      const folder = temporaryFolder('sqlite-disk');
      const disk = smallDisk(join(folder, 'small'), 0, 3);
      const path = join(disk.folder, 'store.db');
      try {
        const db = open(path);
        const store = sqliteStore(db);
        const versions = new Map<string, number>();
        const fill = async () => {
          for (let count = 0; count < 100; count++) {
            const value = new Uint8Array(100_000).fill(count);
            versions.set(`key ${count}`, await versionOf(store.write(`key ${count}`, value, { ttlMs, ifVersion: 0 })));
          }
        };
        expect(await failure(fill())).toMatchObject({ reason: 'full', applied: 'no' });
        expect(versions.size).toBeGreaterThan(5);
        const together = store.native.transaction((view) => {
          view.write('left', bytes('half'), { ttlMs });
          view.write('right', new Uint8Array(1_000_000), { ttlMs });
        });
        expect(await failure(together)).toMatchObject({ reason: 'full', applied: 'no' });
        // Who comes only now is told the same.
        const late = open(path);
        const large = sqliteStore(late).write('late', new Uint8Array(1_000_000), { ttlMs });
        expect(await failure(large)).toMatchObject({ reason: 'full', applied: 'no' });
        const absent = ['left', 'right', 'late', `key ${versions.size}`];
        expect(await store.native.readMany(absent)).toEqual(absent.map(() => undefined));
        for (const [key, version] of versions) expect((await store.read(key))?.version).toBe(version);
        disk.resize(30);
        const next = await versionOf(store.write('key 0', new Uint8Array(100_000), { ttlMs }));
        expect(next).toBeGreaterThan(Math.max(...versions.values()));
        isWhole(db);
        late.close();
        db.close();
      } finally {
        disk.dispose();
        rmSync(folder, { recursive: true, force: true });
      }
    },
  );

  it('goes on while its file is backed up, and the copy is whole', async () => {
    using file = temporaryDatabase();
    using copy = temporaryDatabase();
    const db = unsynced(open(file.path));
    const store = sqliteStore(db);
    for (let index = 0; index < 50; index++) await store.write(`key ${index}`, new Uint8Array(50_000), { ttlMs });
    let [steps, pairs] = [0, 0];
    const work = async (isOver: () => boolean) => {
      while (!isOver()) {
        pairs++;
        await store.native.transaction((view) => {
          for (const key of ['left', 'right']) view.write(key, bytes(`${pairs}`), { ttlMs });
        });
        await workUntil(store, () => true);
      }
    };
    // node:sqlite copies in another thread, and gives up if it meets a statement of this one as it begins.
    for (let isCopied = false, triesLeft = 30; !isCopied; triesLeft--) {
      let outcome: unknown;
      const backup = backUp(db, copy.path, () => steps++).then(
        () => {
          outcome = 'copied';
        },
        (error: unknown) => {
          outcome = error;
        },
      );
      await work(() => outcome !== undefined);
      await backup;
      isCopied = outcome === 'copied';
      if (!isCopied && triesLeft === 1) throw outcome;
    }
    expect(steps).toBeGreaterThan(1);
    const copied = open(copy.path);
    isWhole(copied);
    const restored = sqliteStore(copied);
    const [left, right] = await restored.native.readMany(['left', 'right']);
    expect(left).toBeDefined();
    expect(left?.value).toEqual(right?.value);
    expect(await versionOf(restored.write('left', bytes('next'), { ttlMs }))).toBeGreaterThan(right!.version);
    copied.close();
    db.close();
  });

  it('goes on while others VACUUM its file, and gives no version twice', async () => {
    using file = temporaryDatabase();
    const db = unsynced(open(file.path));
    const store = sqliteStore(db, { timeout: '60s' });
    for (let index = 0; index < 100; index++) await store.write(`key ${index}`, new Uint8Array(100_000), { ttlMs });
    const program = `
      const { workerData: [library, path] } = require('node:worker_threads');
      const { DatabaseSync: Database = require(library) } = require(library);
      const db = new Database(path);
      db.exec('PRAGMA synchronous = OFF; PRAGMA busy_timeout = 60000');
      for (let count = 0; count < 3; count++) db.exec('VACUUM');
      db.close();`;
    const worker = new Worker(program, { eval: true, workerData: [require.resolve(title), file.path] });
    let isOver = false;
    const ended = once(worker, 'exit').finally(() => {
      isOver = true;
    });
    const { last } = await workUntil(store, () => isOver);
    expect(await ended).toEqual([0]);
    isWhole(db);
    // The newest is removed, and its number is not given again.
    await store.remove('busy');
    db.exec('VACUUM');
    expect(await versionOf(store.write('busy', bytes('next'), { ttlMs, ifVersion: 0 }))).toBeGreaterThan(last);
    db.close();
  });

  it('goes on while a long transaction reads, and its log stops growing when that ends', async () => {
    using file = temporaryDatabase();
    const db = unsynced(open(file.path));
    const store = sqliteStore(db);
    const reader = open(file.path);
    const logSize = () => statSync(`${file.path}-wal`).size;
    const work = async () => {
      for (let index = 0; index < 100; index++) await store.write('key', new Uint8Array(100_000), { ttlMs });
    };
    await store.write('key', bytes('old'), { ttlMs });
    reader.exec('BEGIN');
    const seen = () => reader.prepare('SELECT length(value) AS size FROM holdfast_entries').all();
    expect(seen()).toMatchObject([{ size: 3 }]);
    await work();
    const grown = logSize();
    expect(grown).toBeGreaterThan(10_000_000);
    expect(seen()).toMatchObject([{ size: 3 }]);
    reader.exec('COMMIT');
    await work();
    expect(logSize()).toBeLessThan(grown + 1_000_000);
    expect((await store.read('key'))?.value.length).toBe(100_000);
    isWhole(db);
    reader.close();
    db.close();
  });

  it('gives up with reason busy a file that somebody else keeps for himself, and works when it is free', async () => {
    using file = temporaryDatabase();
    const owner = open(file.path);
    owner.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; CREATE TABLE mine (id)');
    const db = open(file.path);
    const store = sqliteStore(db, { timeout: 100 });
    for (const verb of [() => store.read('key'), () => store.write('key', bytes('new'), { ttlMs })]) {
      expect(await failure(verb())).toMatchObject({ reason: 'busy', applied: 'no' });
    }
    owner.close();
    expect(await store.write('key', bytes('new'), { ttlMs, ifVersion: 0 })).toMatchObject({ ok: true });
    expect(text((await store.read('key'))?.value)).toBe('new');
    db.close();
  });

  it('reads by a connection that may only read, and says so when it is to write', async () => {
    using file = temporaryDatabase();
    const db = open(file.path);
    await sqliteStore(db).write('key', bytes('old'), { ttlMs });
    const reader = reading(file.path);
    const store = sqliteStore(reader);
    expect(text((await store.read('key'))?.value)).toBe('old');
    for (const verb of [
      () => store.write('key', bytes('new'), { ttlMs }),
      () => store.remove('key'),
      () => store.native.transaction((view) => view.write('key', bytes('new'), { ttlMs })),
    ]) {
      const error = await failure(verb());
      expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
      expect(error.message).toContain('takes no writes; open it for writing');
    }
    expect(text((await store.read('key'))?.value)).toBe('old');
    reader.close();
    db.close();
  });

  it('says that a file is no database, and leaves it as it is', async () => {
    using file = temporaryDatabase();
    const content = 'the notes of somebody\n'.repeat(1000);
    writeFileSync(file.path, content);
    const db = open(file.path);
    const store = sqliteStore(db);
    for (const verb of [() => store.read('key'), () => store.write('key', bytes('new'), { ttlMs })]) {
      const error = await failure(verb());
      expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
      expect(error.message).toContain('give the store one of its own');
    }
    db.close();
    expect(readFileSync(file.path, 'utf8')).toBe(content);
  });

  it('says that its file is damaged, and that a write may have been applied', async () => {
    using file = temporaryDatabase();
    const before = unsynced(open(file.path));
    for (let index = 0; index < 50; index++) {
      await sqliteStore(before).write(`key ${index}`, new Uint8Array(1_000), { ttlMs });
    }
    before.close();
    const content = readFileSync(file.path);
    // All pages but the first, which holds the schema.
    writeFileSync(file.path, content.fill(0xff, 4096));
    const db = open(file.path);
    const store = sqliteStore(db);
    for (const [verb, applied] of [
      [() => store.read('key 1'), 'no'],
      [() => store.write('key 1', bytes('new'), { ttlMs }), 'unknown'],
    ] as const) {
      const error = await failure(verb());
      expect(error).toMatchObject({ reason: 'failed', applied });
      expect(error.message).toContain('restore it from a backup');
    }
    db.close();
  });
});
