import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { OptionsError, StoreError } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it, vi } from 'vitest';
import { type SqliteDatabase, sqliteStore } from '../../src/stores/sqlite.js';
import type { Written } from '../../src/stores/store.js';
import { drivers, nodeSqlite, type OpenDatabase, temporaryDatabase } from './sqlite-files.js';
import { bytes, failure, text } from './support.ts';

const ttlMs = 60_000;

/** A database whose clock the test controls. */
function withTime(db: OpenDatabase, seconds: () => number): OpenDatabase {
  (db as unknown as { function(name: string, options: object, fn: () => number): void }).function(
    ...(['unixepoch', { varargs: true }, seconds] as const),
  );
  return db;
}

describe.each(drivers)('sqliteStore on $title', ({ open }) => {
  it('waits for the lock of another connection without blocking, and then writes', async () => {
    using file = temporaryDatabase();
    const [db, other] = [open(file.path), open(file.path)];
    const store = sqliteStore(db, { timeout: '10s' });
    await store.write('key', bytes('old'), { ttlMs });
    other.exec('BEGIN IMMEDIATE');
    const write = store.write('key', bytes('new'), { ttlMs });
    // A write-ahead log does not delay readers, and this line runs although the write waits.
    expect(text((await store.read('key'))?.value)).toBe('old');
    other.exec('COMMIT');
    expect(await write).toMatchObject({ ok: true });
    expect(text((await store.read('key'))?.value)).toBe('new');
    db.close();
    other.close();
  });

  it('gives up with reason busy after its timeout, leaves no timer, and works when the lock is gone', async () => {
    using file = temporaryDatabase();
    const [db, other] = [open(file.path), open(file.path)];
    const clock = virtualClock();
    const store = sqliteStore(db, { timeout: '300ms', clock });
    await store.write('key', bytes('old'), { ttlMs });
    other.exec('BEGIN IMMEDIATE');
    const failed = failure(store.write('key', bytes('new'), { ttlMs }));
    await clock.advance(299);
    expect(clock.pendingTimers).toBe(1);
    await clock.advance(1);
    expect(await failed).toMatchObject({ reason: 'busy', applied: 'no', store: 'sqlite', operation: 'write' });
    expect((await failed).message).toContain('stayed locked for 300 ms');
    expect(clock.pendingTimers).toBe(0);
    other.exec('ROLLBACK');
    expect(await store.write('key', bytes('new'), { ttlMs })).toMatchObject({ ok: true });
    db.close();
    other.close();
  });

  it('stops waiting at once when the signal aborts, or the store is closed', async () => {
    using file = temporaryDatabase();
    const [db, other] = [open(file.path), open(file.path)];
    const clock = virtualClock();
    const store = sqliteStore(db, { clock });
    await store.write('key', bytes('old'), { ttlMs });
    other.exec('BEGIN IMMEDIATE');
    const controller = new AbortController();
    const write = store.write('key', bytes('new'), { ttlMs, signal: controller.signal }).catch((error) => error);
    await clock.flush();
    controller.abort('enough');
    expect(await write).toBe('enough');
    expect(clock.pendingTimers).toBe(0);
    const late = failure(store.remove('key'));
    await store.close();
    await clock.advance(1);
    expect(await late).toMatchObject({ reason: 'closed', applied: 'no' });
    db.close();
    other.close();
  });

  it("does not slip into a transaction of the connection's owner", async () => {
    const db = open(':memory:');
    const clock = virtualClock();
    const store = sqliteStore(db, { timeout: 50, clock });
    await store.write('key', bytes('old'), { ttlMs });
    db.exec('BEGIN');
    const write = store.write('key', bytes('new'), { ttlMs });
    await clock.advance(10);
    db.exec('ROLLBACK');
    await clock.advance(10);
    expect(await write).toMatchObject({ ok: true });
    db.exec('BEGIN');
    const stuck = failure(store.remove('key'));
    await clock.advance(50);
    expect((await stuck).message).toContain('a transaction of yours is open on this connection');
    db.exec('ROLLBACK');
    db.close();
  });

  it('writes together with the caller in one transaction, or not at all', async () => {
    const db = open(':memory:');
    db.exec('CREATE TABLE orders (id TEXT PRIMARY KEY)');
    const store = sqliteStore(db);
    const count = () => (db.prepare('SELECT count(*) AS orders FROM orders').all()[0] as { orders: number }).orders;
    const order = (id: string) => db.prepare('INSERT INTO orders VALUES (?)').run(id);
    const answer = await store.native.transaction((view) => {
      order('1');
      const written = view.write('order 1', bytes('done'), { ttlMs, ifVersion: 0 });
      expect(view.write('order 1', bytes('again'), { ttlMs, ifVersion: 0 })).toMatchObject({ ok: false });
      expect(text(view.read('order 1')?.value)).toBe('done');
      expect(view.remove('other')).toBe(false);
      return written;
    });
    expect(answer).toEqual({ ok: true, version: (await store.read('order 1'))?.version });
    const mistake = new Error('no stock');
    const failed = store.native.transaction((view) => {
      order('2');
      view.write('order 2', bytes('done'), { ttlMs });
      throw mistake;
    });
    await expect(failed).rejects.toBe(mistake);
    expect(await store.read('order 2')).toBeUndefined();
    // An error of the caller's own SQL is passed to the caller.
    const twice = await store.native.transaction(() => order('1')).catch((error) => error);
    expect(twice).not.toBeInstanceOf(StoreError);
    expect(twice.message).toContain('UNIQUE');
    expect(count()).toBe(1);
    db.close();
  });

  it('refuses an asynchronous transaction, rolls it back, and ends its view', async () => {
    const db = open(':memory:');
    const store = sqliteStore(db);
    let leaked: { read(key: string): unknown } | undefined;
    const failed = await failure(
      store.native.transaction(async (view) => {
        leaked = view;
        view.write('key', bytes('value'), { ttlMs });
        throw new Error('nobody hears this');
      }),
    );
    expect(failed).toMatchObject({ reason: 'invalid', applied: 'no' });
    expect(await store.read('key')).toBeUndefined();
    expect(() => leaked!.read('key')).toThrow('the transaction is over');
    await expect(store.native.transaction('work' as never)).rejects.toBeInstanceOf(OptionsError);
    db.close();
  });

  it('says that the connection is closed, and nothing else breaks', async () => {
    const db = open(':memory:');
    const store = sqliteStore(db);
    await store.write('key', bytes('value'), { ttlMs });
    db.close();
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'closed', applied: 'no' });
    expect(await failure(store.write('key', bytes('value'), { ttlMs }))).toMatchObject({ reason: 'closed' });
    expect(await failure(store.native.transaction(() => 1))).toMatchObject({ reason: 'closed' });
  });

  it('says that its table is not as expected, and makes it anew when it is gone', async () => {
    const db = open(':memory:');
    db.exec('CREATE TABLE holdfast_entries (id TEXT)');
    const store = sqliteStore(db);
    const error = await failure(store.write('key', bytes('value'), { ttlMs }));
    expect(error).toMatchObject({ reason: 'schema', applied: 'no' });
    expect(error.message).toContain('table holdfast_entries is not as expected');
    db.exec('DROP TABLE holdfast_entries');
    expect(await store.write('key', bytes('value'), { ttlMs })).toMatchObject({ ok: true });
    db.exec('DROP TABLE holdfast_entries');
    await failure(store.read('key'));
    expect(await store.read('key')).toBeUndefined();
    db.close();
  });

  it('says that another program has written the value of a row, and writes over it', async () => {
    const db = open(':memory:');
    const store = sqliteStore(db);
    await store.write('key', bytes('value'), { ttlMs });
    for (const foreign of ["'text'", "''", '7', '7.5']) {
      db.exec(`UPDATE holdfast_entries SET value = ${foreign}`);
      const told = { reason: 'schema', applied: 'no', message: expect.stringContaining('another program') };
      expect(await failure(store.read('key'))).toMatchObject({ operation: 'read', ...told });
      const refused = store.write('key', bytes('mine'), { ttlMs, ifVersion: 0 });
      expect(await failure(refused)).toMatchObject({ operation: 'write', ...told });
      const inside = failure(store.native.transaction((view) => view.read('key')));
      expect(await inside).toMatchObject({ operation: 'read', ...told });
    }
    expect(await store.write('key', bytes('mine'), { ttlMs })).toMatchObject({ ok: true });
    expect(text((await store.read('key'))?.value)).toBe('mine');
    db.close();
  });

  it('says that the disk is full, or read-only, and that nothing was changed', async () => {
    using file = temporaryDatabase();
    const db = open(file.path);
    const store = sqliteStore(db);
    await store.write('key', bytes('kept'), { ttlMs });
    db.exec('PRAGMA max_page_count = 10');
    const full = await failure(store.write('key', new Uint8Array(200_000), { ttlMs }));
    expect(full).toMatchObject({ reason: 'full', applied: 'no' });
    expect(text((await store.read('key'))?.value)).toBe('kept');
    db.exec('PRAGMA query_only = 1');
    expect(await failure(store.remove('key'))).toMatchObject({ reason: 'failed', applied: 'no' });
    expect(text((await store.read('key'))?.value)).toBe('kept');
    db.close();
  });

  it('sweeps expired rows, round and round, a few at a time', async () => {
    const db = open(':memory:');
    const store = sqliteStore(db);
    const rows = () => (db.prepare('SELECT count(*) AS held FROM holdfast_entries').all()[0] as { held: number }).held;
    for (let index = 0; index < 500; index++) await store.write(`short ${index}`, bytes('1'), { ttlMs: 1 });
    await sleep(10);
    for (let index = 0; index < 400; index++) await store.write(`long ${index % 50}`, bytes('1'), { ttlMs });
    expect(rows()).toBe(50);
    db.close();
  });
});

describe('sqliteStore', () => {
  it('keeps the time of SQLite, and stays sane when it is put back', async () => {
    let seconds = 1_000_000;
    const store = sqliteStore(withTime(nodeSqlite.open(':memory:'), () => seconds));
    await store.write('key', bytes('value'), { ttlMs: 5000 });
    seconds += 2;
    expect(await store.read('key')).toMatchObject({ ageMs: 2000, ttlMs: 3000 });
    seconds -= 10;
    expect(await store.read('key')).toMatchObject({ ageMs: 0, ttlMs: 13_000 });
    seconds += 13;
    expect(await store.read('key')).toBeDefined();
    seconds += 0.001;
    expect(await store.read('key')).toBeUndefined();
  });

  it('says that a write may have been applied when the disk fails in the middle', async () => {
    const db = nodeSqlite.open(':memory:');
    const failing: SqliteDatabase = {
      prepare(sql) {
        const statement = db.prepare(sql);
        const broken = () => {
          throw Object.assign(new Error('disk I/O error'), { code: 'ERR_SQLITE_ERROR', errcode: 1034 });
        };
        return { all: /INSERT|SELECT value/.test(sql) ? broken : (...given) => statement.all(...given), run: broken };
      },
      exec: (sql) => db.exec(sql),
    };
    const store = sqliteStore(failing);
    expect(await failure(store.write('key', bytes(''), { ttlMs }))).toMatchObject({
      reason: 'failed',
      applied: 'unknown',
    });
    expect(await failure(store.remove('key'))).toMatchObject({ reason: 'failed', applied: 'unknown' });
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'failed', applied: 'no' });
  });

  it('does not fail a completed write when the sweep after it fails', async () => {
    const db = nodeSqlite.open(':memory:');
    const prepare = db.prepare.bind(db);
    vi.spyOn(db, 'prepare').mockImplementation((sql) => {
      if (!sql.includes('expired')) return prepare(sql);
      const fails = () => {
        throw new Error('no sweep today');
      };
      return { all: fails, run: fails } as never;
    });
    expect(await sqliteStore(db).write('key', bytes('value'), { ttlMs })).toMatchObject({ ok: true });
  });

  it('reads its rows whatever options the owner opened the database with', async () => {
    const db = new DatabaseSync(':memory:', { returnArrays: true, readBigInts: true });
    const store = sqliteStore(db);
    const { ok, version } = (await store.write('key', bytes('a'), { ttlMs, ifVersion: 0 })) as Written;
    expect([ok, await store.read('key')]).toMatchObject([true, { value: bytes('a'), version }]);
    expect([await store.remove('key', { ifVersion: version }), await store.read('key')]).toEqual([true, undefined]);
    expect(db.prepare('SELECT 1').all()).toEqual([[1n]]);
    db.close();
  });

  it('reads its rows whichever way SQLite names columns on the connection', async () => {
    const db = nodeSqlite.open(':memory:');
    db.exec('PRAGMA short_column_names = OFF; PRAGMA full_column_names = ON');
    const store = sqliteStore(db);
    const written = await store.write('key', bytes('a'), { ttlMs, ifVersion: 0 });
    expect(written).toEqual({ ok: true, version: 1 });
    expect(await store.read('key')).toMatchObject({ value: bytes('a'), version: 1 });
    db.close();
  });

  it('waits for a query of the owner to end before it turns write-ahead logging on', async () => {
    const file = temporaryDatabase();
    const db = new DatabaseSync(file.path);
    db.exec('CREATE TABLE mine (n INTEGER); INSERT INTO mine VALUES (1), (2)');
    const rows = db.prepare('SELECT n FROM mine').iterate();
    rows.next();
    const clock = virtualClock();
    const store = sqliteStore(db, { timeout: 50, clock });
    const stuck = failure(store.read('key'));
    await clock.advance(50);
    expect(await stuck).toMatchObject({ reason: 'busy', applied: 'no' });
    const write = store.write('key', bytes('a'), { ttlMs });
    await clock.advance(10);
    rows.return?.();
    await clock.advance(20);
    expect(await write).toMatchObject({ ok: true });
    db.close();
    file[Symbol.dispose]();
  });

  it('refuses anything but a database, and invalid options, at once', () => {
    const db = nodeSqlite.open(':memory:');
    expect(() => sqliteStore({} as never)).toThrow('an open database of node:sqlite or better-sqlite3');
    expect(() => sqliteStore(undefined as never)).toThrow(OptionsError);
    for (const prefix of ['', 'a|b', 'a b', '{a}', 'k'.repeat(65), 'ä']) {
      expect(() => sqliteStore(db, { prefix })).toThrow('"prefix"');
    }
    expect(() => sqliteStore(db, { timeout: '5 sec' as never })).toThrow('"timeout"');
    expect(() => sqliteStore(db, { table: 'x' } as object)).toThrow('unknown option "table"');
  });
});

describe('sqliteStore, when it is watched,', () => {
  const watching = () => {
    const file = temporaryDatabase();
    const clock = virtualClock();
    const [own, other] = [nodeSqlite.open(file.path), nodeSqlite.open(file.path)];
    const store = sqliteStore(own, { clock });
    const writer = sqliteStore(other, { clock });
    const told: string[] = [];
    const watch = store.native.watch('key', ({ kind }) => told.push(kind));
    const end = () => {
      own.close();
      other.close();
      file[Symbol.dispose]();
    };
    return { clock, own, other, store, writer, told, watch, end };
  };

  it('polls every 10 ms while there is a watch, and no longer', async () => {
    const { clock, writer, told, watch, end } = watching();
    await watch.ready;
    await writer.write('key', bytes('value'), { ttlMs });
    expect(told).toEqual([]);
    await clock.advance('10ms');
    expect(told).toEqual(['changed']);
    await clock.advance('1s');
    expect(told).toEqual(['changed']);
    expect(clock.pendingTimers).toBe(1);
    watch.close();
    expect(clock.pendingTimers).toBe(0);
    end();
  });

  it('reports a key that was written and removed between two polls, and leaves unchanged keys alone', async () => {
    const { clock, writer, store, told, watch, end } = watching();
    const untouched: string[] = [];
    await writer.write('untouched', bytes('value'), { ttlMs });
    const second = store.native.watch('untouched', ({ kind }) => untouched.push(kind));
    await Promise.all([watch.ready, second.ready]);
    await writer.write('key', bytes('value'), { ttlMs });
    await writer.remove('key');
    await clock.advance('10ms');
    expect([told, untouched]).toEqual([['changed'], []]);
    end();
  });

  it('does so beside a temporary table of the owner that counts its rows', async () => {
    const { clock, own, writer, told, watch, end } = watching();
    own.exec('CREATE TEMP TABLE mine (n INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO mine DEFAULT VALUES');
    await watch.ready;
    await writer.write('key', bytes('value'), { ttlMs });
    await writer.remove('key');
    await clock.advance('10ms');
    expect(told).toEqual(['changed']);
    end();
  });

  it('reports what a transaction has committed, and nothing of one that was rolled back', async () => {
    const { clock, store, told, watch, end } = watching();
    await store.write('key', bytes('first'), { ttlMs });
    await watch.ready;
    told.length = 0;
    const failed = store.native.transaction((view) => {
      view.write('key', bytes('lost'), { ttlMs });
      throw new Error('rolled back');
    });
    await expect(failed).rejects.toThrow('rolled back');
    await clock.advance('10ms');
    expect(told).toEqual([]);
    await store.native.transaction((view) => view.write('key', bytes('kept'), { ttlMs }));
    await clock.advance('10ms');
    expect(told).toEqual(['changed']);
    end();
  });

  it('goes on after a failed poll: changes in between are reported', async () => {
    const { clock, own, other, writer, told, watch, end } = watching();
    await watch.ready;
    own.exec('BEGIN');
    own.exec('SELECT * FROM holdfast_entries');
    await writer.write('key', bytes('value'), { ttlMs });
    await clock.advance('100ms');
    expect(told).toEqual([]);
    own.exec('COMMIT');
    await clock.advance('10ms');
    expect(told).toEqual(['changed']);
    other.exec('DROP TABLE holdfast_entries');
    await clock.advance('1s');
    expect(told).toEqual(['changed', 'changed']);
    await writer.write('key', bytes('value'), { ttlMs }).catch(() => {});
    await writer.write('key', bytes('value'), { ttlMs });
    await clock.advance('1s');
    expect(told.length).toBeGreaterThan(2);
    end();
  });

  it('does not keep the process alive', async () => {
    const background = virtualClock();
    const clock = Object.assign(virtualClock(), { background });
    const db = nodeSqlite.open(':memory:');
    const watch = sqliteStore(db, { clock }).native.watch('key', () => {});
    await watch.ready;
    expect([clock.pendingTimers, background.pendingTimers]).toEqual([0, 1]);
    db.close();
  });
});
