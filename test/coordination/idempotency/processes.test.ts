/** Several processes with the same key, healthy, killed and frozen, that share a SQLite file or a Redis. */
import { type ChildProcess, fork } from 'node:child_process';
import { once as onceEvent } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { idempotency, type Store } from 'holdfast';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { redisStore } from '../../../src/stores/redis.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';
import { esbuildLowering } from '../../../tools/lowering.ts';
import { redisProgram, startRedis } from '../../support/servers/redis.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';
import { temporaryFolder } from '../../support/temporary-folder.ts';
import { unsynced } from '../../support/unsynced.ts';
import type { Order } from './child.ts';

// The program of a child is within the checkout, so that it finds the packages that it imports.
const checkout = fileURLToPath(new URL('../../../', import.meta.url));
const folder = mkdtempSync(join(checkout, 'node_modules', '.holdfast-idempotency-'));
const files = temporaryFolder('idempotency');
const program = join(folder, 'child.mjs');
const redis = await redisProgram('redis-server');
const children = new Set<ChildProcess>();
let server: ServerProcess | undefined;

beforeAll(async () => {
  await build({
    ...{ entryPoints: [fileURLToPath(new URL('child.ts', import.meta.url))], outfile: program },
    ...{
      bundle: true,
      format: 'esm',
      platform: 'node',
      target: 'node22',
      logLevel: 'error',
      plugins: [esbuildLowering],
    },
    external: ['ioredis', 'lru-cache', 'tslib'],
  });
  if (redis !== undefined) server = await startRedis(redis);
});

afterAll(async () => {
  for (const child of children) child.kill('SIGKILL');
  await server?.dispose();
  rmSync(folder, { recursive: true, force: true });
  rmSync(files, { recursive: true, force: true });
});

function start(order: Order) {
  const child = fork(program, [JSON.stringify(order)], { execArgv: ['--no-warnings'] });
  children.add(child);
  const messages: unknown[] = [];
  child.on('message', (message) => messages.push(message));
  // Only then has everything been read that it has said.
  const exited = onceEvent(child, 'close').then(() => {
    children.delete(child);
    return messages.find((message) => typeof message === 'object') as { answers: unknown[] } | undefined;
  });
  return { child, exited };
}

const kinds = [
  { kind: 'sqlite' as const, title: 'SQLite', isThere: true },
  { kind: 'redis' as const, title: 'Redis', isThere: redis !== undefined },
];

describe.concurrent.each(kinds)('idempotency on $title', ({ kind, isThere }) => {
  let orders = 0;
  const clients: Redis[] = [];
  afterAll(() => {
    for (const client of clients) client.disconnect();
  });

  function plan(more: Partial<Order> = {}): Order {
    const key = `order ${++orders}`;
    const where = kind === 'redis' ? String(server!.port) : join(files, 'store.db');
    const effects = join(files, `${kind} ${orders}`);
    return {
      ...{
        kind,
        where,
        effects,
        key,
        onLost: 'rerun',
        leaseMs: 5_000,
        calls: 1,
        takesMs: 20,
        diesAt: 0,
        freezes: false,
      },
      ...more,
    };
  }

  function effectsOf({ effects }: Order): string[] {
    return existsSync(effects) ? readFileSync(effects, 'utf8').trim().split('\n') : [];
  }

  let here: Store | undefined;
  function storeHere(): Store {
    if (here !== undefined) return here;
    if (kind === 'redis') {
      const client = new Redis(server!.port, '127.0.0.1');
      clients.push(client);
      here = redisStore(client, { timeout: '10s' });
    } else here = sqliteStore(unsynced(join(files, 'store.db')), { timeout: '10s' });
    return here;
  }

  it.skipIf(!isThere).each([1, 4])(
    'has one effect for 100 equal calls of %i processes, and one result',
    async (processes) => {
      const order = plan({ calls: 100 / processes, takesMs: 100 });
      const started = Array.from({ length: processes }, () => start(order));
      const answers = (await Promise.all(started.map(({ exited }) => exited))).flatMap((told) => told!.answers);
      expect(answers).toEqual(Array(100).fill({ seat: 7, attempt: 1 }));
      expect(effectsOf(order)).toHaveLength(1);
    },
    120_000,
  );

  /** What becomes of the key after its process died. It is asked for a little after its lease can be over. */
  async function afterDeath(order: Order): Promise<'not begun' | 'replayed' | 'in doubt' | 'ran again' | 'blocked'> {
    await sleep(order.leaseMs + 50);
    const engine = idempotency({
      store: storeHere(),
      onLost: order.onLost,
      lease: '30s',
      storeTimeout: '10s',
      name: 'order',
    });
    let ranAs = 0;
    try {
      await engine.run(
        order.key,
        async (handle) => {
          await handle.phase('reserve', () => 7);
          ranAs = handle.attempt;
        },
        { scope: 'shop', input: { key: order.key } },
      );
      return ranAs === 0 ? 'replayed' : ranAs === 1 ? 'not begun' : 'ran again';
    } catch (error) {
      return (error as { code?: string }).code === 'ERR_IN_DOUBT' ? 'in doubt' : 'blocked';
    }
  }

  // A second round through all of them on Redis would show nothing that SQLite does not show.
  const choices = kind === 'sqlite' ? (['refuse', 'rerun'] as const) : (['refuse'] as const);
  it.skipIf(!isThere).each(choices)(
    'killed at each await, with %s, blocks no key for longer than its lease and runs nothing a second time that it must not',
    async (onLost) => {
      const seen = new Set<string>();
      let isThrough = false;
      for (let diesAt = 1; !isThrough; diesAt += 6) {
        const batch = Array.from({ length: 6 }, (_, index) =>
          plan({ onLost, leaseMs: 400, takesMs: 1, diesAt: diesAt + index }),
        );
        const ends = await Promise.all(
          batch.map(async (order) => {
            const told = await start(order).exited;
            return { order, told, became: told === undefined ? await afterDeath(order) : 'finished' };
          }),
        );
        for (const { order, told, became } of ends) {
          seen.add(became);
          const effects = effectsOf(order).length;
          const what = `${order.diesAt}: ${became}, ${effects} effects`;
          expect(effects, what).toBeLessThanOrEqual(1);
          if (became === 'not begun') expect(effects, what).toBe(0);
          // It is sealed or refused, because what may have happened never runs again. A child that lost its lease before it did anything frees the key.
          if (became === 'ran again' && effects > 0) expect(onLost, what).toBe('rerun');
          // On a machine so busy that the child lost its lease, it says so and has done nothing.
          const hasAnswered = told !== undefined && typeof told.answers[0] === 'object';
          if (became === 'replayed' || hasAnswered) expect(effects, what).toBe(1);
          expect(became, what).not.toBe('blocked');
        }
        isThrough = ends.every(({ told }) => told !== undefined);
      }
      const expected = onLost === 'refuse' ? ['in doubt'] : ['in doubt', 'ran again'];
      expect([...seen]).toEqual(expect.arrayContaining(['finished', 'not begun', ...expected]));
    },
    300_000,
  );

  /** A process that has begun and stops itself. On a busy machine it may lose its lease before that, and then another one is started. */
  async function startFrozen() {
    for (;;) {
      const order = plan({ leaseMs: 500, freezes: true });
      const { child, exited } = start(order);
      const isRunning = new Promise((resolve) => {
        child.on('message', (message) => message === 'runs' && resolve(true));
      });
      if (await Promise.race([isRunning, exited.then(() => false)])) return { order, child, exited };
    }
  }

  it.skipIf(!isThere)(
    'frozen past its lease, neither overwrites nor frees the record of another process',
    async () => {
      const { order, child, exited } = await startFrozen();
      const settings = { lease: '30s', wait: '50s', storeTimeout: '10s', name: 'order' } as const;
      const engine = idempotency({ store: storeHere(), ...settings });
      const second = engine.run(
        order.key,
        async ({ attempt }) => {
          // Again and again, because on a busy machine it may stop itself only after the first of these.
          const waking = setInterval(() => child.kill('SIGCONT'), 100);
          await exited;
          clearInterval(waking);
          return `second ${attempt}`;
        },
        { scope: 'shop', input: { key: order.key } },
      );
      expect(await second).toBe('second 2');
      const told = await exited;
      expect(told!.answers).toEqual([expect.stringMatching(/ERR_IN_DOUBT.*lost its key/)]);
      const again = engine.run(order.key, () => expect.unreachable(), { scope: 'shop', input: { key: order.key } });
      expect(await again).toBe('second 2');
    },
    120_000,
  );
});

describe('idempotency on memory', () => {
  it('has one effect for 100 equal calls, and one result', async () => {
    const { memoryStore } = await import('holdfast');
    const engine = idempotency({ store: memoryStore(), wait: '30s' });
    let effects = 0;
    const calls = Array.from({ length: 100 }, () =>
      engine.run(
        'k',
        async () => {
          await sleep(50);
          return ++effects;
        },
        { scope: 'shop' },
      ),
    );
    expect(await Promise.all(calls)).toEqual(Array(100).fill(1));
  });
});
