/** The laws of a store against a real Postgres, with each client library, directly and through PgBouncer. */
import { type ConformanceSettings, mutexConformance, storeConformance } from 'holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { postgresStore } from '../../src/stores/postgres.js';
import { drivers, type PostgresConnection } from '../stores/postgres-clients.ts';
import { runCases } from '../support/conformance.ts';
import { firstSeed, historyCount } from '../support/histories.ts';
import { postgresHome, startPgBouncer, startPostgres } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';

const home = postgresHome();
const places = ['straight', 'through PgBouncer'] as const;
const combinations = places.flatMap((place) => drivers.map((driver) => ({ ...driver, place })));
/** The cases of locks in which a pooler could make a difference. The others would only wait for the end of a lease. */
const pooledCases = [1, 2, 4, 5, 8, 20, 22, 25, 26, 27, 28, 31];

describe.skipIf(home === undefined)('postgresStore', () => {
  let server: ServerProcess;
  let bouncer: ServerProcess | undefined;
  beforeAll(async () => {
    server = await startPostgres(home!);
    // The first time, the program has to be downloaded.
    bouncer = await startPgBouncer(server);
    expect(bouncer).toBeDefined();
    const connection = drivers[0]!.connect(server.port);
    await postgresStore(connection.pool).migrate();
    await connection.close();
  });
  afterAll(async () => {
    await bouncer?.dispose();
    await server?.dispose();
  });

  describe.each(combinations)('by $title, $place, keeps', ({ title, connect, place }) => {
    let connections: readonly PostgresConnection[];
    let stores = 0;
    beforeAll(() => {
      const { port } = place === 'straight' ? server : bouncer!;
      connections = [1, 2, 3, 4].map(() => connect(port, 4, place !== 'straight'));
    });
    afterAll(async () => {
      for (const connection of connections) await connection.close();
    });
    const restart = async () => {
      await server.stop();
      await server.start();
      if (place === 'straight') return;
      // PgBouncer refuses clients until it has found the server again, and postgres.js may report that for a later query, too.
      await expect.poll(() => bouncer!.answers()).toBe(true);
      const all = connections.flatMap((one) => [1, 2, 3, 4].map(() => one.query('SELECT 1').catch(() => {})));
      await Promise.all(all);
    };
    /** Stores over four pools, used in turn. */
    const make = ({ prefix, maxValueBytes }: ConformanceSettings) => {
      const { pool, listener } = connections[stores++ % 4]!;
      const direct = place === 'straight' && { prepare: true, listener };
      return postgresStore(pool, { prefix, maxValueBytes, timeout: '10s', ...direct });
    };

    const cases = storeConformance({
      ...{ entries: 'shared', make, restart },
      ...{ histories: historyCount(place === 'straight' ? 150 : 50), seed: firstSeed },
    });
    const locks = mutexConformance({ make, restart, contenders: 5 });
    if (place !== 'straight') runCases(locks.filter(({ law }) => pooledCases.includes(law)));
    else if (title === 'pg') runCases(locks);
    runCases(cases);

    if (place === 'straight') return;
    it('no watch waiting that would be told nothing: it fails', async () => {
      const { pool, listener } = connections[0]!;
      const store = postgresStore(pool, { timeout: '10s', listener });
      for (let watches = 0; watches < 2; watches++) {
        await expect(store.native.watch!('key', () => {}).ready).rejects.toMatchObject({ reason: 'invalid' });
      }
      await store.close();
    });
  });
});
