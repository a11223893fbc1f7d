/**
 * The fault matrix: every fault here, with every client library, on Redis and on Valkey. A row says what a verb answers while the
 * fault lasts, and what the key must hold when it is over; after each, versions go on above and every verb works again.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { StoreError, type StoreFailure } from 'holdfast';
import { type FaultProxy, faultProxy, type ProxyFault } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import type { Store } from '../../src/stores/store.js';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';

const bytes = (text: string) => new TextEncoder().encode(text);
const ttlMs = 600_000;
const timeout = 150;

/** What a row works with. */
interface Place {
  readonly server: ServerProcess;
  readonly proxy: FaultProxy;
  /** Reaches the server without the proxy. */
  readonly admin: RedisConnection;
  /** Another connection, for a command that blocks. */
  readonly blocker: RedisConnection;
  /** The connection of the store that is looked at. */
  readonly own: RedisConnection;
}

interface Row {
  readonly fault: string;
  readonly settings?: readonly string[];
  strike(place: Place): Promise<unknown>;
  heal?(place: Place): Promise<unknown>;
  /** What a write and a removal answer meanwhile: their failure, or that they are done. */
  readonly verbs:
    | { readonly reason: readonly StoreFailure[]; readonly applied: readonly StoreError['applied'][] }
    | 'done';
  /** What a read answers: a failure of one of these reasons with `applied: 'no'`, or that it is done. By default as the others. */
  readonly read?: readonly StoreFailure[] | 'done';
  /** Whether the write, or the removal, is there when the fault is over. `'lost'`: nothing is there at all. */
  readonly afterwards: 'done' | 'not done' | 'either' | 'lost';
}

const anyway: readonly StoreError['applied'][] = ['no', 'unknown'];
const unknown: readonly StoreError['applied'][] = ['unknown'];
const no: readonly StoreError['applied'][] = ['no'];

function network(fault: ProxyFault): Pick<Row, 'strike' | 'heal'> {
  return { strike: ({ proxy }) => proxy.inject(fault), heal: ({ proxy }) => proxy.heal() };
}

function setting(name: string, broken: string, sound: string): Pick<Row, 'strike' | 'heal'> {
  return {
    strike: ({ admin }) => admin.command('CONFIG', 'SET', name, broken),
    heal: ({ admin }) => admin.command('CONFIG', 'SET', name, sound),
  };
}

async function untilSaid(admin: RedisConnection, section: string, says: string): Promise<void> {
  await expect
    .poll(async () => `${await admin.command('INFO', section)}`, { timeout: 5000, interval: 5 })
    .toContain(says);
}

const rows: readonly Row[] = [
  {
    fault: 'a server that is killed and keeps nothing',
    strike: ({ server }) => server.kill(),
    heal: ({ server }) => server.start(),
    verbs: { reason: ['timeout', 'closed', 'failed'], applied: anyway },
    afterwards: 'lost',
  },
  {
    fault: 'a server that is killed and keeps everything',
    settings: ['--appendonly', 'yes', '--appendfsync', 'always'],
    strike: ({ server }) => server.kill(),
    heal: ({ server }) => server.start(),
    verbs: { reason: ['timeout', 'closed', 'failed'], applied: anyway },
    afterwards: 'not done',
  },
  {
    fault: 'a server that is frozen and wakes',
    strike: async ({ server }) => server.freeze(),
    heal: async ({ server }) => server.wake(),
    verbs: { reason: ['timeout'], applied: unknown },
    afterwards: 'done',
  },
  {
    fault: 'a server that is frozen and then killed',
    settings: ['--appendonly', 'yes', '--appendfsync', 'always'],
    strike: async ({ server }) => server.freeze(),
    async heal({ server }) {
      // It is woken to be killed, and may be quick.
      await server.kill();
      await server.start();
    },
    verbs: { reason: ['timeout'], applied: unknown },
    afterwards: 'either',
  },
  {
    fault: 'a request that is lost',
    ...network({ kind: 'cut', direction: 'requests', afterBytes: 0 }),
    verbs: { reason: ['closed', 'failed', 'timeout'], applied: unknown },
    afterwards: 'not done',
  },
  {
    fault: 'a request that is cut in the middle',
    ...network({ kind: 'cut', direction: 'requests', afterBytes: 50 }),
    verbs: { reason: ['closed', 'failed', 'timeout'], applied: unknown },
    afterwards: 'not done',
  },
  {
    fault: 'a reply that is lost after the verb was done',
    ...network({ kind: 'cut', direction: 'replies', afterBytes: 0 }),
    verbs: { reason: ['closed', 'failed', 'timeout'], applied: unknown },
    afterwards: 'done',
  },
  {
    fault: 'a reply that is cut in the middle',
    ...network({ kind: 'cut', direction: 'replies', afterBytes: 2 }),
    verbs: { reason: ['closed', 'failed', 'timeout'], applied: unknown },
    afterwards: 'done',
  },
  {
    fault: 'a blackhole that ends',
    ...network({ kind: 'blackhole' }),
    verbs: { reason: ['timeout'], applied: unknown },
    afterwards: 'done',
  },
  {
    fault: 'a blackhole that ends by a reset',
    strike: ({ proxy }) => proxy.inject({ kind: 'blackhole' }),
    async heal({ proxy }) {
      proxy.reset();
      await proxy.heal();
    },
    verbs: { reason: ['timeout'], applied: unknown },
    afterwards: 'not done',
  },
  {
    fault: 'a connection that is half open',
    ...network({ kind: 'half-open' }),
    verbs: { reason: ['timeout', 'closed', 'failed'], applied: unknown },
    afterwards: 'not done',
  },
  {
    fault: 'a server that refuses connections',
    async strike({ proxy, own }) {
      await proxy.inject({ kind: 'refuse' });
      proxy.reset();
      await expect.poll(() => stateOf(own), { timeout: 5000, interval: 5 }).not.toBe('ready');
    },
    heal: ({ proxy }) => proxy.heal(),
    verbs: { reason: ['timeout'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'a network that is slower than the timeout',
    ...network({ kind: 'latency', delay: 2 * timeout }),
    verbs: { reason: ['timeout'], applied: unknown },
    afterwards: 'done',
  },
  {
    fault: 'a network that drips',
    strike: ({ proxy }) => proxy.inject({ kind: 'drip', bytes: 1, every: 100, direction: 'requests' }),
    async heal({ proxy }) {
      // What is on its way drips on, fault or none.
      proxy.reset();
      await proxy.heal();
    },
    verbs: { reason: ['timeout'], applied: unknown },
    afterwards: 'not done',
  },
  {
    fault: 'a server that holds back writes (CLIENT PAUSE)',
    strike: ({ admin }) => admin.command('CLIENT', 'PAUSE', '60000', 'WRITE'),
    heal: ({ admin }) => admin.command('CLIENT', 'UNPAUSE'),
    verbs: { reason: ['timeout'], applied: unknown },
    // Redis takes any script for one that may write.
    read: ['timeout'],
    afterwards: 'done',
  },
  {
    fault: 'a server that has forgotten its scripts (NOSCRIPT)',
    strike: ({ admin }) => admin.command('SCRIPT', 'FLUSH'),
    verbs: 'done',
    afterwards: 'done',
  },
  {
    fault: 'a server without memory (OOM)',
    ...setting('maxmemory', '1', '0'),
    verbs: { reason: ['full'], applied: no },
    read: 'done',
    afterwards: 'not done',
  },
  {
    fault: 'a server that has become a replica (READONLY)',
    strike: ({ admin }) => admin.command('REPLICAOF', '127.0.0.1', '1'),
    heal: ({ admin }) => admin.command('REPLICAOF', 'NO', 'ONE'),
    verbs: { reason: ['failed'], applied: no },
    read: 'done',
    afterwards: 'not done',
  },
  {
    fault: 'a replica that has lost its primary (MASTERDOWN)',
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
    async strike({ server, admin }) {
      // The snapshot is written beside it, and cannot be given its name.
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
    async strike({ admin, blocker }) {
      await admin.command('CONFIG', 'SET', 'busy-reply-threshold', '1');
      void blocker.command('EVAL', 'while true do end', '0').catch(() => {});
      const ping = () => admin.command('PING').catch((error: Error) => error.message);
      await expect.poll(ping, { timeout: 5000, interval: 5 }).toContain('BUSY');
    },
    heal: ({ admin }) => admin.command('SCRIPT', 'KILL'),
    verbs: { reason: ['busy'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'a user who may not run scripts (NOPERM)',
    strike: ({ admin }) => admin.command('ACL', 'SETUSER', 'default', '-@scripting'),
    heal: ({ admin }) => admin.command('ACL', 'SETUSER', 'default', '+@all'),
    verbs: { reason: ['failed'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'a server with no room for one more client',
    async strike({ admin, proxy, own }) {
      // The connection of the administrator stays, and is the only one there may be.
      await admin.command('CONFIG', 'SET', 'maxclients', '1');
      await admin.command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
      proxy.reset();
      await expect.poll(() => stateOf(own), { timeout: 5000, interval: 5 }).not.toBe('ready');
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
  describe.skipIf(program === undefined)(`redisStore on ${name} by ${title} survives`, () => {
    it.each(rows)(
      '$fault',
      async (row) => {
        const server = await startRedis(program!, row.settings);
        const proxy = await faultProxy({ port: server.port });
        const connections = [server.port, server.port, proxy.port].map((port) => connect(port));
        const [admin, blocker, own] = connections as [RedisConnection, RedisConnection, RedisConnection];
        const store = redisStore(own.client, { timeout });
        const patient = redisStore(own.client, { timeout: '10s' });
        const place: Place = { server, proxy, admin, blocker, own };
        try {
          let last = 0;
          for (const verb of ['write', 'remove', 'read'] as const) {
            last = await put(patient, 'old', last);
            // Scripts are known: what is struck is the verb, not its first call ever.
            await patient.read('key');
            await patient.remove('other');
            await row.strike(place);
            const outcome = await settle(store, verb);
            await row.heal?.(place);
            check(row, verb, outcome);
            await expect
              .poll(() => held(patient), { timeout: 10_000, interval: 10 })
              .toSatisfy((value: string) => expected(row, verb).includes(value));
          }
          last = await put(patient, 'new', last);
          expect(await held(patient)).toBe('new');
          expect(await patient.remove('key', { ifVersion: last })).toBe(true);
        } finally {
          for (const connection of connections) connection.close();
          await proxy.close();
          await server.dispose();
        }
      },
      30_000,
    );
  });
}

/** Writes as soon as there is a connection again, and says by which version, which must be above the last. */
async function put(store: Store, value: string, last: number): Promise<number> {
  let version = 0;
  const write = async () => {
    const answer = await store.write('key', bytes(value), { ttlMs }).catch(() => undefined);
    if (answer?.ok) version = answer.version;
    return version;
  };
  await expect.poll(write, { timeout: 10_000, interval: 10 }).toBeGreaterThan(last);
  return version;
}

async function settle(store: Store, verb: 'write' | 'remove' | 'read'): Promise<unknown> {
  const beganMs = performance.now();
  const promise =
    verb === 'write'
      ? store.write('key', bytes('new'), { ttlMs })
      : verb === 'remove'
        ? store.remove('key')
        : store.read('key');
  const outcome = await promise.catch((error: unknown) => error);
  // In time, and a good deal for a machine that is busy.
  expect(performance.now() - beganMs).toBeLessThan(timeout + 1000);
  return outcome;
}

function check(
  { verbs, read = verbs === 'done' ? 'done' : verbs.reason, ...row }: Row,
  verb: string,
  outcome: unknown,
): void {
  // Removals need no memory, so that somebody can make room.
  const isLetThrough = verb === 'remove' && row.fault.includes('OOM');
  const wanted = verb === 'read' ? (read === 'done' ? 'done' : { reason: read, applied: no }) : verbs;
  if (wanted === 'done' || isLetThrough) return expect(outcome).not.toBeInstanceOf(Error);
  expect(outcome).toBeInstanceOf(StoreError);
  const { reason, applied, operation } = outcome as StoreError;
  expect([verb, wanted.reason]).toEqual([operation, expect.arrayContaining([reason])]);
  expect(wanted.applied).toContain(applied);
}

function expected({ fault, afterwards }: Row, verb: string): string[] {
  const done = { write: 'new', remove: 'nothing', read: 'old' }[verb]!;
  if (afterwards === 'lost') return ['nothing'];
  if (afterwards === 'either') return ['old', done];
  return [afterwards === 'done' || (verb === 'remove' && fault.includes('OOM')) ? done : 'old'];
}

async function held(store: Store): Promise<string> {
  try {
    const entry = await store.read('key');
    return entry === undefined ? 'nothing' : new TextDecoder().decode(entry.value);
  } catch {
    return 'a failure';
  }
}
