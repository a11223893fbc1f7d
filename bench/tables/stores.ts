/** What a verb costs beside the bare client that does the equivalent command or statement: each client library has a server of its own. */
import type { Store } from 'holdfast';
import type { Redis } from 'ioredis';
import type pg from 'pg';
import type postgres from 'postgres';
import type { RedisClientType } from 'redis';
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
  'From call to answer on one connection each of one server, one call after another, a value of 100 bytes. Ours and the bare call take turns; the median of each.';

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

/** Each goes first as often as the other. */
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

/** node-redis answers bytes where it is told to; 36 is the code of strings in RESP. */
const bareRedis: Readonly<Record<string, Readonly<Record<Verb, (client: never) => Operation>>>> = {
  ioredis: {
    read: (client: Redis) => () => client.getBuffer('key'),
    write: (client: Redis) => () => client.set('key', value, 'PX', ttlMs),
  },
  'node-redis': {
    read(client: RedisClientType) {
      const bytes = client.withTypeMapping({ [36]: Buffer });
      return () => bytes.get('key');
    },
    write: (client: RedisClientType) => () => client.set('key', value, { expiration: { type: 'PX', value: ttlMs } }),
  },
};

function redisContenders(verb: Verb): Contender[] {
  return Object.entries(bareRedis).map(([title, bare]) => ({
    name: title,
    async prepare() {
      const { redisStore } = await import('holdfast/redis');
      const [{ client }, own] = await redis(title);
      await bare.write(client as never)();
      return inTurns(bare[verb](client as never), await operationOf(redisStore(own.client, { timeout: '10s' }), verb));
    },
  }));
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

const barePostgres: Readonly<Record<string, (pool: never, verb: Verb) => Operation>> = {
  pg: (pool: pg.Pool, verb) => () => pool.query({ name: verb, text: statements[verb], values: rows[verb] }),
  'postgres.js': (sql: postgres.Sql, verb) => () => sql.unsafe(statements[verb], rows[verb], { prepare: true }),
};

const bareTable =
  'CREATE TABLE bare (key bytea PRIMARY KEY, value bytea, version bigint, expires_at timestamptz) WITH (fillfactor = 70)';

function postgresContenders(verb: Verb): Contender[] {
  return Object.entries(barePostgres).map(([title, bare]) => ({
    name: title,
    async prepare() {
      const { postgresStore } = await import('holdfast/postgres');
      const [{ pool, query }, own] = await database(title);
      await query(bareTable);
      await bare(pool as never, 'write')();
      const store = postgresStore(own.pool, { timeout: '10s', prepare: true });
      await store.migrate();
      return inTurns(bare(pool as never, verb), await operationOf(store, verb));
    },
  }));
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
    targets: clients.map((title) => atMost(1.25, `${title}: ≤ 1.25 × the bare client`, (round) => round[title]!)),
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
