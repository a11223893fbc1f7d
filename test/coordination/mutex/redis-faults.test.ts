/** Locks in a real Redis while owners are frozen, killed, cut off or busy, and while the server forgets or its clock jumps. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { mutex } from 'holdfast';
import { type FaultProxy, faultProxy } from 'holdfast/testing';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { redisStore } from '../../../src/stores/redis.js';
import { esbuildLowering } from '../../../tools/lowering.ts';
import { drivers, type RedisConnection } from '../../stores/redis-clients.ts';
import { clockShim } from '../../support/servers/clock-shim.ts';
import { redisProgram, startRedis } from '../../support/servers/redis.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';
import { temporaryFolder } from '../../support/temporary-folder.ts';
import type { Told } from './redis-child.ts';

const program = await redisProgram();
const isWhole = process.env.HOLDFAST_WORLDS !== undefined;
const ttlMs = 1_500;

describe.skipIf(program === undefined)('mutex on a real Redis', () => {
  const folder = temporaryFolder('mutex-child');
  const childProgram = join(folder, 'child.mjs');
  const children = new Set<ChildProcess>();
  let connections: RedisConnection[] = [];
  let server: ServerProcess;
  let proxy: FaultProxy;

  beforeAll(async () => {
    await build({
      ...{ entryPoints: [fileURLToPath(new URL('redis-child.ts', import.meta.url))], outfile: childProgram },
      ...{ bundle: true, format: 'esm', platform: 'node', logLevel: 'error', plugins: [esbuildLowering] },
      banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
    });
    server = await startRedis(program!);
    proxy = await faultProxy({ port: server.port });
  });
  afterAll(async () => {
    await proxy?.close();
    await server?.dispose();
    rmSync(folder, { recursive: true, force: true });
  });
  beforeEach(async () => {
    await proxy.heal();
    await server.ask('FLUSHALL');
  });
  afterEach(async () => {
    for (const child of children) await end(child);
    for (const connection of connections) connection.close();
    connections = [];
  });

  const start = (...args: (string | number)[]) => {
    const child = fork(childProgram, [`${server.port}`, ...args.map(String)]);
    children.add(child);
    const told: Told[] = [];
    child.on('message', (message: Told) => told.push(message));
    const heard = async <Type extends Told['type']>(type: Type, timeout = 60_000) => {
      await expect.poll(() => told.some((one) => one.type === type), { timeout }).toBe(true);
      return told.find((one) => one.type === type) as Extract<Told, { type: Type }>;
    };
    return { child, told, heard };
  };
  const end = async (child: ChildProcess) => {
    children.delete(child);
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  };
  const locksAt = (port: number, driver = drivers[0]!, ttl = ttlMs) => {
    const [connection, second] = [driver.connect(port), driver.connect(port)];
    connections.push(connection, second);
    const store = redisStore(connection.client, { timeout: '5s', subscriber: second.client });
    return { locks: mutex({ store, ttl, wait: '60s' }), command: connection.command };
  };
  const newestFence = async () => Number((await server.ask('GET {resource}:fence')).split('\r\n')[1]);

  it('lets no owner write that was frozen past its lease: held() is false, and the fence is stale', async () => {
    const owner = start('hold', ttlMs);
    const { fence } = await owner.heard('held');
    await owner.heard('wrote');
    owner.child.kill('SIGSTOP');
    const { locks, command } = locksAt(server.port);
    const lease = await locks.acquire('key');
    expect(lease.fence).toBeGreaterThan(fence);
    const grantedMs = Date.now();
    await command('SET', '{resource}:fence', `${lease.fence}`);
    owner.child.kill('SIGCONT');
    const lost = await owner.heard('lost');
    const stale = await owner.heard('stale');
    expect([lost.heldInTheSameTurn, stale.accepted]).toEqual([false, false]);
    const after = owner.told.filter((one) => one.type === 'wrote' && one.atMs > grantedMs + 1_000);
    expect(after).toEqual([]);
    expect([lease.held(), await newestFence()]).toEqual([true, lease.fence]);
    await lease.release();
  });

  it('lets the next in when the owner was killed, at the end of its lease', async () => {
    const owner = start('hold', ttlMs);
    const { fence } = await owner.heard('held');
    await end(owner.child);
    const { locks } = locksAt(server.port);
    const beganMs = performance.now();
    const { remainingMs } = await locks.inspect('key');
    const lease = await locks.acquire('key');
    const passedMs = performance.now() - beganMs;
    expect(lease.fence).toBeGreaterThan(fence);
    expect(passedMs).toBeGreaterThan(remainingMs - 20);
    expect(passedMs).toBeLessThan(ttlMs + 30_000);
    await lease.release();
  });

  it('hands a lock to a frozen waiter for a second, and then to the next', async () => {
    const { locks } = locksAt(server.port, drivers[0], 120_000);
    const lease = await locks.acquire('key');
    const inLine = (count: number) => expect.poll(async () => (await locks.inspect('key')).queueLength).toBe(count);
    const frozen = start('hold', 120_000);
    await inLine(1);
    const waiting = locksAt(server.port, drivers[1], 120_000).locks.acquire('key');
    await inLine(2);
    frozen.child.kill('SIGSTOP');
    const releasedMs = performance.now();
    await lease.release();
    const next = await waiting;
    expect(performance.now() - releasedMs).toBeGreaterThan(500);
    // It need not wait for the end of a lease.
    expect(performance.now() - releasedMs).toBeLessThan(60_000);
    frozen.child.kill('SIGCONT');
    await sleep(300);
    // What it was told while it was frozen no longer lets it in.
    expect([frozen.told, next.held()]).toEqual([[], true]);
    await next.release();
    expect((await frozen.heard('held')).fence).toBeGreaterThan(next.fence);
  });

  it('finds a lease expired in the turn in which a blocked event loop goes on', async () => {
    const owner = start('block', ttlMs);
    const { fence } = await owner.heard('held');
    const lost = await owner.heard('lost');
    expect(lost.heldInTheSameTurn).toBe(false);
    const lease = await locksAt(server.port).locks.acquire('key');
    expect(lease.fence).toBeGreaterThan(fence);
    await lease.release();
  });

  describe.each(drivers)('by $title', (driver) => {
    it('tells an owner behind a network that drops everything, before the next gets in', async () => {
      const owner = locksAt(proxy.port, driver).locks;
      const lease = await owner.acquire('key');
      const { signal } = lease;
      await proxy.inject({ kind: 'blackhole' });
      const next = await locksAt(server.port, driver).locks.acquire('key');
      // If this process has just stood still, the reply is there before its timers run.
      await sleep(0);
      expect([signal.aborted, lease.held()]).toEqual([true, false]);
      expect(next.fence).toBeGreaterThan(lease.fence);
      await proxy.heal();
      expect(await lease.release()).toBe('lost');
      expect(next.held()).toBe(true);
      await next.release();
    });

    it('tells an owner at once that its lock was taken away', async () => {
      const lease = await locksAt(server.port, driver, 600_000).locks.acquire('key');
      await sleep(500);
      await locksAt(server.port, driver, 600_000).locks.forceRelease('key');
      // Its next renewal is 200 s away.
      await expect.poll(() => lease.signal.aborted).toBe(true);
      expect(await lease.release()).toBe('lost');
    });

    it('keeps a lock when its connection is reset', async () => {
      const outcome = async (ttl: number) => {
        const key = `kept for ${ttl}`;
        const lease = await locksAt(proxy.port, driver, ttl).locks.acquire(key);
        for (let round = 0; round < 3; round++) {
          await sleep(ttl / 6);
          proxy.reset();
        }
        await sleep(ttl);
        const isHeld = lease.held();
        const other = await locksAt(server.port, driver).locks.tryAcquire(key);
        return [isHeld, other, await lease.release()];
      };
      const kept = [true, null, 'released'];
      const first = await outcome(ttlMs);
      // A machine that stands still for a second ends so short a lease. If we lose it, we lose a longer one, too.
      expect(first[0] === true ? first : await outcome(8 * ttlMs)).toEqual(kept);
    });

    it('hands a lock over to waiters while the network resets connections', async () => {
      const direct = locksAt(server.port, driver).locks;
      const lease = await direct.acquire('key');
      const waiting = locksAt(proxy.port, driver).locks.acquire('key');
      // A client that has had no answer yet would notice the first reset.
      await expect.poll(async () => (await direct.inspect('key')).queueLength).toBe(1);
      for (let round = 0; round < 3; round++) {
        await sleep(200);
        proxy.reset();
      }
      await lease.release();
      const next = await waiting;
      expect(next.fence).toBeGreaterThan(lease.fence);
      await next.release();
    });

    it('tells the owner at its next renewal that the server has lost all data, with growing fences', async () => {
      const { locks } = locksAt(server.port, driver);
      const first = await locks.acquire('key');
      await server.ask('FLUSHALL');
      const second = (await locksAt(server.port, driver).locks.tryAcquire('key'))!;
      await expect.poll(() => first.held()).toBe(false);
      await server.kill();
      await server.start();
      await expect.poll(() => second.held()).toBe(false);
      const third = await locksAt(server.port, driver).locks.acquire('key');
      expect([first.fence < second.fence, second.fence < third.fence]).toEqual([true, true]);
      expect([await first.release(), await second.release(), await third.release()]).toEqual([
        'lost',
        'lost',
        'released',
      ]);
    });
  });

  it("gives growing fences while the server's clock jumps by an hour", async ({ skip }) => {
    const shim = clockShim(program!);
    if (shim === undefined) return skip();
    const jumping = await startRedis(shim.program);
    try {
      const { locks } = locksAt(jumping.port);
      const first = await locks.acquire('key');
      shim.set(3_600_000);
      // The server considers the lease over, and its owner hears of it at the next renewal.
      const second = await locksAt(jumping.port).locks.acquire('key');
      await expect.poll(() => first.held()).toBe(false);
      shim.set(0);
      expect(await second.release()).toBe('released');
      const third = await locks.acquire('key');
      expect([first.fence < second.fence, second.fence < third.fence]).toEqual([true, true]);
      await third.release();
    } finally {
      for (const connection of connections) connection.close();
      await jumping.dispose();
      shim.dispose();
    }
  });

  // `npm run worlds` plays all that were promised.
  it.each([
    [50, isWhole ? 200 : 50],
    [500, isWhole ? 20 : 5],
  ])(
    'loses no update of %i contenders with %i sections each, in five processes',
    { timeout: 330_000 },
    async (contenders, sections) => {
      const processes = Array.from({ length: 5 }, () => start('count', contenders / 5, sections));
      const startMs = performance.now();
      const done = await Promise.all(processes.map(({ heard }) => heard('done', 300_000)));
      const perSecond = Math.round((contenders * sections) / ((performance.now() - startMs) / 1_000));
      const longest = Math.max(...done.map(({ longestWaitMs }) => longestWaitMs));
      console.log(
        `${contenders} x ${sections}: ${perSecond} sections per second, longest wait ${Math.round(longest)} ms`,
      );
      const counted = await server.ask('GET {counter}');
      expect(Number(counted.split('\r\n')[1])).toBe(contenders * sections);
    },
  );
});
