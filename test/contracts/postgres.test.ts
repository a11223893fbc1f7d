/** The laws of a store against a real Postgres, with each client library, straight and through PgBouncer. */
import { mutexConformance, storeConformance } from 'holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { postgresStore } from '../../src/stores/postgres.js';
import { drivers, type PostgresConnection } from '../stores/postgres-clients.ts';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { postgresHome, startPgBouncer, startPostgres } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';

const home = postgresHome();
const places = ['straight', 'through PgBouncer'] as const;
const combinations = places.flatMap((place) => drivers.map((driver) => ({ ...driver, place })));

for (const { title, connect, place } of combinations) {
  describe.skipIf(home === undefined)(`postgresStore by ${title}, ${place}, keeps`, () => {
    let server: ServerProcess;
    let bouncer: ServerProcess | undefined;
    const connections: PostgresConnection[] = [];
    const open = () => {
      const connection = connect((bouncer ?? server).port, 4);
      connections.push(connection);
      return connection;
    };
    beforeAll(async () => {
      server = await startPostgres(home!);
      // The first time it is fetched.
      if (place === 'through PgBouncer') {
        bouncer = await startPgBouncer(server);
        expect(bouncer).toBeDefined();
      }
      await postgresStore(open().pool).migrate();
    }, 120_000);
    afterAll(async () => {
      for (const connection of connections) await connection.close().catch(() => {});
      await bouncer?.dispose();
      await server?.dispose();
    });

    const cases = storeConformance({
      entries: 'shared',
      make: ({ prefix, maxValueBytes }) =>
        postgresStore(open().pool, { prefix, maxValueBytes, timeout: '10s', prepare: place === 'straight' }),
      async restart() {
        await server.stop();
        await server.start();
      },
      histories: historyCount(place === 'straight' ? 150 : 50),
      seed: firstSeed,
    });
    it.each(cases)('$name', ({ run }) => run(), historiesTimeoutMs);

    if (place === 'straight' && title === 'pg') {
      const lockCases = mutexConformance({
        make({ prefix }) {
          const { pool, listener } = open();
          return postgresStore(pool, { prefix, timeout: '10s', listener });
        },
        async restart() {
          await server.stop();
          await server.start();
        },
        contenders: 5,
      });
      describe('locks:', () => {
        it.each(lockCases)('$name', ({ run }) => run(), 60_000);
      });
    }
  });
}
