/** What a watch in Redis reports when connections break, freeze, are refused, or move to another server. */
import type { EventEmitter } from 'node:events';
import { OptionsError } from 'holdfast';
import { type FaultProxy, faultProxy, type VirtualClock, virtualClock } from 'holdfast/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { type RedisStore, type RedisStoreOptions, redisStore } from '../../src/stores/redis.js';
import type { StoreWatch } from '../../src/stores/store.js';
import { redisProgram, startCluster, startRedis, startReplica, startSentinels } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';
import { failure } from './support.ts';

const value = new TextEncoder().encode('value');
const ttlMs = 60_000;
const program = await redisProgram();

/** A watch, and what it has reported. */
function listen(store: RedisStore, key: string): { readonly told: string[]; readonly watch: StoreWatch } {
  const told: string[] = [];
  return { told, watch: store.native.watch!(key, ({ kind }) => told.push(kind)) };
}

const soon = { interval: 10 };

describe.skipIf(program === undefined).each(drivers)('redisStore on $title, when its subscriber', ({ connect }) => {
  let server: ServerProcess;
  let proxy: FaultProxy;
  let admin: RedisConnection;
  let connections: RedisConnection[];
  let clock: VirtualClock;

  const open = (port: number) => {
    const connection = connect(port);
    connections.push(connection);
    return connection;
  };
  /** The writer has a direct connection, so that only the subscriber meets the faults of the proxy. */
  const newStore = (options: RedisStoreOptions = {}) =>
    redisStore(open(server.port).client, { timeout: '10s', subscriber: open(proxy.port).client, ...options });
  const subscriptions = async () => ((await admin.command('PUBSUB', 'CHANNELS', '*')) as string[]).length;
  /** Two stores watch one channel, and the other one gives it up. Checks that changes are still reported, and returns what is reported. */
  const keptBy = async (store: RedisStore, leaving: RedisStore): Promise<readonly string[]> => {
    const left = listen(leaving, 'key');
    const { told, watch } = listen(store, 'key');
    await Promise.all([left.watch.ready, watch.ready]);
    left.watch.close();
    await clock.advance('11s');
    // The server answers in order, so everything that it was asked before is done when this is answered.
    await listen(leaving, 'another').watch.ready;
    await store.write('key', value, { ttlMs });
    await expect.poll(() => told, soon).toEqual(['changed']);
    return told;
  };

  beforeEach(async () => {
    connections = [];
    clock = virtualClock();
    server = await startRedis(program!);
    proxy = await faultProxy({ port: server.port });
    admin = open(server.port);
  });
  afterEach(async () => {
    for (const connection of connections) connection.close();
    await proxy?.close();
    await server?.dispose();
  });

  it('loses its connection, tells a gap after the next one, and tells changes again', async () => {
    const store = newStore();
    const { told, watch } = listen(store, 'key');
    await watch.ready;
    await proxy.inject({ kind: 'refuse' });
    proxy.reset();
    await store.write('key', value, { ttlMs });
    expect(told).toEqual([]);
    await proxy.heal();
    await expect.poll(() => told, soon).toContain('gap');
    told.length = 0;
    await store.write('key', value, { ttlMs });
    await expect.poll(() => told, soon).toEqual(['changed']);
  });

  it('loses its server, reports a gap after the restart, and then changes again', async () => {
    const store = newStore();
    const { told, watch } = listen(store, 'key');
    await watch.ready;
    await server.kill();
    await server.start();
    await expect.poll(() => told, soon).toContain('gap');
    told.length = 0;
    const written = () =>
      store.write('key', value, { ttlMs }).then(
        ({ ok }) => ok,
        () => false,
      );
    await expect.poll(written, soon).toBe(true);
    await expect.poll(() => told, soon).toContain('changed');
  });

  it('is disconnected by the server, subscribes again, and reports a gap', async () => {
    const store = newStore();
    const { told, watch } = listen(store, 'key');
    await watch.ready;
    await admin.command('CLIENT', 'KILL', 'TYPE', 'pubsub');
    await expect.poll(() => told, soon).toContain('gap');
    await expect.poll(subscriptions, soon).toBe(1);
  });

  it('is shared by twelve stores, has one listener for each event, and none of theirs once they are closed', async () => {
    const subscriber = open(server.port).client as unknown as EventEmitter;
    const names = () => subscriber.eventNames().filter((name) => name !== 'error');
    const counts = () => Object.fromEntries(names().map((name) => [name, subscriber.listenerCount(name)]));
    const before = counts();
    const stores = Array.from({ length: 12 }, (_, index) =>
      newStore({ subscriber: subscriber as unknown as RedisConnection['client'], prefix: `shop${index}` }),
    );
    const watches = stores.map((store) => listen(store, 'key'));
    await Promise.all(watches.map(({ watch }) => watch.ready));
    for (const [name, count] of Object.entries(counts())) expect(count - (before[name] ?? 0)).toBeLessThanOrEqual(1);
    for (const store of stores) await store.write('key', value, { ttlMs });
    for (const { told } of watches) await expect.poll(() => told, soon).toEqual(['changed']);
    for (const store of stores) await store.close();
    expect(counts()).toEqual(before);
  });

  it('is shared, keeps for one store a channel that another gives up', async () => {
    const subscriber = open(server.port).client;
    const [leaving, staying] = [newStore({ subscriber, clock }), newStore({ subscriber })];
    const told = await keptBy(staying, leaving);
    await leaving.close();
    await staying.write('key', value, { ttlMs });
    await expect.poll(() => told, soon).toEqual(['changed', 'changed']);
    await staying.close();
    await expect.poll(subscriptions, soon).toBe(0);
  });

  it('is shared with another copy of the package, keeps for it a channel that this one gives up', async () => {
    vi.resetModules();
    const copy = await import('../../src/stores/redis.js');
    expect(copy.redisStore).not.toBe(redisStore);
    const subscriber = open(server.port).client;
    const leaving = newStore({ subscriber, clock });
    const staying = copy.redisStore(open(server.port).client, { timeout: '10s', subscriber });
    await keptBy(staying, leaving);
    await Promise.all([leaving.close(), staying.close()]);
    await expect.poll(subscriptions, soon).toBe(0);
  });

  it('hangs on a connection that is dead without anybody having noticed, tells gaps', async () => {
    const store = newStore({ clock });
    const { told, watch } = listen(store, 'key');
    await watch.ready;
    await proxy.inject({ kind: 'blackhole' });
    await clock.advance('5s');
    expect(told).toEqual([]);
    await clock.advance('5s');
    expect(told).toEqual(['gap']);
    await clock.advance('5s');
    expect(told.slice(0, 2)).toEqual(['gap', 'gap']);
    await store.close();
  });

  it('cannot connect, rejects "ready" in time and is over', async () => {
    await proxy.inject({ kind: 'refuse' });
    const store = newStore({ timeout: 100 });
    const { told, watch } = listen(store, 'key');
    expect(await failure(watch.ready)).toMatchObject({ reason: 'timeout', operation: 'watch', applied: 'no' });
    await proxy.heal();
    const again = listen(newStore(), 'key');
    await again.watch.ready;
    await redisStore(admin.client, { timeout: '10s' }).write('key', value, { ttlMs });
    await expect.poll(() => again.told, soon).toEqual(['changed']);
    expect(told).toEqual([]);
  });

  it('may not subscribe, rejects "ready" with what the server says', async () => {
    await admin.command('ACL', 'SETUSER', 'default', 'resetchannels');
    const { watch } = listen(newStore(), 'key');
    const error = await failure(watch.ready);
    expect(error.message).toMatch(/NOPERM/);
    expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
  });

  it('is closed, rejects "ready" at once', async () => {
    const closed = open(server.port);
    await closed.command('PING');
    closed.close();
    const store = newStore({ subscriber: closed.client });
    expect(await failure(listen(store, 'key').watch.ready)).toMatchObject({ reason: 'closed', applied: 'no' });
  });

  it('watches thousands of keys, has at most 1,024 subscriptions, and none some time after the last watch', async () => {
    const store = newStore({ clock });
    const all = Array.from({ length: 5000 }, (_, index) => listen(store, `key ${index}`));
    await Promise.all(all.map(({ watch }) => watch.ready));
    expect(await subscriptions()).toBeGreaterThan(1000);
    expect(await subscriptions()).toBeLessThanOrEqual(1024);
    await store.write('key 7', value, { ttlMs });
    await expect.poll(() => all[7]!.told, soon).toEqual(['changed']);
    expect(all.flatMap(({ told }) => told).length).toBeLessThan(3);
    for (const { watch } of all.slice(1)) watch.close();
    await clock.advance('11s');
    await expect.poll(subscriptions, soon).toBe(1);
    all[0]!.watch.close();
    await clock.advance('11s');
    await expect.poll(subscriptions, soon).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });

  it('reports a last gap, and then does nothing more, when the store is closed', async () => {
    const store = newStore({ clock });
    const { told, watch } = listen(store, 'key');
    await watch.ready;
    await store.close();
    expect(told).toEqual(['gap']);
    await expect.poll(subscriptions, soon).toBe(0);
    expect(clock.pendingTimers).toBe(0);
    await redisStore(admin.client, { timeout: '10s' }).write('key', value, { ttlMs });
    expect(told).toEqual(['gap']);
  });

  it('is there, but writers may not publish: their writes succeed', async () => {
    await admin.command('ACL', 'SETUSER', 'default', '-publish');
    const store = newStore();
    expect(await store.write('key', value, { ttlMs })).toMatchObject({ ok: true });
    expect(await store.remove('key')).toBe(true);
  });

  it('is the client itself, or not a client, is refused at once', () => {
    const { client } = admin;
    for (const subscriber of [client, {}, 'redis', null] as never[]) {
      expect(() => redisStore(client, { subscriber })).toThrow(OptionsError);
    }
    expect(redisStore(client).native).not.toHaveProperty('watch');
  });
});

describe.skipIf(program === undefined).each(drivers)(
  'redisStore on $title, when another server takes over,',
  (driver) => {
    it('tells a gap and goes on to tell changes, in a cluster', async () => {
      const { nodes, replicas } = await startCluster(program!, { replicas: 1 });
      const closing: { close(): void }[] = [];
      try {
        const ports = [...nodes, ...replicas].map(({ port }) => port);
        const [main, second] = [await driver.connectCluster(ports), await driver.connectCluster(ports)];
        closing.push(main, second);
        const store = redisStore(main.client, { timeout: '5s', subscriber: second.client });
        // Some of these channels are on the node that dies.
        const all = Array.from({ length: 12 }, (_, index) => listen(store, `key ${index}`));
        await Promise.all(all.map(({ watch }) => watch.ready));
        await nodes[0]!.kill();
        const isTold = async (index: number) => {
          await store.write(`key ${index}`, value, { ttlMs }).catch(() => {});
          return all[index]!.told.slice(-1);
        };
        for (const index of all.keys()) {
          await expect.poll(() => isTold(index), { interval: 50 }).toEqual(['changed']);
        }
        expect(all.flatMap(({ told }) => told)).toContain('gap');
      } finally {
        for (const { close } of closing) close();
        for (const server of [...nodes, ...replicas]) await server.dispose();
      }
    });

    it('tells a gap and goes on to tell changes, behind sentinels', async () => {
      const servers = [await startRedis(program!)];
      const closing: { close(): void }[] = [];
      try {
        servers.push(await startReplica(program!, servers[0]!));
        const sentinels = await startSentinels(program!, servers[0]!);
        servers.push(...sentinels);
        const ports = sentinels.map(({ port }) => port);
        const [main, second] = [await driver.connectSentinels(ports), await driver.connectSentinels(ports)];
        closing.push(main, second);
        const store = redisStore(main.client, { timeout: '5s', subscriber: second.client });
        const { told, watch } = listen(store, 'key');
        await watch.ready;
        await servers[0]!.kill();
        const write = async () => {
          await store.write('key', value, { ttlMs }).catch(() => {});
          return told.slice(told.indexOf('gap') + 1);
        };
        await expect.poll(() => told, { interval: 50 }).toContain('gap');
        await expect.poll(write, { interval: 50 }).toContain('changed');
      } finally {
        for (const { close } of closing) close();
        for (const server of servers.reverse()) await server.dispose();
      }
    });
  },
);
