/**
 * The fault matrix of Redis: the faults that every store with a server meets, and those that only Redis has, with every client library, on Redis and on Valkey.
 * Each row has a server of its own.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import { anyway, type Column, commonFaults, endure, type Fault, no, unknown, until } from './faults.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';

type Row = Fault<RedisConnection>;

function setting(name: string, broken: string, sound: string): Pick<Row, 'strikes' | 'strike' | 'heal'> {
  const set =
    (value: string): Row['strike'] =>
    ({ admin }) =>
      admin.command('CONFIG', 'SET', name, value);
  return { strikes: 'server', strike: set(broken), heal: set(sound) };
}

async function untilSaid(admin: RedisConnection, section: string, says: string): Promise<void> {
  const info = async () => `${await admin.command('INFO', section)}`;
  await until(info, (text) => text.includes(says));
}

const rows: readonly Row[] = [
  ...commonFaults(['--appendonly', 'yes', '--appendfsync', 'always']),
  {
    fault: 'a server that is killed and keeps nothing',
    strikes: 'server',
    strike: ({ server }) => server.kill(),
    heal: ({ server }) => server.start(),
    verbs: { reason: ['timeout', 'closed', 'failed'], applied: anyway },
    afterwards: 'lost',
  },
  {
    fault: 'a server that holds back writes (CLIENT PAUSE)',
    strikes: 'server',
    strike: ({ admin }) => admin.command('CLIENT', 'PAUSE', '60000', 'WRITE'),
    heal: ({ admin }) => admin.command('CLIENT', 'UNPAUSE'),
    verbs: { reason: ['timeout'], applied: unknown },
    // Redis treats every script as one that may write.
    read: ['timeout'],
    afterwards: 'done',
  },
  {
    fault: 'a server that has forgotten its scripts (NOSCRIPT)',
    strikes: 'server',
    strike: ({ admin }) => admin.command('SCRIPT', 'FLUSH'),
    verbs: 'done',
    afterwards: 'done',
  },
  {
    fault: 'a server without memory (OOM)',
    ...setting('maxmemory', '1', '0'),
    verbs: { reason: ['full'], applied: no },
    // A removal needs no memory, so that somebody can make room.
    removal: 'done',
    read: 'done',
    afterwards: 'not done',
  },
  {
    fault: 'a server that has become a replica (READONLY)',
    strikes: 'server',
    strike: ({ admin }) => admin.command('REPLICAOF', '127.0.0.1', '1'),
    heal: ({ admin }) => admin.command('REPLICAOF', 'NO', 'ONE'),
    verbs: { reason: ['failed'], applied: no },
    read: 'done',
    afterwards: 'not done',
  },
  {
    fault: 'a replica that has lost its primary (MASTERDOWN)',
    strikes: 'server',
    async strike({ admin }) {
      await admin.command('CONFIG', 'SET', 'replica-serve-stale-data', 'no');
      await admin.command('REPLICAOF', '127.0.0.1', '1');
    },
    heal: ({ admin }) => admin.command('REPLICAOF', 'NO', 'ONE'),
    verbs: { reason: ['failed'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'too few replicas (NOREPLICAS)',
    ...setting('min-replicas-to-write', '1', '0'),
    verbs: { reason: ['failed'], applied: no },
    read: 'done',
    afterwards: 'not done',
  },
  {
    fault: 'a disk that takes no snapshot (MISCONF)',
    settings: ['--save', '3600', '1000000'],
    strikes: 'server',
    async strike({ server, admin }) {
      // The snapshot is written to a temporary file beside it, and cannot be renamed.
      rmSync(join(server.folder, 'dump.rdb'), { force: true });
      mkdirSync(join(server.folder, 'dump.rdb', 'full'), { recursive: true });
      await admin.command('BGSAVE');
      await untilSaid(admin, 'persistence', 'rdb_last_bgsave_status:err');
    },
    async heal({ server, admin }) {
      rmSync(join(server.folder, 'dump.rdb'), { recursive: true });
      await admin.command('BGSAVE');
      await untilSaid(admin, 'persistence', 'rdb_last_bgsave_status:ok');
    },
    verbs: { reason: ['failed'], applied: no },
    read: 'done',
    afterwards: 'not done',
  },
  {
    fault: "somebody else's script that does not end (BUSY)",
    strikes: 'server',
    async strike({ admin, open }) {
      await admin.command('CONFIG', 'SET', 'busy-reply-threshold', '1');
      const other = await open();
      void other.command('EVAL', 'while true do end', '0').catch(() => {});
      const ping = () => admin.command('PING').catch((error: Error) => error.message);
      await until(ping, (answer) => `${answer}`.includes('BUSY'));
    },
    heal: ({ admin }) => admin.command('SCRIPT', 'KILL'),
    verbs: { reason: ['busy'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'a user who may not run scripts (NOPERM)',
    strikes: 'server',
    strike: ({ admin }) => admin.command('ACL', 'SETUSER', 'default', '-@scripting'),
    heal: ({ admin }) => admin.command('ACL', 'SETUSER', 'default', '+@all'),
    verbs: { reason: ['failed'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'a user who may run scripts, but not what is in them',
    strikes: 'server',
    strike: ({ admin }) => admin.command('ACL', 'SETUSER', 'default', '-get', '-getrange', '-time', '-del'),
    heal: ({ admin }) => admin.command('ACL', 'SETUSER', 'default', '+@all'),
    verbs: { reason: ['failed'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'a server with no room for one more client',
    strikes: 'server',
    async strike({ admin, proxy, own }) {
      // The administrator's connection stays open and is the only one that is allowed.
      await admin.command('CONFIG', 'SET', 'maxclients', '1');
      await admin.command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
      proxy.reset();
      await until(
        async () => stateOf(own),
        (state) => state !== 'ready',
      );
    },
    heal: ({ admin }) => admin.command('CONFIG', 'SET', 'maxclients', '1000'),
    verbs: { reason: ['timeout', 'failed', 'closed'], applied: anyway },
    afterwards: 'not done',
  },
];

function stateOf({ client }: RedisConnection): string {
  if ('status' in client) return client.status;
  return client.isReady ? 'ready' : 'not ready';
}

const programs = [
  { name: 'Redis', program: await redisProgram('redis-server') },
  { name: 'Valkey', program: await redisProgram('valkey-server') },
];
const columns = programs.flatMap((kind) => drivers.map((driver) => ({ ...kind, ...driver })));

it('has at least 12 faults, and every client library', () => {
  expect(new Set(rows.map(({ fault }) => fault)).size).toBeGreaterThanOrEqual(12);
  expect(drivers.map(({ title }) => title)).toEqual(['ioredis', 'node-redis']);
});

for (const { name, title, program, connect } of columns) {
  const column: Column<RedisConnection> = {
    server: (settings) => startRedis(program!, settings),
    leave: (server) => server.dispose(),
    ...{ connect, close: (connection) => connection.close() },
    storeOf: ({ client }, options) => redisStore(client, options),
  };
  describe.skipIf(program === undefined)(`redisStore on ${name} by ${title} survives`, () => {
    it.concurrent.each(rows)('$fault', (row) => endure(row, column));
  });
}
