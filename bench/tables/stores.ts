/**
 * What a verb costs relative to the bare client. Each client library has its own server.
 *
 * No single command returns a value with its version, age and remaining time, or writes one conditionally and gives it a version, so there are two
 * baselines. The nearest command or statement does less: GET, SET PX, a SELECT, an INSERT ON CONFLICT. The same script or function, called by the
 * bare client, does all the work of the verb at the server, and so shows how much of the difference is due to the store.
 */
import '../sources.ts';
import type { Store } from 'holdfast';
import type { Redis } from 'ioredis';
import type pg from 'pg';
import type postgres from 'postgres';
import type { RedisClientType } from 'redis';
import { type RedisScript, readScript, recordOf, writeScript } from '../../src/stores/redis-scripts.ts';
import { type PostgresConnection, drivers as postgresDrivers } from '../../test/stores/postgres-clients.ts';
import { type RedisConnection, drivers as redisDrivers } from '../../test/stores/redis-clients.ts';
import { postgresHome, startPostgres } from '../../test/support/servers/postgres.ts';
import { redisProgram, startRedis } from '../../test/support/servers/redis.ts';
import type { ServerProcess } from '../../test/support/servers/server-process.ts';
import type { TimesTaken } from '../measures.ts';
import { atMost, type Contender, type Operation, type Table } from '../table.ts';

const ttlMs = 600_000;
const value = Buffer.from('v'.repeat(100));
const note =
  'From call to answer on one connection each of one server, one call after another, a value of 100 bytes. Ours and the bare call take turns; the median of each. "The same at the server": the bare client calls the script or function of the verb.';

type Verb = 'read' | 'write';

function disposeAtEnd(server: ServerProcess): void {
  process.once('disconnect', () => void server.dispose());
}

async function redis(title: string): Promise<readonly [bare: RedisConnection, own: RedisConnection]> {
  const program = await redisProgram();
  if (program === undefined) throw new Error('this table needs a Redis');
  const server = await startRedis(program);
  disposeAtEnd(server);
  const driver = redisDrivers.find((one) => one.title === title)!;
  const connections = [driver.connect(server.port), driver.connect(server.port)] as const;
  for (const connection of connections) await connection.command('PING');
  return connections;
}

/** Each of the two goes first equally often. */
function inTurns(bare: Operation, own: Operation): Operation {
  let isOwnFirst = false;
  const timed = async (call: Operation) => {
    const startedMs = performance.now();
    await call();
    return performance.now() - startedMs;
  };
  return async (): Promise<TimesTaken> => {
    isOwnFirst = !isOwnFirst;
    if (!isOwnFirst) {
      const bareMs = await timed(bare);
      return { bareMs, ownMs: await timed(own) };
    }
    const ownMs = await timed(own);
    return { ownMs, bareMs: await timed(bare) };
  };
}

/** node-redis returns bytes if it is told to; 36 is the code of strings in RESP. */
const answeringBytes = (client: RedisClientType) => client.withTypeMapping({ 36: Buffer });

const bareRedis: Readonly<Record<string, Readonly<Record<Verb, (client: never) => Operation>>>> = {
  ioredis: {
    read: (client: Redis) => () => client.getBuffer('key'),
    write: (client: Redis) => () => client.set('key', value, 'PX', ttlMs),
  },
  'node-redis': {
    read(client: RedisClientType) {
      const bytes = answeringBytes(client);
      return () => bytes.get('key');
    },
    write: (client: RedisClientType) => () => client.set('key', value, { expiration: { type: 'PX', value: ttlMs } }),
  },
};

type Words = (string | Buffer)[];

/** ioredis has variants that return bytes, but not in its types. */
const bareScripts: Readonly<
  Record<string, (client: never, script: RedisScript, keys: Words, given: Words) => Operation>
> = {
  ioredis(client: { evalshaBuffer(...words: unknown[]): Promise<unknown> }, { hash }, keys, given) {
    return () => client.evalshaBuffer(hash, keys.length, ...keys, ...given);
  },
  'node-redis'(client: RedisClientType, { hash }, keys, given) {
    const bytes = answeringBytes(client);
    return () => bytes.evalSha(hash, { keys, arguments: given });
  },
};

function bareScript(title: string, client: never, verb: Verb): Operation {
  const keys = ['bare{1}:key', 'bare{1}'];
  const given = [recordOf(value, `${ttlMs}`), `${ttlMs}`, 'PUBLISH', 'bare{1}', 'key'];
  return verb === 'read'
    ? bareScripts[title]!(client, readScript, keys.slice(0, 1), [])
    : bareScripts[title]!(client, writeScript, keys, given);
}

function redisContenders(verb: Verb): Contender[] {
  const contender = (title: string, name: string, bareOf: (client: never) => Promise<Operation>): Contender => ({
    name,
    async prepare() {
      const { redisStore } = await import('holdfast/redis');
      const [bare, own] = await redis(title);
      const store = redisStore(own.client, { timeout: '10s' });
      // The server has the scripts from here on.
      const [ownRead, ownWrite] = [await operationOf(store, 'read'), await operationOf(store, 'write')];
      await ownRead();
      return inTurns(await bareOf(bare.client as never), verb === 'read' ? ownRead : ownWrite);
    },
  });
  return Object.entries(bareRedis).flatMap(([title, bare]) => [
    contender(title, title, async (client) => {
      await bare.write(client)();
      return bare[verb](client);
    }),
    contender(title, sameWork(title), async (client) => {
      await bareScript(title, client, 'write')();
      return bareScript(title, client, verb);
    }),
  ]);
}

function sameWork(title: string): string {
  return `${title}, the same at the server`;
}

async function operationOf(store: Store, verb: Verb): Promise<Operation> {
  await store.write('key', value, { ttlMs });
  return verb === 'read' ? () => store.read('key') : () => store.write('key', value, { ttlMs });
}

async function database(title: string): Promise<readonly [bare: PostgresConnection, own: PostgresConnection]> {
  const home = postgresHome();
  if (home === undefined) throw new Error('this table needs a Postgres');
  const server = await startPostgres(home);
  disposeAtEnd(server);
  const driver = postgresDrivers.find((one) => one.title === title)!;
  return [driver.connect(server.port, 1), driver.connect(server.port, 1)];
}

const statements: Readonly<Record<Verb, string>> = {
  read: 'SELECT value, version, expires_at FROM bare WHERE key = $1 AND expires_at > now()',
  write: `INSERT INTO bare VALUES ($1, $2, 1, now() + $3 * interval '1 ms') ON CONFLICT (key)
    DO UPDATE SET value = excluded.value, version = bare.version + 1, expires_at = excluded.expires_at RETURNING version`,
};
const rows: Readonly<Record<Verb, (Buffer | number)[]>> = {
  read: [Buffer.from('key')],
  write: [Buffer.from('key'), value, ttlMs],
};

const barePostgres: Readonly<Record<string, (pool: never, verb: Verb, texts: typeof statements) => Operation>> = {
  pg: (pool: pg.Pool, verb, texts) => () => pool.query({ name: verb, text: texts[verb], values: rows[verb] }),
  'postgres.js': (sql: postgres.Sql, verb, texts) => () => sql.unsafe(texts[verb], rows[verb], { prepare: true }),
};

const bareTable =
  'CREATE TABLE bare (key bytea PRIMARY KEY, value bytea, version bigint, expires_at timestamptz) WITH (fillfactor = 70)';

const { functionsOf } = await import('../../src/stores/postgres-schema.ts');
const { read, write } = functionsOf('holdfast');
const sameStatements: typeof statements = {
  read: `SELECT concat_ws(',', held_version, age_ms, left_ms, encode(held_value, 'base64')) FROM ${read}($1)`,
  write: `SELECT ${write}($1, $2, $3, NULL, NULL, 8000, false)`,
};

function postgresContenders(verb: Verb): Contender[] {
  const contender = (title: string, name: string, texts: typeof statements): Contender => ({
    name,
    async prepare() {
      const { postgresStore } = await import('holdfast/postgres');
      const [{ pool, query }, own] = await database(title);
      const bare = (what: Verb) => barePostgres[title]!(pool as never, what, texts);
      await query(bareTable);
      const store = postgresStore(own.pool, { timeout: '10s', prepare: true });
      await store.migrate();
      await bare('write')();
      return inTurns(bare(verb), await operationOf(store, verb));
    },
  });
  return Object.keys(barePostgres).flatMap((title) => [
    contender(title, title, statements),
    contender(title, sameWork(title), sameStatements),
  ]);
}

function serverTable(server: 'Redis' | 'Postgres', verb: Verb): Table {
  const contenders = server === 'Redis' ? redisContenders(verb) : postgresContenders(verb);
  const clients = Object.keys(server === 'Redis' ? bareRedis : barePostgres);
  const bare = { Redis: { read: 'GET', write: 'SET PX' }, Postgres: { read: 'SELECT', write: 'INSERT ON CONFLICT' } };
  return {
    name: `${server.toLowerCase()}-${verb}`,
    title: `Store in ${server}: \`${verb}\`, beside ${bare[server][verb]} by the bare client${server === 'Postgres' ? ', prepared' : ''}`,
    note,
    measure: 'times the bare call',
    baseline: clients[0]!,
    contenders,
    targets: clients.flatMap((title) => [
      atMost(1.25, `${title}: ≤ 1.25 × ${bare[server][verb]}`, (round) => round[title]!),
      atMost(1.25, `${title}: ≤ 1.25 × the same at the server`, (round) => round[sameWork(title)]!),
    ]),
  };
}

export const redisRead: Table = serverTable('Redis', 'read');
export const redisWrite: Table = serverTable('Redis', 'write');
export const postgresRead: Table = serverTable('Postgres', 'read');
export const postgresWrite: Table = serverTable('Postgres', 'write');

export const memoryRead: Table = {
  name: 'memory-read',
  title: 'Store in memory: `read`',
  measure: 'ns per call',
  baseline: 'Map.get, awaited',
  contenders: [
    {
      name: 'Map.get, awaited',
      prepare() {
        const map = new Map([['key', value]]);
        return () => map.get('key');
      },
    },
    {
      name: 'holdfast',
      async prepare() {
        const { memoryStore } = await import('holdfast');
        const store = memoryStore();
        await store.write('key', value, { ttlMs });
        return () => store.read('key');
      },
    },
  ],
  targets: [atMost(3, '≤ 3 × an awaited Map.get', (round) => round.holdfast! / round['Map.get, awaited']!)],
};
