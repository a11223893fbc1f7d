import { createHash, randomBytes } from 'node:crypto';
import { EventEmitter, getEventListeners } from 'node:events';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { OptionsError, StoreError } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { type IoredisClient, redisStore } from '../../src/stores/redis.js';
import * as queueScripts from '../../src/stores/redis-queue-scripts.js';
import * as scripts from '../../src/stores/redis-scripts.js';
import { redisProgram, startRedis, startReplica } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { canMount, smallDisk } from '../support/servers/small-disk.ts';
import { temporaryFolder } from '../support/temporary-folder.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';
import { bytes, failure, text } from './support.ts';

const ttlMs = 60_000;

const program = await redisProgram();
let prefixes = 0;

describe.skipIf(program === undefined).each(drivers)('redisStore on $title', ({ connect }) => {
  let server: ServerProcess;
  let admin: RedisConnection;
  let prefix: string;
  const connections: RedisConnection[] = [];
  const open = (port = server.port) => {
    const connection = connect(port);
    connections.push(connection);
    return connection;
  };
  const newStore = () => {
    prefix = `test-${++prefixes}`;
    return redisStore(open().client, { prefix, timeout: '5s' });
  };
  /** The calls of each command, as counted by the server. */
  const calls = async () => {
    const lines = `${await admin.command('INFO', 'commandstats')}`.matchAll(/cmdstat_(\S+?):calls=(\d+)/g);
    return Object.fromEntries([...lines].map(([, name, count]) => [name, Number(count)]));
  };
  const reads = async () => Number(/total_reads_processed:(\d+)/.exec(`${await admin.command('INFO', 'stats')}`)![1]);

  beforeAll(async () => {
    server = await startRedis(program!);
    admin = open();
    await admin.command('PING');
  });
  afterEach(() => {
    for (const connection of connections.splice(1)) connection.close();
  });
  afterAll(async () => {
    admin.close();
    await server?.dispose();
  });

  it('takes one round trip per verb', async () => {
    const store = newStore();
    const { version } = (await store.write('key', bytes('warm'), { ttlMs })) as { version: number };
    await store.read('key');
    await store.remove('other');
    await admin.command('CONFIG', 'RESETSTAT');
    const readsBefore = await reads();
    await store.write('key', bytes('1'), { ttlMs, ifVersion: version });
    await store.write('key', bytes('2'), { ttlMs, ifVersion: 0 });
    await store.write('key', bytes('3'), { ttlMs });
    await store.read('key');
    await store.read('other');
    await store.remove('key', { ifVersion: 1 });
    await store.remove('key');
    expect((await reads()) - readsBefore).toBe(7 + 1);
    expect(await calls()).toMatchObject({ evalsha: 7 });
    expect(await calls()).not.toHaveProperty('eval');
  });

  it('returns text and bytes as they were', async () => {
    const store = newStore();
    const values = [bytes('plain'), bytes('schön'), Uint8Array.of(0, 13, 10, 127), Uint8Array.of(128, 255, 0)];
    for (const length of [4095, 4096, 4097]) values.push(bytes('x'.repeat(length)));
    for (const value of values) {
      await store.write('key', value, { ttlMs });
      expect(Buffer.compare((await store.read('key'))!.value, value)).toBe(0);
    }
  });

  it("sends a script's text again when the server has lost it, and only then", async () => {
    const store = newStore();
    await admin.command('SCRIPT', 'FLUSH');
    await admin.command('CONFIG', 'RESETSTAT');
    for (let round = 0; round < 2; round++) {
      expect(await store.write('key', bytes('1'), { ttlMs })).toMatchObject({ ok: true });
      expect(text((await store.read('key'))?.value)).toBe('1');
      expect(await store.remove('key')).toBe(true);
      expect(await store.remove('key')).toBe(false);
    }
    expect(await calls()).toMatchObject({ evalsha: 8, eval: 3 });
  });

  it('keeps one last version for each bucket, beside the records, in the same slot', async () => {
    const store = newStore();
    for (let index = 0; index < 3000; index++) await store.write(`key ${index}`, bytes(''), { ttlMs });
    const keys = (await admin.command('KEYS', `${prefix}{*`)) as string[];
    const records = keys.filter((key) => /^[^{]+\{\d+\}:key \d+$/.test(key));
    const buckets = keys.filter((key) => /^[^{]+\{\d+\}$/.test(key));
    expect([records.length, records.length + buckets.length]).toEqual([3000, keys.length]);
    // By chance, about a twentieth of them is missing.
    expect(buckets.length).toBeGreaterThan(900);
    expect(buckets.length).toBeLessThanOrEqual(1024);
    for (const key of records) expect(buckets).toContain(key.slice(0, key.indexOf('}') + 1));
    const lives = await Promise.all(keys.slice(0, 200).map((key) => admin.command('PTTL', key)));
    expect(lives.every((life, index) => Number(life) > 0 === keys[index]!.includes(':'))).toBe(true);
  });

  it('gives versions above the last one of the bucket when the clock was put back', async () => {
    const store = newStore();
    await store.write('key', bytes('1'), { ttlMs });
    const [bucket] = (await admin.command('KEYS', `${prefix}{*}`)) as string[];
    const ahead = Date.now() * 1000 + 3_600_000_000;
    await admin.command('SET', bucket!, `${ahead}`);
    expect(await store.write('key', bytes('2'), { ttlMs })).toEqual({ ok: true, version: ahead + 1 });
    await store.remove('key');
    expect(await store.write('key', bytes('3'), { ttlMs, ifVersion: 0 })).toEqual({ ok: true, version: ahead + 2 });
    // Without a counter, the version is the server's time in microseconds.
    await admin.command('DEL', bucket!);
    const beganMs = Date.now();
    const { version } = (await store.write('key', bytes('4'), { ttlMs })) as { version: number };
    expect(version / 1000).toBeGreaterThan(beganMs - 5_000);
    expect(version / 1000).toBeLessThan(Date.now() + 5_000);
  });

  it('does not touch keys of others', async () => {
    const store = newStore();
    await store.write('key', bytes('1'), { ttlMs });
    const keys = (await admin.command('KEYS', `${prefix}{*`)) as string[];
    const record = keys.find((key) => key.endsWith(':key'))!;
    for (const foreign of [
      ['SET', record, 'foreign'],
      ['HSET', record, 'field', 'value'],
    ] as const) {
      await admin.command('DEL', record);
      await admin.command(...foreign);
      const dump = `${await admin.command('DUMP', record)}`;
      const refused = { reason: 'schema', applied: 'no' };
      expect(await failure(store.read('key'))).toMatchObject(refused);
      expect(await failure(store.write('key', bytes('2'), { ttlMs, ifVersion: 0 }))).toMatchObject(refused);
      expect(`${await admin.command('DUMP', record)}`).toBe(dump);
    }
  });

  it('says that there is no memory left, and still reads and removes', async () => {
    const store = newStore();
    await store.write('key', bytes('kept'), { ttlMs });
    await admin.command('CONFIG', 'SET', 'maxmemory', '1');
    try {
      const error = await failure(store.write('key', bytes('new'), { ttlMs }));
      expect(error).toMatchObject({ reason: 'full', applied: 'no' });
      expect(error.message).toContain('maxmemory');
      expect(await failure(store.write('other', bytes('new'), { ttlMs, ifVersion: 0 }))).toMatchObject({
        reason: 'full',
      });
      expect(text((await store.read('key'))?.value)).toBe('kept');
      expect(await store.remove('key')).toBe(true);
    } finally {
      await admin.command('CONFIG', 'SET', 'maxmemory', '0');
    }
    expect(await store.write('key', bytes('new'), { ttlMs })).toMatchObject({ ok: true });
  });

  it('says that too few replicas are connected', async () => {
    const store = newStore();
    await admin.command('CONFIG', 'SET', 'min-replicas-to-write', '1');
    const error = await failure(store.write('key', bytes('new'), { ttlMs }));
    await admin.command('CONFIG', 'SET', 'min-replicas-to-write', '0');
    expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
    expect(error.message).toContain('min-replicas-to-write');
    expect(await store.read('key')).toBeUndefined();
  });

  it("says that somebody else's script keeps the server busy", async () => {
    const store = newStore();
    await store.read('key');
    await admin.command('CONFIG', 'SET', 'busy-reply-threshold', '1');
    const endless = open()
      .command('EVAL', 'while true do end', '0')
      .catch(() => {});
    await expect.poll(() => store.read('key').catch((error) => error.reason), { interval: 5 }).toBe('busy');
    const error = await failure(store.write('key', bytes('new'), { ttlMs }));
    await admin.command('SCRIPT', 'KILL');
    await endless;
    await admin.command('CONFIG', 'SET', 'busy-reply-threshold', '5000');
    expect(error).toMatchObject({ reason: 'busy', applied: 'no' });
    expect(await store.read('key')).toBeUndefined();
  });

  it('is applied completely or not at all, whichever of its commands is refused', async () => {
    const store = newStore();
    const { version } = (await store.write('key', bytes('kept'), { ttlMs })) as { version: number };
    const verbs: Record<string, () => Promise<unknown>> = {
      write: () => store.write('key', bytes('new'), { ttlMs }),
      'write if': () => store.write('key', bytes('new'), { ttlMs, ifVersion: version }),
      'refused write': () => store.write('key', bytes('new'), { ttlMs, ifVersion: 0 }),
      remove: () => store.remove('key'),
      'remove if': () => store.remove('key', { ifVersion: version }),
      read: () => store.read('key'),
    };
    const keys = ((await admin.command('KEYS', `${prefix}{*`)) as string[]).sort();
    const state = async () => Promise.all(keys.map((key) => admin.command('GET', key)));
    const before = await state();
    const failed = new Map<string, string[]>();
    for (const command of ['get', 'getrange', 'pttl', 'time', 'set', 'del']) {
      for (const [name, verb] of Object.entries(verbs)) {
        // This is a user of the server's own who may not call one command.
        await admin.command('ACL', 'SETUSER', 'default', `-${command}`);
        const outcome = await verb().catch((error: unknown) => error);
        await admin.command('ACL', 'SETUSER', 'default', '+@all');
        if (outcome instanceof StoreError) {
          expect(outcome).toMatchObject({ reason: 'failed', applied: 'no' });
          expect(outcome.message).toContain('lacks a permission');
          failed.set(command, [...(failed.get(command) ?? []), name]);
          expect(await state()).toEqual(before);
        } else {
          await admin.command('SET', keys[1]!, `${before[1]}`, 'PX', `${ttlMs}`);
          await admin.command('SET', keys[0]!, `${before[0]}`);
        }
      }
    }
    expect(Object.fromEntries(failed)).toEqual({
      get: ['refused write', 'read'],
      getrange: ['write if', 'refused write', 'remove if'],
      pttl: ['refused write', 'read'],
      time: ['write', 'write if'],
      set: ['write', 'write if'],
      del: ['remove', 'remove if'],
    });
  });

  it('leaves the record as before or as requested, whichever call of a script fails', async () => {
    const store = newStore();
    const head = (version: number) => `${version}`.padStart(16, '0');
    let last = ((await store.write('key', bytes('old'), { ttlMs })) as { version: number }).version;
    const [bucket, record] = ((await admin.command('KEYS', `${prefix}{*`)) as string[]).sort();
    const call = 'redis.call(';
    const given = `${`${ttlMs}`.padStart(12, '0')}new`;
    const told = ['PUBLISH', bucket!, 'hash'];
    const toldByWrite = ['PUBLISH', 'hash'];
    const runs = [
      { script: scripts.readScript, keys: [record!], words: () => [] },
      { script: scripts.readManyScript, keys: [record!, bucket!], words: () => [] },
      { script: scripts.writeScript, keys: [record!, bucket!], words: () => [given, ...toldByWrite] },
      { script: scripts.writeScript, keys: [record!, bucket!], words: () => [given, ...toldByWrite, `${last}`] },
      { script: scripts.writeScript, keys: [record!, bucket!], words: () => [given, ...toldByWrite, '1'] },
      { script: scripts.removeScript, keys: [record!], words: () => told },
      { script: scripts.removeScript, keys: [record!], words: () => [...told, `${last}`] },
    ];
    let struck = 0;
    for (const { script, keys, words } of runs) {
      const parts = script.text.split(call);
      for (let nth = 1; nth < parts.length; nth++) {
        const text = `${parts.slice(0, nth).join(call)}struck(${parts.slice(nth).join(call)}`;
        const before = await admin.command('GET', record!);
        const outcome = await admin
          .command('EVAL', text, `${keys.length}`, ...keys, ...words())
          .catch((error: Error) => error);
        if (outcome instanceof Error) {
          expect(outcome.message).toContain('struck');
          struck++;
          expect(await admin.command('GET', record!)).toBe(before);
        }
        const answer = await store.write('key', bytes('old'), { ttlMs });
        const next = answer.ok ? answer.version : 0;
        expect(next).toBeGreaterThan(last);
        expect(`${await admin.command('GET', record!)}`).toMatch(new RegExp(`^${head(next)}.*old$`));
        last = next;
      }
    }
    // These are all calls of all scripts that one of these runs makes.
    expect(struck).toBe(17);
  });

  it('consumes nothing from a limit whichever call of "consume" fails', async () => {
    const store = newStore();
    const rate = { limit: 10, periodMs: 600_000, burst: 5 };
    expect(await store.native.consume('limit', rate)).toMatchObject({ ok: true, remaining: 4 });
    const [key] = (await admin.command('KEYS', `${prefix}{*`)) as string[];
    const { text: script } = scripts.consumeScript;
    const call = 'redis.call(';
    const parts = script.split(call);
    const words = [(rate.periodMs / rate.limit) * 1000, rate.burst, 1].map(String);
    for (let nth = 1; nth < parts.length; nth++) {
      const broken = `${parts.slice(0, nth).join(call)}struck(${parts.slice(nth).join(call)}`;
      const before = await admin.command('GET', key!);
      const outcome = await admin.command('EVAL', broken, '1', key!, ...words).catch((error: Error) => error.message);
      expect(outcome).toContain('struck');
      expect(await admin.command('GET', key!)).toBe(before);
    }
    expect(parts.length).toBe(4);
    expect(await store.native.consume('limit', rate)).toMatchObject({ ok: true, remaining: 3 });
  });

  it.skipIf(!canMount)(
    'says that the disk is full, changes nothing, answers reads, and goes on by itself when there is room',
    async () => {
      const parent = temporaryFolder('full');
      const disk = smallDisk(join(parent, 'disk'), 0, 3);
      const full = await startRedis(program!, ['--dir', disk.folder, '--appendonly', 'yes']);
      try {
        const connection = open(full.port);
        const store = redisStore(connection.client, { timeout: '10s' });
        const versions = new Map<string, number>();
        const fill = async () => {
          for (let count = 0; count < 500; count++) {
            const key = `key ${versions.size}`;
            const answer = await store.write(key, randomBytes(100_000), { ttlMs, ifVersion: 0 });
            if (answer.ok) versions.set(key, answer.version);
          }
        };
        const error = await failure(fill());
        expect(error).toMatchObject({ reason: 'full', applied: 'no' });
        expect(error.message).toContain('No space left on device');
        expect(await failure(store.remove('key 0'))).toMatchObject({ reason: 'full', applied: 'no' });
        for (const [key, version] of versions) expect((await store.read(key))?.version).toBe(version);
        expect(await store.read(`key ${versions.size}`)).toBeUndefined();
        disk.resize(100);
        const again = () => store.write('key 0', bytes('new'), { ttlMs, ifVersion: versions.get('key 0')! });
        await expect.poll(() => again().catch(() => undefined)).toMatchObject({ ok: true });
        // Everything that was answered, before and after, is on the disk.
        await expect.poll(() => connection.command('INFO', 'persistence')).toContain('aof_last_write_status:ok');
        await full.kill();
        await full.start();
        await expect
          .poll(async () => (await store.read('key 1').catch(() => undefined))?.version)
          .toBe(versions.get('key 1'));
        expect(text((await store.read('key 0'))?.value)).toBe('new');
      } finally {
        await full.dispose();
        disk.dispose();
        rmSync(parent, { recursive: true });
      }
    },
  );

  it('says that the server is a replica, and goes on above its versions when it is promoted', async () => {
    const replica = await startReplica(program!, server);
    try {
      const store = newStore();
      const { version } = (await store.write('key', bytes('kept'), { ttlMs })) as { version: number };
      // WAIT covers only what its own connection has written.
      await admin.command('SET', 'copied', '');
      await expect.poll(async () => Number(await admin.command('WAIT', '1', '100')), { interval: 5 }).toBe(1);
      const connection = open(replica.port);
      const copy = redisStore(connection.client, { prefix, timeout: '5s' });
      const error = await failure(copy.write('key', bytes('new'), { ttlMs, ifVersion: version }));
      expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
      expect(error.message).toContain('this server is a replica');
      expect(await failure(copy.remove('key'))).toMatchObject({ applied: 'no' });
      expect(text((await copy.read('key'))?.value)).toBe('kept');
      // The primary is lost, and somebody promotes its copy.
      await connection.command('REPLICAOF', 'NO', 'ONE');
      const blocked = await copy.write('key', bytes('new'), { ttlMs, ifVersion: 0 });
      expect(blocked).toMatchObject({ ok: false, entry: { version } });
      const next = (await copy.write('key', bytes('new'), { ttlMs, ifVersion: version })) as { version: number };
      expect(next.version).toBeGreaterThan(version);
    } finally {
      await replica.dispose();
    }
  });

  it('says that the client is closed', async () => {
    const connection = open();
    await connection.command('PING');
    const store = redisStore(connection.client);
    await store.read('key');
    connection.close();
    await expect.poll(() => failure(store.read('key')).then(({ reason }) => reason)).toBe('closed');
    for (const verb of [
      () => store.read('key'),
      () => store.write('key', bytes(''), { ttlMs }),
      () => store.remove('key'),
    ]) {
      expect(await failure(verb())).toMatchObject({ reason: 'closed', applied: 'no', store: 'redis' });
    }
  });
});

describe.skipIf(program === undefined)('redisStore on an ioredis with enableAutoPipelining', () => {
  it('runs its verbs, even on a server that does not know the scripts yet; those of one turn in one round trip', async () => {
    const server = await startRedis(program!);
    const client = new Redis(server.port, '127.0.0.1', { enableAutoPipelining: true });
    try {
      const store = redisStore(client, { timeout: '5s' });
      for (const round of ['new', 'known']) {
        const before = Number(/total_reads_processed:(\d+)/.exec(await server.ask('INFO stats'))![1]);
        const written = await Promise.all(['a', 'b', 'c'].map((key) => store.write(key, bytes(round), { ttlMs })));
        const after = Number(/total_reads_processed:(\d+)/.exec(await server.ask('INFO stats'))![1]);
        expect(written.map(({ ok }) => ok)).toEqual([true, true, true]);
        // Two of the calls are made by the question itself.
        if (round === 'known') expect(after - before).toBe(2 + 1);
      }
      expect(text((await store.read('b'))?.value)).toBe('known');
      expect(await store.remove('b')).toBe(true);
    } finally {
      client.disconnect();
      await server.dispose();
    }
  });
});

describe.skipIf(program === undefined)('redisStore on an ioredis', () => {
  it('sends a verb at once if no other is in progress, and those that follow in the same turn in one piece', async () => {
    const server = await startRedis(program!);
    const client = new Redis(server.port, '127.0.0.1');
    try {
      const store = redisStore(client, { timeout: '5s' });
      const verbs = () => Promise.all(['a', 'b', 'c'].map((key) => store.write(key, bytes('x'), { ttlMs })));
      // This teaches the script to the server.
      await verbs();
      const pieces = [vi.spyOn(client.stream, '_write'), vi.spyOn(client.stream, '_writev')];
      expect((await verbs()).map(({ ok }) => ok)).toEqual([true, true, true]);
      expect(pieces.map(({ mock }) => mock.calls.length)).toEqual([1, 1]);
    } finally {
      client.disconnect();
      await server.dispose();
    }
  });
});

describe.skipIf(program === undefined)('redisStore on an ioredis in the middle of a MULTI', () => {
  it('counts a queued command as unknown, not as done', async () => {
    const server = await startRedis(program!);
    const client = new Redis(server.port, '127.0.0.1');
    try {
      const store = redisStore(client, { timeout: '5s' });
      const { readMany, consume, guardedWrite } = store.native;
      const options = { ttlMs, ifVersion: 0 };
      await store.write('held', bytes('a'), options);
      await client.multi({ pipeline: false });
      const verbs = {
        read: () => store.read('held'),
        write: () => store.write('key', bytes('b'), options),
        guardedWrite: () => guardedWrite('key', bytes('b'), { ...options, quietMs: 1 }),
        remove: () => store.remove('held'),
        readMany: () => readMany(['held', 'key']),
        consume: () => consume('key', { limit: 1, periodMs: 1000 }),
      };
      for (const [name, verb] of Object.entries(verbs)) {
        const error = await failure(verb());
        expect(error).toMatchObject({ reason: 'failed', applied: name.startsWith('read') ? 'no' : 'unknown' });
        expect(error.message).toContain('MULTI');
      }
      await client.discard();
      expect(text((await store.read('held'))?.value)).toBe('a');
    } finally {
      client.disconnect();
      await server.dispose();
    }
  });
});

describe.skipIf(program === undefined)('redisStore on an ioredis with lazyConnect', () => {
  it('makes the client connect, queues nothing until then, and sends nothing later', async () => {
    const server = await startRedis(program!);
    await server.kill();
    const client = new Redis(server.port, '127.0.0.1', { lazyConnect: true, retryStrategy: () => 10 });
    client.on('error', () => {});
    try {
      const store = redisStore(client, { timeout: 50 });
      const write = () => store.write('key', bytes('late'), { ttlMs, ifVersion: 0 });
      for (const verb of [write, write])
        expect(await failure(verb())).toMatchObject({ reason: 'timeout', applied: 'no' });
      await server.start();
      await expect.poll(() => store.read('key').catch(String)).toBeUndefined();
      expect(await server.ask('DBSIZE')).toBe(':0\r\n');
    } finally {
      client.disconnect();
      await server.dispose();
    }
  });
});

/** An ioredis client that answers as the test says. */
class FakeClient extends EventEmitter implements IoredisClient {
  status = 'ready';
  readonly sent: string[] = [];
  answer: () => Promise<unknown> = () => new Promise(() => {});

  callBuffer(name: string): Promise<unknown> {
    this.sent.push(name);
    return this.answer();
  }

  evalBuffer(): Promise<unknown> {
    return this.callBuffer('eval');
  }

  evalshaBuffer(): Promise<unknown> {
    return this.callBuffer('evalsha');
  }

  become(status: 'ready' | 'close'): void {
    this.status = status;
    this.emit(status);
  }

  get listeningTo(): readonly unknown[] {
    return this.eventNames();
  }
}

function withFake() {
  const client = new FakeClient();
  const clock = virtualClock();
  /** The timers and listeners that are left once a timeout has passed. */
  const left = async () => {
    await clock.advance(500);
    return [clock.pendingTimers, client.listeningTo.length];
  };
  return { client, clock, left, store: redisStore(client, { clock }) };
}

describe('redisStore', () => {
  it('knows its scripts by their SHA-1', () => {
    for (const script of Object.values({ ...scripts, ...queueScripts }).filter((value) => typeof value === 'object')) {
      expect(script.hash).toBe(createHash('sha1').update(script.text).digest('hex'));
    }
  });

  it('waits for a client that is connecting, and sends nothing before', async () => {
    const { client, clock, left, store } = withFake();
    client.status = 'connecting';
    client.answer = async () => 1;
    const removed = [store.remove('one'), store.remove('two')];
    await clock.advance(400);
    expect([client.sent.length, client.listenerCount('ready')]).toEqual([0, 1]);
    client.become('ready');
    expect(await Promise.all(removed)).toEqual([true, true]);
    expect(client.sent.length).toBe(2);
    expect(await left()).toEqual([0, 0]);
  });

  it('fails after its timeout: with "no" while it waits for the client, with "unknown" while it waits for the reply', async () => {
    const { client, clock, store } = withFake();
    client.status = 'reconnecting';
    const early = failure(store.write('key', bytes(''), { ttlMs }));
    await clock.advance(499);
    expect(clock.pendingTimers).toBe(1);
    await clock.advance(1);
    expect(await early).toMatchObject({ reason: 'timeout', applied: 'no' });
    expect((await early).message).toContain('no connection to a server for 500 ms');
    expect([client.sent.length, client.listeningTo.length, clock.pendingTimers]).toEqual([0, 0, 0]);
    client.become('ready');
    const verbs = [store.write('key', bytes(''), { ttlMs }), store.remove('key'), store.read('key')].map(failure);
    await clock.advance(500);
    const applied = (await Promise.all(verbs)).map((error) => [error.reason, error.applied]);
    expect(applied).toEqual([
      ['timeout', 'unknown'],
      ['timeout', 'unknown'],
      ['timeout', 'no'],
    ]);
    expect(clock.pendingTimers).toBe(0);
  });

  it('rejects at once with the reason of a signal, in flight or waiting, and lets go of the signal', async () => {
    const { client, clock, left, store } = withFake();
    for (const status of ['ready', 'connecting']) {
      client.status = status;
      const controller = new AbortController();
      const write = store.write('key', bytes(''), { ttlMs, signal: controller.signal }).catch((error) => error);
      await clock.flush();
      controller.abort('enough');
      expect(await write).toBe('enough');
      expect(getEventListeners(controller.signal, 'abort')).toEqual([]);
      expect(await left()).toEqual([0, 0]);
    }
  });

  it('fails waiting verbs on close, and every later one', async () => {
    const { client, clock, store } = withFake();
    client.status = 'connecting';
    const waiting = failure(store.read('key'));
    await store.close();
    expect(await waiting).toMatchObject({ reason: 'closed', applied: 'no' });
    client.status = 'ready';
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'closed', applied: 'no' });
    expect([client.sent.length, clock.pendingTimers, client.listeningTo.length]).toEqual([0, 0, 0]);
    await store.close();
  });

  it('ignores what comes after the timeout: a reply, an error, a server without the script', async () => {
    for (const late of [
      () => [],
      () => {
        throw new Error('late');
      },
      () => {
        throw new Error('NOSCRIPT No matching script');
      },
    ]) {
      const { client, clock, store } = withFake();
      client.answer = () => clock.sleep(600).then(late);
      const error = failure(store.read('key'));
      await clock.advance(1000);
      expect(await error).toMatchObject({ reason: 'timeout' });
      expect(client.sent).toEqual(['evalsha']);
    }
  });

  it('fails sent verbs when the connection breaks, and ignores replies to what the client resends', async () => {
    const { client, left, store } = withFake();
    let answer = (_: unknown): void => {};
    client.answer = () =>
      new Promise((resolve) => {
        answer = resolve;
      });
    const verbs = [store.remove('key'), store.write('key', bytes(''), { ttlMs }), store.read('key')].map(failure);
    expect(client.listenerCount('close')).toBe(1);
    client.become('close');
    const errors = (await Promise.all(verbs)).map(({ reason, applied }) => [reason, applied]);
    expect(errors).toEqual([
      ['closed', 'unknown'],
      ['closed', 'unknown'],
      ['closed', 'no'],
    ]);
    answer([]);
    expect(await left()).toEqual([0, 0]);
  });

  it.each([
    ["READONLY You can't write against a read only replica. script: 1, on @user_script:15.", 'failed', 'no'],
    ['LOADING Redis is loading the dataset in memory', 'busy', 'no'],
    ['BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.', 'busy', 'no'],
    ["OOM command not allowed when used memory > 'maxmemory'.", 'full', 'no'],
    ['MISCONF Redis is configured to save RDB snapshots, but it is unable to persist to disk.', 'failed', 'no'],
    [
      'ERR Error running script (call to f_1): @user_script:15: @user_script: 15: -OOM command not allowed',
      'full',
      'no',
    ],
    ['CLUSTERDOWN Hash slot not served', 'failed', 'no'],
    ['NOAUTH Authentication required.', 'failed', 'no'],
    ["Stream isn't writeable and enableOfflineQueue options is false", 'closed', 'no'],
    ['The client is closed', 'closed', 'no'],
    ['The queue is full', 'busy', 'no'],
    ['Timeout waiting for a client after 3000ms', 'busy', 'no'],
    ['Connection in subscriber mode, only subscriber commands may be used', 'failed', 'no'],
    ["ERR Can't execute 'evalsha': only (P|S)SUBSCRIBE / PING / QUIT are allowed in this context", 'failed', 'no'],
    ['Socket closed unexpectedly', 'closed', 'unknown'],
    ['Connection is closed.', 'closed', 'unknown'],
    ['read ECONNRESET', 'failed', 'unknown'],
    ['Command timed out', 'timeout', 'unknown'],
    ['ERR something new', 'failed', 'unknown'],
  ])('says of "%s": %s, %s', async (message, reason, applied) => {
    const { client, left, store } = withFake();
    const cause = new Error(message);
    client.answer = () => Promise.reject(cause);
    const error = await failure(store.write('key', bytes(''), { ttlMs }));
    expect(error).toMatchObject({ reason, applied, cause, store: 'redis', operation: 'write' });
    expect(error.message).toContain(message);
    expect(await failure(store.read('key'))).toMatchObject({ reason, applied: 'no' });
    expect(await left()).toEqual([0, 0]);
  });

  it('has one timer for all verbs, each with its own time limit', async () => {
    const { client, clock, left, store } = withFake();
    const ends: number[] = [];
    const began = clock.now();
    for (const name of ['first', 'second', 'third']) {
      void failure(store.read(name)).then(() => ends.push(clock.now() - began));
      expect(clock.pendingTimers).toBe(1);
      await clock.advance(100);
    }
    client.answer = async () => [];
    expect(await store.read('answered')).toBeUndefined();
    await clock.advance(390);
    expect(ends).toEqual([500, 600]);
    await clock.advance(10);
    expect(ends).toEqual([500, 600, 700]);
    expect(await left()).toEqual([0, 0]);
  });

  it('has one listener for all stores on a connection of a cluster of node-redis, and none once they are closed', async () => {
    const pubSub = { client: new EventEmitter() };
    const connect = () => {
      const names = ['evalSha', 'eval', 'getRandomNode', 'sSubscribe', 'sUnsubscribe'];
      const methods = Object.fromEntries(names.map((name) => [name, async () => undefined]));
      const nodeByAddress = new Map([['1', { pubSub }]]);
      const client = Object.assign(new EventEmitter(), { ...methods, isOpen: true, nodeByAddress });
      return Object.assign(client, { withTypeMapping: () => client }) as unknown as IoredisClient & EventEmitter;
    };
    const [client, subscriber] = [connect(), connect()];
    const clock = virtualClock();
    const stores = [1, 2].map(() => redisStore(client, { subscriber, clock }));
    const watch = (index: number, key: string) => stores[index]!.native.watch!(key, () => {});
    for (const key of ['one', 'two', 'three']) await watch(0, key).ready;
    await watch(1, 'one').ready;
    expect(pubSub.client.listenerCount('sharded-channel-moved')).toBe(1);
    stores[0]!.close();
    expect(pubSub.client.listenerCount('sharded-channel-moved')).toBe(1);
    const late = watch(1, 'four');
    stores[1]!.close();
    await expect(late.ready).rejects.toMatchObject({ reason: 'closed' });
    await clock.flush();
    expect([pubSub.client.eventNames(), subscriber.eventNames()]).toEqual([[], []]);
  });

  it('has one listener for any number of stores on a client, and tells them all', async () => {
    const client = new FakeClient();
    const clock = virtualClock();
    const stores = Array.from({ length: 12 }, () => redisStore(client, { clock }));
    client.status = 'connecting';
    const reads = stores.map((store) => failure(store.read('key')));
    expect([client.listenerCount('ready'), client.listenerCount('close')]).toEqual([1, 1]);
    client.become('ready');
    expect([client.sent.length, client.listenerCount('ready')]).toEqual([12, 0]);
    client.become('close');
    for (const { reason } of await Promise.all(reads)) expect(reason).toBe('closed');
    await clock.advance(500);
    expect(client.listeningTo).toEqual([]);
  });

  it('survives a client that throws', async () => {
    const { client, store } = withFake();
    client.answer = () => {
      throw new TypeError('no such argument');
    };
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'failed', cause: expect.any(TypeError) });
  });

  it('refuses anything but a client, and invalid options, at once', () => {
    const client = new FakeClient();
    for (const wrong of [undefined, null, {}, 'redis://localhost', { evalSha() {}, eval() {}, on() {}, off() {} }]) {
      expect(() => redisStore(wrong as never)).toThrow('a client of ioredis, or of node-redis 5 or later');
    }
    for (const prefix of ['', '{a}', 'a b', 'k'.repeat(65)])
      expect(() => redisStore(client, { prefix })).toThrow(OptionsError);
    expect(() => redisStore(client, { maxValueBytes: 2 ** 29 })).toThrow('"maxValueBytes"');
    expect(() => redisStore(client, { timeout: 0 })).toThrow('"timeout"');
    expect(() => redisStore(client, { timeoutMs: 5 } as object)).toThrow('did you mean "timeout"');
  });
});
