/** What a store on a Redis cluster answers and keeps while slots move between nodes, and what its watches report. */
import type { StoreFailure } from 'holdfast';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { type RedisCluster, redisProgram, startCluster } from '../support/servers/redis.ts';
import { type Column, endure, type Fault, no, type Place, unknown, until } from './faults.ts';
import { answersMore, checkHistories, type Trouble } from './histories.ts';
import { drivers, type RedisConnection, type RedisDriver } from './redis-clients.ts';
import { type SlotMoves, slotMoves } from './slot-moves.ts';

const value = new TextEncoder().encode('value');
const ttlMs = 600_000;
const program = await redisProgram();

/** Moves slots of a store one after the other, and lets clients meet each step of the move. */
function movingSlots(moves: SlotMoves, prefix: string): Trouble {
  // Where a write must wait for the end of a move, its answer waits, too.
  const aWhile = 50;
  return async (random, progress) => {
    const slots = await moves.slots(prefix);
    if (slots.length === 0) return;
    const slot = random.pick(slots);
    await moves.begin(slot);
    for (const name of await moves.keysIn(slot)) {
      await answersMore(progress, random.integer(1, 10), aWhile);
      await moves.carry(slot, name);
    }
    await answersMore(progress, random.integer(1, 10), aWhile);
    await moves.end(slot);
  };
}

type Row = Fault<Pick<RedisConnection, 'client' | 'close'>>;

/** What a moving slot does to a verb. The clients differ: ioredis tries again by itself, so the outcome is not known in time. */
function rowsOf(title: string, moves: () => SlotMoves): Row[] {
  const triesAgain = title === 'ioredis';
  const refused = (reason: StoreFailure): Pick<Row, 'verbs' | 'afterwards'> =>
    triesAgain
      ? { verbs: { reason: ['timeout'], applied: unknown }, afterwards: 'either' }
      : { verbs: { reason: [reason], applied: no }, afterwards: 'not done' };
  const slotOf = ({ prefix }: Place<unknown>) => moves().slotOf(prefix, 'key');
  let slot: number;
  return [
    {
      fault: 'a slot that has moved (MOVED)',
      strikes: 'server',
      async strike(place) {
        slot = await slotOf(place);
        await moves().begin(slot);
        await moves().end(slot);
      },
      verbs: 'done',
      afterwards: 'done',
    },
    {
      fault: 'a slot on its way, of which nothing has left',
      strikes: 'server',
      async strike(place) {
        slot = await slotOf(place);
        await moves().begin(slot);
      },
      heal: () => moves().end(slot),
      verbs: 'done',
      afterwards: 'done',
    },
    {
      fault: 'a slot on its way, of which all has left (ASK)',
      strikes: 'server',
      async strike(place) {
        slot = await slotOf(place);
        await moves().begin(slot);
        for (const name of await moves().keysIn(slot)) await moves().carry(slot, name);
      },
      heal: () => moves().end(slot),
      verbs: 'done',
      afterwards: 'done',
    },
    {
      fault: 'a slot on its way, of which a record has left and the last version of its bucket has not (TRYAGAIN)',
      strikes: 'server',
      async strike(place) {
        slot = await slotOf(place);
        await moves().begin(slot);
        for (const name of await moves().keysIn(slot)) if (name.endsWith(':key')) await moves().carry(slot, name);
      },
      heal: () => moves().end(slot),
      ...refused('busy'),
      // These operations need only the record.
      ...{ removal: 'done', read: 'done' },
    },
    {
      fault: 'a slot that no node serves (CLUSTERDOWN)',
      strikes: 'server',
      async strike(place) {
        slot = await slotOf(place);
        await moves().drop(slot);
      },
      heal: () => moves().takeBack(slot),
      ...refused('failed'),
    },
  ];
}

describe.skipIf(program === undefined)('redisStore on a cluster', () => {
  let cluster: RedisCluster;
  let moves: SlotMoves;
  const ends: (() => void)[] = [];
  const connect = ({ connectCluster }: RedisDriver) => connectCluster(cluster.nodes.map(({ port }) => port));
  const clientOf = async (driver: RedisDriver) => {
    const connection = await connect(driver);
    ends.push(() => connection.close());
    return connection.client;
  };

  beforeAll(async () => {
    cluster = await startCluster(program!);
    moves = await slotMoves(cluster);
  });
  afterAll(async () => {
    for (const end of ends) end();
    moves?.close();
    for (const server of cluster?.nodes ?? []) await server.dispose();
  });

  it.each(drivers)('whose client knows one node only asks for a cluster client ($title)', async ({ connect }) => {
    const refusals: unknown[] = [];
    for (const { port } of cluster.nodes) {
      const connection = await connect(port);
      ends.push(() => connection.close());
      const store = redisStore(connection.client, { prefix: 'one-node', timeout: '20s' });
      await store.write('key', value, { ttlMs }).catch((error) => refusals.push(error));
    }
    // One of the nodes serves the slot.
    expect(refusals).toHaveLength(cluster.nodes.length - 1);
    for (const refusal of refusals) {
      const message = expect.stringMatching(/give the store a cluster client: .*MOVED/);
      expect(refusal).toMatchObject({ reason: 'failed', applied: 'no', message });
    }
  });

  it(
    'keeps histories linearizable while slots move from node to node under four clients',
    async () => {
      const prefix = 'moving';
      const clients = await Promise.all([...drivers, ...drivers].map(clientOf));
      const stores = clients.map((client) => redisStore(client, { prefix, timeout: 500 }));
      await checkHistories(stores, movingSlots(moves, prefix), firstSeed, historyCount(40));
    },
    historiesTimeoutMs,
  );

  for (const driver of drivers) {
    const column: Column<Pick<RedisConnection, 'client' | 'close'>> = {
      server: async () => cluster.nodes[0]!,
      async leave() {},
      connect: () => connect(driver),
      close: (connection) => connection.close(),
      storeOf: ({ client }, options) => redisStore(client, options),
    };
    describe(`by ${driver.title} survives`, () => {
      it.each(rowsOf(driver.title, () => moves))('$fault', (row) => endure(row, column));
    });

    it(`by ${driver.title} writes no new key of a slot on its way until it has arrived, and reads and removes what is there`, async () => {
      const prefix = `new-${driver.title}`;
      const client = await clientOf(driver);
      const [store, hasty] = [
        redisStore(client, { prefix, timeout: '5s' }),
        redisStore(client, { prefix, timeout: 300 }),
      ];
      await store.write('key', value, { ttlMs });
      const slot = await moves.slotOf(prefix, 'key');
      await moves.begin(slot);
      expect(await store.read('key')).toMatchObject({ value });
      expect(await store.remove('key')).toBe(true);
      const error = await hasty.write('key', value, { ttlMs, ifVersion: 0 }).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject(
        driver.title === 'ioredis' ? { reason: 'timeout', applied: 'unknown' } : { reason: 'busy', applied: 'no' },
      );
      await moves.end(slot);
      await until(
        () => store.write('key', value, { ttlMs, ifVersion: 0 }),
        (answer) => answer.ok || answer.entry !== undefined,
      );
    });

    it(`by ${driver.title} tells who watches a gap when the slot moves, once and again, and changes after it`, async () => {
      const prefix = `watched-${driver.title}`;
      const store = redisStore(await clientOf(driver), { prefix, timeout: '5s', subscriber: await clientOf(driver) });
      await store.write('key', value, { ttlMs });
      const slot = await moves.slotOf(prefix, 'key');
      const told: string[] = [];
      await store.native.watch!('key', ({ kind }) => told.push(kind)).ready;
      // The slot returns to where it was. The second time, the connection to the node exists already and nothing breaks.
      for (let move = 0; move < 4; move++) {
        told.length = 0;
        await moves.begin(slot);
        await moves.end(slot);
        await until(
          async () => told,
          () => told.includes('gap'),
          30_000,
        );
        await until(
          () => store.write('key', value, { ttlMs }).then(() => told.slice(told.lastIndexOf('gap') + 1)),
          (last) => last.includes('changed'),
          30_000,
        );
      }
      await store.close();
    });
  }
});
