/** What the store promises whatever surrounds it: the user's settings, other people's transactions, bad timing, a pool that is never free. */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { OptionsError, StoreError } from 'holdfast';
import pg from 'pg';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import {
  type PgListener,
  type PgPool,
  type PostgresJs,
  type PostgresMigration,
  postgresMigrations,
  postgresStore,
  sessionLock,
  transactionLock,
} from '../../src/stores/postgres.js';
import { postgresHome, startPostgres } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { canMount, smallDisk } from '../support/servers/small-disk.ts';
import { bytes, failure, text } from './support.ts';

const ttlMs = 60_000;

const home = postgresHome();

describe.skipIf(home === undefined)('postgresStore', () => {
  let server: ServerProcess;
  let admin: pg.Pool;
  let place: { host: string; port: number; user: string; database: string };
  const ends: (() => unknown)[] = [];

  const pgPool = (settings: pg.PoolConfig = {}) => {
    const pool = new pg.Pool({ ...place, ...settings });
    pool.on('error', () => {});
    ends.push(() => pool.end());
    return pool;
  };
  const postgresJs = (settings: Parameters<typeof postgres>[1] = {}) => {
    const sql = postgres({ ...place, onnotice: () => {}, ...settings } as never);
    ends.push(() => sql.end({ timeout: 1 }));
    return sql as unknown as PostgresJs;
  };
  const connectListener = async (): Promise<PgListener> => {
    const client = new pg.Client(place);
    await client.connect();
    return client;
  };
  /** Keeps all rows locked until it is called. */
  const lockRows = async () => {
    const keeper = await admin.connect();
    await keeper.query('BEGIN');
    await keeper.query('SELECT 1 FROM holdfast FOR UPDATE');
    return async () => {
      await keeper.query('ROLLBACK');
      keeper.release();
    };
  };

  beforeAll(async () => {
    server = await startPostgres(home!, ['max_connections=60']);
    place = { host: server.host, port: server.port, user: 'postgres', database: 'postgres' };
    admin = new pg.Pool({ ...place, max: 5 });
    admin.on('error', () => {});
    await postgresStore(admin).migrate();
  });
  afterEach(async () => {
    for (const end of ends.splice(0)) await end();
  });
  afterAll(async () => {
    await admin?.end();
    await server?.dispose();
  });

  it('never gives a version twice or backwards, even when a key was written and swept while another writer was about to insert it', async () => {
    // The writer called "slow" stops when its row is made and it has not yet looked for the key.
    await admin.query(`CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      IF current_setting('application_name') = 'slow' THEN PERFORM pg_advisory_xact_lock(77); END IF; RETURN NEW; END $$;
      CREATE TRIGGER stop BEFORE INSERT ON holdfast FOR EACH ROW EXECUTE FUNCTION stop()`);
    const keeper = await admin.connect();
    try {
      await keeper.query('SELECT pg_advisory_lock(77)');
      const slow = postgresStore(pgPool({ application_name: 'slow' }), { timeout: '20s' });
      const quick = postgresStore(admin, { timeout: '20s' });
      const late = slow.write('raced', bytes('late'), { ttlMs });
      await vi.waitFor(
        async () => {
          const sql = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'slow' AND wait_event = 'advisory'";
          expect((await admin.query(sql)).rowCount).toBe(1);
        },
        { timeout: 60_000 },
      );
      const first = await quick.write('raced', bytes('first'), { ttlMs: 1 });
      expect(first.ok).toBe(true);
      // Sweeping also removes what other tests have left.
      const left = `SELECT 1 FROM holdfast WHERE version = ${first.ok && first.version}`;
      await vi.waitFor(
        async () => {
          await quick.sweep();
          expect((await admin.query(left)).rowCount).toBe(0);
        },
        { timeout: 60_000 },
      );
      await keeper.query('SELECT pg_advisory_unlock(77)');
      const second = await late;
      expect(first.ok && second.ok && second.version > first.version).toBe(true);
    } finally {
      keeper.release(true);
      await admin.query('DROP TRIGGER stop ON holdfast');
    }
  });

  it('is applied completely or not at all, whichever statement is the last before the connection ends', async () => {
    // The functions as they are, with a strike before each statement that looks at the table or changes it, and before the end: the nth ends
    // the connection.
    const table = 'struck';
    const [{ sql }] = postgresMigrations(table) as [PostgresMigration];
    await admin.query(`
      CREATE SEQUENCE strikes INCREMENT -1 MINVALUE -1000000000 MAXVALUE 1000 START -1;
      CREATE FUNCTION strike() RETURNS void LANGUAGE sql VOLATILE
        AS $$ SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('strikes') = 0 $$`);
    const statement =
      /(?<=(?:BEGIN|LOOP|THEN|ELSE|;)\n)(?= *(?:(?:SELECT|INSERT|UPDATE|DELETE|GET|IF goes_on) |END $))/g;
    await admin.query(
      sql
        .replace(/^ *--.*\n/gm, '')
        .replace(/plpgsql[^$]*\$\$[^$]*/g, (body) => body.replace(statement, 'PERFORM strike();\n')),
    );
    const store = postgresStore(pgPool({ max: 1 }), { table, timeout: '5s' });
    const { consume } = store.native;
    const limit = { limit: 10, periodMs: 6_000_000 };
    const rows = async () => (await admin.query(`SELECT * FROM ${table} ORDER BY key`)).rows;
    let version = 0;
    const verbs: Record<string, () => Promise<unknown>> = {
      'a first write': () => store.write('other', bytes('new'), { ttlMs, ifVersion: 0 }),
      'a write': () => store.write('key', bytes('new'), { ttlMs, ifVersion: version }),
      'a refused write': () => store.write('key', bytes('new'), { ttlMs, ifVersion: 1 }),
      'a removal': () => store.remove('key', { ifVersion: version }),
      'a refused removal': () => store.remove('key', { ifVersion: 1 }),
      'a first unit': () => consume('new limit', limit),
      'a unit': () => consume('limit', limit),
      'a refused unit': () => consume('limit', { ...limit, burst: 1 }),
      'a sweep': () => store.sweep(),
    };
    const struck: Record<string, number> = {};
    for (const [name, verb] of Object.entries(verbs)) {
      await admin.query(`DELETE FROM ${table}; SELECT setval('strikes', -1)`);
      const old = await store.write('key', bytes('old'), { ttlMs });
      version = old.ok ? old.version : 0;
      await consume('limit', limit);
      if (name === 'a sweep') await admin.query(`UPDATE ${table} SET expires_at = now() - interval '1 second'`);
      const before = await rows();
      let outcome: unknown;
      for (let nth = 1; ; nth++) {
        await admin.query(`SELECT setval('strikes', ${nth})`);
        outcome = await verb().catch((error: unknown) => error);
        if (!(outcome instanceof StoreError)) break;
        expect(outcome).toMatchObject({ reason: 'closed', applied: 'unknown' });
        // Nothing of it was applied, so its owner repeats it as if it had never been sent.
        expect(await rows()).toEqual(before);
        struck[name] = nth;
      }
      expect(outcome).not.toBeInstanceOf(Error);
    }
    // These are as many statements as each of them executes.
    expect(struck).toEqual({
      ...{ 'a first write': 5, 'a write': 2, 'a refused write': 3, 'a removal': 2, 'a refused removal': 2 },
      ...{ 'a first unit': 3, 'a unit': 4, 'a refused unit': 2, 'a sweep': 2 },
    });
  });

  it('keeps renewed entries in place: no index grows with each renewal', async () => {
    const count = async () => {
      const sql =
        "SELECT n_tup_upd::int AS all, n_tup_hot_upd::int AS hot FROM pg_stat_user_tables WHERE relname = 'hot'";
      return (await admin.query(sql)).rows[0] as { all: number; hot: number };
    };
    const store = postgresStore(pgPool({ max: 1 }), { timeout: '10s', table: 'hot' });
    await store.migrate();
    for (let index = 0; index < 300; index++) await store.write(`key ${index % 5}`, bytes('value'), { ttlMs });
    await vi.waitFor(async () => expect((await count()).all).toBeGreaterThanOrEqual(300), { timeout: 60_000 });
    const { all, hot } = await count();
    expect(hot / all).toBeGreaterThan(0.9);
  });

  it('gives up a row that others keep locked, knows that nothing was done, and leaves nothing behind on the server', async () => {
    const pool = pgPool();
    const store = postgresStore(pool, { timeout: '3s', prefix: 'locked' });
    await store.write('key', bytes('old'), { ttlMs });
    const unlock = await lockRows();
    try {
      for (const verb of [() => store.write('key', bytes('new'), { ttlMs }), () => store.remove('key')]) {
        expect(await failure(verb())).toMatchObject({ reason: 'busy', applied: 'no' });
      }
      const impatient = postgresStore(pool, { timeout: 50, prefix: 'locked' });
      for (let round = 0; round < 5; round++) {
        const verbs = Array.from({ length: 10 }, () => impatient.write('key', bytes('new'), { ttlMs }));
        for (const { status } of await Promise.allSettled(verbs)) expect(status).toBe('rejected');
      }
      // The lock is still held at this point.
      const waiting = "SELECT count(*)::int AS waiting FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
      await vi.waitFor(async () => expect((await admin.query(waiting)).rows[0].waiting).toBe(0), { timeout: 60_000 });
    } finally {
      await unlock();
    }
    expect(text((await store.read('key'))?.value)).toBe('old');
    // The limit applied to the verb, not to the session.
    const settings = await Promise.all([1, 2, 3].map(() => pool.query('SHOW lock_timeout')));
    expect(settings.map(({ rows }) => rows[0].lock_timeout)).toEqual(['0', '0', '0']);
  });

  it('gives up a table that others keep locked, knows that nothing was done, and leaves nothing behind on the server', async () => {
    const pool = pgPool();
    const store = postgresStore(pool, { timeout: '3s', prefix: 'locked-table' });
    await store.write('key', bytes('old'), { ttlMs });
    const rate = { limit: 5, periodMs: 60_000, burst: 5, cost: 1 };
    const keeper = await admin.connect();
    try {
      // VACUUM FULL and most forms of ALTER TABLE take the same lock.
      await keeper.query('BEGIN; LOCK TABLE holdfast');
      const errors = [
        store.write('key', bytes('new'), { ttlMs }),
        store.write('key', bytes('new'), { ttlMs, ifVersion: 0 }),
        store.remove('key'),
        store.native.consume('key', rate),
      ].map(failure);
      for (const error of await Promise.all(errors)) expect(error).toMatchObject({ reason: 'busy', applied: 'no' });
      const impatient = postgresStore(pool, { timeout: 50, prefix: 'locked-table' });
      const verbs = Array.from({ length: 10 }, (_, index) =>
        index % 2 === 0
          ? impatient.write('key', bytes('new'), { ttlMs, ifVersion: index })
          : impatient.native.consume('key', rate),
      );
      for (const { status } of await Promise.allSettled(verbs)) expect(status).toBe('rejected');
      const waiting = "SELECT count(*)::int AS waiting FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
      await vi.waitFor(async () => expect((await admin.query(waiting)).rows[0].waiting).toBe(0), { timeout: 20_000 });
    } finally {
      await keeper.query('ROLLBACK');
      keeper.release();
    }
    expect(text((await store.read('key'))?.value)).toBe('old');
  });

  it.skipIf(!canMount)(
    'says that the disk is full, changes nothing, keeps all, and goes on when there is room',
    async () => {
      const disk = smallDisk(join(server.folder, 'small'), 65_534, 3);
      try {
        await admin.query(`CREATE TABLESPACE small LOCATION '${disk.folder}'`);
        const pool = pgPool({ options: '-c default_tablespace=small' });
        const store = postgresStore(pool, { table: 'on_a_small_disk', timeout: '10s' });
        await store.migrate();
        const versions = new Map<string, number>();
        const fill = async () => {
          for (let count = 0; count < 100; count++) {
            const key = `key ${versions.size}`;
            const answer = await store.write(key, randomBytes(100_000), { ttlMs, ifVersion: 0 });
            if (answer.ok) versions.set(key, answer.version);
          }
        };
        const error = await fill().catch((thrown: unknown) => thrown);
        expect(error).toBeInstanceOf(StoreError);
        expect(error).toMatchObject({ reason: 'full', applied: 'no' });
        expect((error as StoreError).message).toContain('the disk of the server is full');
        expect(versions.size).toBeGreaterThan(5);
        expect(await store.read(`key ${versions.size}`)).toBeUndefined();
        for (const [key, version] of versions) expect((await store.read(key))?.version).toBe(version);
        disk.resize(30);
        const next = await store.write('key 0', randomBytes(100_000), { ttlMs, ifVersion: versions.get('key 0')! });
        expect(next.ok && next.version > Math.max(...versions.values())).toBe(true);
        await pool.query('DROP TABLE on_a_small_disk');
        await pool.query('DROP TABLESPACE small');
      } finally {
        disk.dispose();
      }
    },
    60_000,
  );

  it.each([
    ['the server', { statement_timeout: 300 }, { reason: 'timeout', applied: 'no' }],
    ['transaction_timeout', { options: '-c transaction_timeout=300' }, { reason: 'timeout', applied: 'no' }],
    ['pg', { query_timeout: 300 }, { reason: 'timeout', applied: 'unknown' }],
  ] as const)(
    'says that %s was less patient than the store, and what that means for a write',
    async (who, settings, told) => {
      const prefix = `impatient-${who.replace(' ', '-')}`;
      await postgresStore(admin, { timeout: '20s', prefix }).write('key', bytes('old'), { ttlMs });
      const store = postgresStore(pgPool({ max: 1, ...settings }), { timeout: '20s', prefix });
      const unlock = await lockRows();
      const writing = failure(store.write('key', bytes('new'), { ttlMs }));
      // It waits for the connection, which the server ends at a "transaction_timeout".
      const reading = store.read('key');
      expect(await writing).toMatchObject(told);
      await unlock();
      expect(await reading).toMatchObject(told.applied === 'no' ? { value: bytes('old') } : {});
    },
  );

  it('knows that nothing was done in a transaction that the server has terminated for being idle', async () => {
    const client = await pgPool({ max: 1 }).connect();
    const ended = new Promise((resolve) => client.on('error', resolve));
    await client.query('BEGIN');
    const view = postgresStore(admin).native.within(client);
    await view.write('idle', bytes('lost'), { ttlMs });
    await client.query('SET LOCAL idle_in_transaction_session_timeout = 50');
    await ended;
    const error = await view.write('idle', bytes('lost'), { ttlMs }).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ reason: 'closed', applied: 'no' });
    client.release(true);
    expect(await postgresStore(admin, { timeout: '20s' }).read('idle')).toBeUndefined();
  });

  it('says that its functions are not on the search path, and does not need it for a table named with its schema', async () => {
    const pool = pgPool({ max: 1, options: '-c search_path=nowhere' });
    const lost = postgresStore(pool, { timeout: '20s' });
    for (const verb of [() => lost.read('key'), () => lost.write('key', bytes('a'), { ttlMs })]) {
      expect(await verb().catch((error: unknown) => error)).toMatchObject({ reason: 'schema', applied: 'no' });
    }
    await pool.query('CREATE SCHEMA somewhere');
    const store = postgresStore(pool, { timeout: '20s', table: 'somewhere.records' });
    await store.migrate();
    expect(await store.write('key', bytes('a'), { ttlMs, ifVersion: 0 })).toMatchObject({ ok: true });
    expect(await store.native.consume('key', { limit: 1, periodMs: 1000 })).toMatchObject({ ok: true });
    expect([await store.remove('key'), await store.read('key'), await store.sweep()]).toEqual([true, undefined, 0]);
  });

  it.each(['INSERT', 'UPDATE'])(
    'gives up a row that a trigger keeps out (%s), instead of trying for ever on the server',
    async (event) => {
      const table = `kept_out_${event.toLowerCase()}`;
      const store = postgresStore(pgPool({ application_name: table }), { timeout: '20s', table });
      await store.migrate();
      await store.write('old', bytes('a'), { ttlMs });
      await store.native.consume('old limit', { limit: 10, periodMs: 60_000 });
      await admin.query(`CREATE FUNCTION ${table}_skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER skip BEFORE ${event} ON ${table} FOR EACH ROW EXECUTE FUNCTION ${table}_skip()`);
      const write = (key: string) => () => store.write(key, bytes('b'), { ttlMs });
      const consume = (key: string) => () => store.native.consume(key, { limit: 10, periodMs: 60_000 });
      const age = event === 'INSERT' ? 'new' : 'old';
      for (const verb of [write(age), consume(`${age} limit`)]) {
        const error = await verb().catch((thrown: unknown) => thrown);
        expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
        expect((error as StoreError).message).toContain('trigger');
      }
      const running = `SELECT count(*)::int AS count FROM pg_stat_activity WHERE application_name = '${table}' AND state = 'active'`;
      await vi.waitFor(async () => expect((await admin.query(running)).rows[0].count).toBe(0), { timeout: 20_000 });
    },
    90_000,
  );

  it('accepts no larger values than a reply and a prepared statement can hold', () => {
    expect(() => postgresStore(admin, { maxValueBytes: 255 * 2 ** 20 + 1 })).toThrow('"maxValueBytes"');
    expect(postgresStore(admin, { maxValueBytes: 255 * 2 ** 20 })).toBeDefined();
  });

  it('lets no more than 10,000 verbs wait for an exhausted pool', async () => {
    const pool = pgPool({ max: 1 });
    const kept = await pool.connect();
    const store = postgresStore(pool, { timeout: 5 });
    const reasons = new Set<string>();
    for (let round = 0; round < 12; round++) {
      const verbs = Array.from({ length: 1_000 }, () => store.read('key').catch((error) => reasons.add(error.reason)));
      await Promise.all(verbs);
    }
    expect(pool.waitingCount).toBe(10_000);
    expect(reasons).toEqual(new Set(['timeout', 'busy']));
    kept.release();
    await vi.waitFor(() => expect(pool.waitingCount).toBe(0), { timeout: 60_000 });
    expect(await postgresStore(pool, { timeout: '10s' }).read('key')).toBeUndefined();
  });

  it.each<[string, () => PgPool | PostgresJs]>([
    ['postgres.js that spells columns in camel case', () => postgresJs({ transform: postgres.camel })],
    ['postgres.js that spells columns in Pascal case', () => postgresJs({ transform: postgres.pascal })],
    ['postgres.js that spells columns in kebab case', () => postgresJs({ transform: postgres.kebab })],
    [
      'postgres.js on a server that reads backslashes in strings',
      () => postgresJs({ connection: { standard_conforming_strings: 'off' } as never }),
    ],
    [
      'pg that reads all types in its own way',
      () =>
        pgPool({
          types: {
            getTypeParser: (type: number) => (value: string) => (type === 25 ? value : { type, value }),
          } as never,
        }),
    ],
    [
      'a server that writes bytes and numbers in its own way',
      () => pgPool({ options: '-c bytea_output=escape -c extra_float_digits=0' }),
    ],
    [
      'a server whose sessions are in another time zone and style',
      () => pgPool({ options: '-c TimeZone=Asia/Tokyo -c DateStyle=German -c IntervalStyle=iso_8601' }),
    ],
  ])('reads what it wrote by %s', async (title, connect) => {
    const store = postgresStore(connect(), {
      timeout: '10s',
      prefix: `by/${title.replaceAll(/[^a-zA-Z]/g, '-')}`.slice(0, 64),
    });
    const value = Uint8Array.from({ length: 512 }, (_, index) => index % 256);
    const written = await store.write("it's \\ a key", value, { ttlMs });
    const { version } = written as { version: number };
    expect(version).toBeGreaterThan(0);
    const entry = await store.read("it's \\ a key");
    expect(entry).toMatchObject({ value, version });
    expect(entry!.ttlMs).toBeGreaterThan(ttlMs - 20_000);
    expect(entry!.ttlMs).toBeLessThanOrEqual(ttlMs);
    expect((await store.write("it's \\ a key", value, { ttlMs, ifVersion: 0 })) as object).toMatchObject({
      ok: false,
      entry: { version },
    });
    expect((await store.native.readMany(["it's \\ a key"]))[0]).toMatchObject({ value, version });
    expect(await store.remove("it's \\ a key", { ifVersion: version })).toBe(true);
  });

  it.each(['repeatable read', 'serializable'])('lets one writer win in sessions that are %s', async (level) => {
    const pool = pgPool({ options: `-c default_transaction_isolation=${level.replace(' ', '\\ ')}` });
    const store = postgresStore(pool, { timeout: '10s', prefix: level.replace(' ', '-') });
    const answers = await Promise.all(
      Array.from({ length: 30 }, (_, index) =>
        store.write('key', bytes(`${index}`), { ttlMs, ifVersion: 0 }).catch((error: StoreError) => error),
      ),
    );
    const winners = answers.filter((answer) => !(answer instanceof StoreError) && answer.ok);
    // Some must give way before anybody has won, and are told that nothing was done.
    for (const answer of answers) {
      if (answer instanceof StoreError) expect(answer).toMatchObject({ reason: 'busy', applied: 'no' });
    }
    expect(winners.length).toBeLessThanOrEqual(1);
    const entry = await store.read('key');
    if (winners.length === 1) expect(entry?.version).toBe((winners[0] as { version: number }).version);
    else expect(entry).toBeUndefined();
  });

  it('reports changes in a table with a long name', async () => {
    const [schema, name] = ['s'.repeat(40), 't'.repeat(40)];
    await admin.query(`CREATE SCHEMA ${schema}`);
    const store = postgresStore(admin, { timeout: '10s', table: `${schema}.${name}`, listener: connectListener });
    await store.migrate();
    const told: string[] = [];
    await store.native.watch!('key', ({ kind }) => told.push(kind)).ready;
    expect(await store.write('key', bytes('a'), { ttlMs })).toMatchObject({ ok: true });
    await vi.waitFor(() => expect(told).toEqual(['changed']), { timeout: 60_000 });
    await store.close();
  });

  it('reads replies as the server sends them, however the user parses types, values and rows', async () => {
    const odd = (value: unknown) => ({ odd: value });
    const readAs = (oid: number) => ({ to: oid, from: [oid], serialize: (value: unknown) => value, parse: odd });
    const fetch_types = false;
    const pools = [
      pgPool({ types: { getTypeParser: () => odd } }),
      pgPool({ binary: true } as pg.PoolConfig),
      postgresJs({ fetch_types, types: { text: readAs(25), bigint: readAs(20), boolean: readAs(16) } as never }),
      postgresJs({ fetch_types, transform: { row: { from: (row: object) => ({ ...row }) } } as never }),
      postgresJs({ fetch_types, transform: { value: { from: odd }, undefined: null } as never }),
    ];
    for (const [index, pool] of pools.entries()) {
      for (const prepare of [false, true]) {
        const store = postgresStore(pool, { timeout: '5s', prefix: `odd-${index}-${prepare}`, prepare });
        const create = () => store.write('key', bytes('a'), { ttlMs, ifVersion: 0 });
        const written = await create();
        expect(written).toEqual({ ok: true, version: expect.any(Number) });
        const { version } = written as { version: number };
        expect(await create()).toMatchObject({ ok: false, entry: { value: bytes('a'), version } });
        expect(await store.write('other', bytes('a'), { ttlMs, ifVersion: 7 })).toEqual({ ok: false });
        expect(await store.read('key')).toMatchObject({ value: bytes('a'), version });
        expect(await store.native.readMany(['other', 'key'])).toMatchObject([undefined, { version }]);
        expect(await store.native.readMany(['other'])).toEqual([undefined]);
        expect(await store.native.consume('key', { limit: 1, periodMs: 1000 })).toMatchObject({ ok: true });
        expect(await store.remove('key')).toBe(true);
        expect(await store.remove('key')).toBe(false);
        expect(await store.read('key')).toBeUndefined();
        expect(await store.sweep()).toBeGreaterThanOrEqual(0);
        await store.close();
      }
    }
  });

  it('locks in transactions and sessions, however the user parses types, values and rows', async () => {
    const odd = (value: unknown) => ({ odd: value });
    const readAs = { to: 25, from: [25], serialize: (value: unknown) => value, parse: odd };
    const fetch_types = false;
    const connections = [
      postgresJs({ fetch_types, transform: postgres.pascal }),
      postgresJs({ fetch_types, types: { text: readAs } as never }),
      postgresJs({
        fetch_types,
        transform: { row: { from: (row: object) => ({ ...row }) }, undefined: null } as never,
      }),
    ];
    for (const wait of [0, '10s'] as const) {
      for (const [index, sql] of connections.entries()) {
        await sql.begin((transaction) => transactionLock(transaction, `odd ${index}`, { wait }));
      }
      const types = { getTypeParser: () => odd } as never;
      const client = await pgPool({ types }).connect();
      await client.query('BEGIN');
      await transactionLock(client, 'odd', { wait });
      await client.query('ROLLBACK');
      client.release();
      const connect = async () => {
        const session = new pg.Client({ ...place, types });
        session.on('error', () => {});
        await session.connect();
        return session;
      };
      const lock = await sessionLock(connect, 'odd', { wait });
      expect(lock.held()).toBe(true);
      expect(await lock.release()).toBe('released');
    }
  });

  it.each<[string, (row: Buffer[]) => unknown]>([
    ['wraps', (row) => ({ row })],
    ['hides', (row) => new Map([['row', row]])],
    ['reads', (row) => row.map(String)],
    ['shortens', (row) => row.slice(1)],
  ])('says so where postgres.js %s what the server sends, in place of a wrong answer', async (_, from) => {
    const sql = postgresJs({ fetch_types: false, transform: { row: { from } } as never });
    const store = postgresStore(sql, { timeout: '10s', prefix: 'wrapped' });
    const advice = 'without "transform.row.from"';
    const verbs = [
      store.write('key', bytes('a'), { ttlMs }),
      store.read('key'),
      store.native.readMany(['key']),
      store.remove('key'),
      store.native.consume('key', { limit: 1, periodMs: 1000 }),
    ];
    for (const error of await Promise.all(verbs.map(failure))) {
      expect(error).toMatchObject({
        reason: 'invalid',
        applied: error.operation.startsWith('read') ? 'no' : 'unknown',
      });
      expect(error.message).toContain(advice);
    }
    for (const wait of [0, '10s'] as const) {
      const locking = sql.begin((transaction) => transactionLock(transaction, 'wrapped', { wait }));
      await expect(locking).rejects.toThrow(advice);
    }
    const within = sql.begin((transaction) =>
      store.native
        .within(transaction)
        .write('key', bytes('a'), { ttlMs })
        .then(() => {}),
    );
    await expect(within).rejects.toMatchObject({ reason: 'invalid', applied: 'no' });
  });

  it('reads what it needs from rows of postgres.js that have more', async () => {
    const from = (row: object) => ({ ...row, readAt: 7 });
    const sql = postgresJs({ fetch_types: false, transform: { row: { from } } as never });
    const store = postgresStore(sql, { timeout: '10s', prefix: 'more' });
    expect(await store.write('key', bytes('a'), { ttlMs })).toMatchObject({ ok: true });
    expect(await store.native.readMany(['key'])).toMatchObject([{ value: bytes('a') }]);
    await sql.begin((transaction) => transactionLock(transaction, 'more'));
  });

  it('has one listener for any number of stores on a pool, until the last is closed', async () => {
    const pool = pgPool({ max: 1 });
    const before = pool.listenerCount('error');
    const stores = Array.from({ length: 12 }, () => postgresStore(pool));
    expect(pool.listenerCount('error')).toBe(before + 1);
    for (const store of stores.splice(1)) await store.close();
    expect(pool.listenerCount('error')).toBe(before + 1);
    await stores[0]!.close();
    expect(pool.listenerCount('error')).toBe(before);
  });

  it("restores the transaction's own lock timeout", async () => {
    const { within } = postgresStore(admin).native;
    const client = await admin.connect();
    await client.query("BEGIN; SET LOCAL lock_timeout = '7s'");
    await within(client).write('limited', bytes('a'), { ttlMs });
    await within(client).remove('limited');
    expect((await client.query('SHOW lock_timeout')).rows).toEqual([{ lock_timeout: '7s' }]);
    await client.query('ROLLBACK');
    client.release();
  });

  it('refuses a view inside anything but a transaction, which would write at once', async () => {
    const store = postgresStore(admin);
    const idle = await connectListener();
    const { within } = store.native;
    for (const wrong of [undefined, {}, admin, postgresJs(), store, idle]) {
      expect(() => within(wrong as never)).toThrow(OptionsError);
    }
    await idle.query({ text: 'BEGIN' });
    expect(await within(idle).write('mine', bytes('a'), { ttlMs })).toMatchObject({ ok: true });
    await idle.query({ text: 'ROLLBACK' });
    expect(() => within(idle)).toThrow(OptionsError);
    await idle.end();
  });

  it('ends the listening connection on close, and fails a watch that cannot start in time', async () => {
    const listening = "SELECT count(*)::int AS count FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    const store = postgresStore(admin, { timeout: '10s', prefix: 'ends', listener: connectListener });
    await store.native.watch!('key', () => {}).ready;
    expect((await admin.query(listening)).rows[0].count).toBe(1);
    await store.close();
    await vi.waitFor(async () => expect((await admin.query(listening)).rows[0].count).toBe(0), { timeout: 60_000 });

    const never = postgresStore(admin, { timeout: 50, listener: () => new Promise(() => {}) });
    await expect(never.native.watch!('key', () => {}).ready).rejects.toMatchObject({ reason: 'timeout' });
    const refused = postgresStore(admin, { timeout: '10s', listener: () => Promise.reject(new Error('no such host')) });
    await expect(refused.native.watch!('key', () => {}).ready).rejects.toThrow('no such host');
    await never.close();
    await refused.close();
  });
});
