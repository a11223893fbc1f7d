/** Servers in separate processes with something in common: killed in the middle, frozen, and all at once. */
import { once } from 'node:events';
import { faultProxy } from 'holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { postgresHome, startPostgres } from '../../support/servers/postgres.ts';
import { redisProgram, startRedis } from '../../support/servers/redis.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';
import { headerOf } from './raw-client.js';
import type { Death } from './shop-child.js';
import { mostBlockedMs, order, Town, untilDecided, withShops } from './town.js';

const redis = await redisProgram();
const home = postgresHome();
const servers: Record<string, ServerProcess | undefined> = {};

withShops();

beforeAll(async () => {
  servers.redis = redis && (await startRedis(redis));
  servers.postgres = home === undefined ? undefined : await startPostgres(home);
});

afterAll(async () => {
  for (const server of Object.values(servers)) await server?.dispose();
});

describe.concurrent.each(['express', 'fastify'])('with %s, a server that is killed', (framework) => {
  /** What the next request finds, and how often the effect may have been carried out by then. */
  const fates: [onLost: string, die: Death, status: number, effects: number][] = [
    ['rerun', 'before-effect', 201, 1],
    ['rerun', 'after-effect', 201, 2],
    ['rerun', 'storing', 201, 2],
    ['rerun', 'stored', 201, 1],
    ['rerun', 'answered', 201, 1],
    ['refuse', 'before-effect', 409, 0],
    ['refuse', 'after-effect', 409, 1],
    ['refuse', 'storing', 409, 1],
    ['refuse', 'stored', 201, 1],
    ['refuse', 'answered', 201, 1],
    ['resume', 'before-effect', 201, 1],
    ['resume', 'after-effect', 201, 2],
    ['resume', 'stored', 201, 1],
  ];

  it.each(fates)(
    'in mode %s, %s, answers %i in the end, and has had %i effects',
    async (onLost, die, status, count) => {
      await using town = new Town();
      const shops = [await town.open(framework, onLost), await town.open(framework, onLost)] as const;
      const gone = once(shops[0].child, 'exit');
      await order(shops[0], 'k', { die });
      await gone;
      const { answer, tookMs } = await untilDecided(shops[1], 'k');
      expect(answer.status).toBe(status);
      expect(town.effects()).toHaveLength(count);
      if (status === 409) expect(JSON.parse(answer.body.toString()).type).toMatch(/outcome-unknown$/);
      else expect(headerOf(await order(shops[1], 'k'), 'idempotent-replayed')).toBe('true');
      expect(tookMs).toBeLessThan(mostBlockedMs);
      expect(town.effects()).toHaveLength(count);
    },
  );
});

const stores = [
  { store: 'sqlite', isThere: true },
  { store: 'redis', isThere: redis !== undefined },
  { store: 'postgres', isThere: home !== undefined },
];

const frameworks = ['express', 'fastify', 'node:http', 'a fetch handler'];
let orders = 0;

/** Ends a server with an order in flight, starts another in its place, and asks it for the same order. */
async function endsWell(place: string, framework: string, client: string): Promise<void> {
  await using town = new Town(place);
  const ending = await town.open(framework, 'refuse', '5m');
  const key = `ends ${++orders}`;
  const working = once(ending.child, 'message');
  const leaving = new AbortController();
  const first = order(ending, key, { pauseMs: 200, signal: leaving.signal });
  await working;
  if (client === 'has left') leaving.abort();
  const exit = once(ending.child, 'exit');
  ending.child.kill('SIGTERM');
  expect(await exit).toEqual([0, null]);
  const { status, body } = await first;
  const again = await order(await town.open(framework, 'refuse', '5m'), key);
  expect([again.status, headerOf(again, 'idempotent-replayed')]).toEqual([201, 'true']);
  if (client === 'waits') expect([status, body]).toEqual([201, again.body]);
  expect(town.effects()).toEqual([{ key, attempt: 1 }]);
}

describe.concurrent.each(stores)('on $store', ({ store, isThere }) => {
  const at = () => (store === 'sqlite' ? store : `${store}:${servers[store]!.port}`);

  it.skipIf(!isThere).each([
    ['express', 1],
    ['fastify', 4],
    ['express', 4],
  ])('one of a hundred equal requests to %s in %i processes runs', async (framework, processes) => {
    await using town = new Town(at());
    // This is longer than a loaded machine stands still.
    const open = () => town.open(framework, 'refuse', '30s');
    const shops = await Promise.all(Array.from({ length: processes }, open));
    const key = `${framework} ${processes}`;
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, index) => order(shops[index % processes]!, key, { pauseMs: 1_000 })),
    );
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([201, 409]));
    expect(town.effects()).toEqual([{ key, attempt: 1 }]);
    const again = await Promise.all(shops.map((shop) => order(shop, key)));
    const expected = `{"order":1,"of":"${key}"}`;
    expect(again.map(({ status, body }) => [status, body.toString()])).toEqual(shops.map(() => [201, expected]));
  });

  it
    .skipIf(!isThere)
    .each(frameworks.flatMap((framework) => [[framework, 'waits'] as const, [framework, 'has left'] as const]))(
    'a server with %s that is told to end records the order in flight of a client that %s, and exits by itself',
    (framework, client) => endsWell(at(), framework, client),
  );

  // A file is not at the other end of a connection.
  const distant = store === 'sqlite' ? [] : frameworks;
  it.skipIf(!isThere).each(distant)(
    'a server with %s that is told to end waits for a slow store, though the client has left',
    async (framework) => {
      const proxy = await faultProxy({ port: servers[store]!.port });
      try {
        await proxy.inject({ kind: 'latency', delay: 100 });
        await endsWell(`${store}:${proxy.port}`, framework, 'has left');
      } finally {
        await proxy.close();
      }
    },
  );

  it.skipIf(!isThere)(
    'a server that is frozen past its lease has had the only effect when it wakes, where the mode is refuse',
    async () => {
      await using town = new Town(at());
      const shops = [await town.open('express', 'refuse'), await town.open('express', 'refuse')] as const;
      const working = once(shops[0].child, 'message');
      const first = order(shops[0], 'frozen', { pauseMs: 3_000 });
      await working;
      shops[0].child.kill('SIGSTOP');
      const { answer } = await untilDecided(shops[1], 'frozen');
      shops[0].child.kill('SIGCONT');
      await first;
      expect(answer.status).toBe(409);
      expect(town.effects()).toHaveLength(1);
      expect((await order(shops[1], 'frozen')).status).toBe(409);
    },
  );

  it.skipIf(!isThere)(
    'a server that is frozen past its lease does not take the place of the answer that was given meanwhile, where the mode is rerun',
    async () => {
      await using town = new Town(at());
      const shops = [await town.open('fastify', 'rerun'), await town.open('fastify', 'rerun')] as const;
      const working = once(shops[0].child, 'message');
      const first = order(shops[0], 'woken', { pauseMs: 3_000 });
      await working;
      shops[0].child.kill('SIGSTOP');
      const { answer } = await untilDecided(shops[1], 'woken');
      shops[0].child.kill('SIGCONT');
      await first;
      expect([answer.status, answer.body.toString()]).toEqual([201, '{"order":2,"of":"woken"}']);
      expect((await order(shops[0], 'woken')).body.toString()).toBe('{"order":2,"of":"woken"}');
    },
  );
});
