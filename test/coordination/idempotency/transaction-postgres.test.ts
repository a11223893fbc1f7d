/** Key, effect and result in one transaction of the user's, on a real Postgres. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { idempotency } from '../../../src/index.js';
import { postgresStore } from '../../../src/stores/postgres.js';
import { drivers, type PostgresConnection } from '../../stores/postgres-clients.ts';
import { postgresHome, startPostgres } from '../../support/servers/postgres.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';

const home = postgresHome();
const scope = { scope: 'shop' };

describe.skipIf(home === undefined).each(drivers)('transaction on Postgres by $title', ({ title, connect }) => {
  let server: ServerProcess;
  let connection: PostgresConnection;
  beforeAll(async () => {
    server = await startPostgres(home!);
    connection = connect(server.port);
    await postgresStore(connection.pool).migrate();
    await connection.query('CREATE TABLE orders (id SERIAL PRIMARY KEY, key TEXT, cents INTEGER)');
  });
  afterAll(async () => {
    await connection?.close();
    await server?.dispose();
  });

  type Client = Parameters<Parameters<PostgresConnection['transaction']>[0]>[0];
  const insert = (client: Client, sql: string): Promise<unknown> =>
    'unsafe' in client ? client.unsafe(sql) : client.query({ text: sql });

  async function order(key: string, cents: number, fail = false): Promise<unknown> {
    const once = idempotency({ store: postgresStore(connection.pool) });
    let answer: unknown;
    await connection.transaction(async (client) => {
      answer = await once.transaction(
        client,
        key,
        async ({ attempt }) => {
          await insert(client, `INSERT INTO orders (key, cents) VALUES ('${key}', ${cents})`);
          if (fail) throw new RangeError('no stock');
          return { attempt, cents };
        },
        { ...scope, input: { cents } },
      );
    });
    return answer;
  }
  const orders = async (key: string) =>
    (await connection.query(`SELECT cents FROM orders WHERE key = '${key}'`)).length;

  it('commits key, effect and result together, and replays the result', async () => {
    expect(await order('k', 5)).toEqual({ attempt: 1, cents: 5 });
    expect(await order('k', 5)).toEqual({ attempt: 1, cents: 5 });
    await expect(order('k', 6)).rejects.toMatchObject({ code: 'ERR_KEY_REUSED' });
    expect(await orders('k')).toBe(1);
  });

  it('leaves nothing behind when the function throws', async () => {
    await expect(order('thrown', 5, true)).rejects.toThrow(RangeError);
    expect(await orders('thrown')).toBe(0);
    expect(await order('thrown', 5)).toEqual({ attempt: 1, cents: 5 });
  });

  it('runs once for many concurrent calls', async () => {
    const answers = await Promise.allSettled(Array.from({ length: 40 }, () => order('many', 5)));
    expect(await orders('many')).toBe(1);
    const failures = answers.filter((one) => one.status === 'rejected').map(({ reason }) => reason.code);
    expect(failures.every((code) => code === 'ERR_IN_FLIGHT')).toBe(true);
    expect(answers.some((one) => one.status === 'fulfilled')).toBe(true);
  });

  it('leaves neither row when its server process is killed before the commit', async () => {
    const once = idempotency({ store: postgresStore(connection.pool) });
    const killed = connection.transaction(async (client) => {
      // A client of pg also reports it by an event.
      if ('on' in client) client.on('error', () => {});
      await once.transaction(
        client,
        'killed',
        async () => {
          await insert(client, "INSERT INTO orders (key, cents) VALUES ('killed', 1)");
          await insert(client, 'SELECT pg_terminate_backend(pg_backend_pid())');
        },
        scope,
      );
    });
    await expect(killed).rejects.toThrow();
    expect(await orders('killed')).toBe(0);
    expect(await once.run('killed', ({ attempt }) => attempt, scope)).toBe(1);
  });

  // postgres.js would do the rest on a new connection, outside the transaction; docs/stores.md says so.
  if (title === 'pg') {
    it('does nothing more when its connection was lost while the function awaited something else', async () => {
      const once = idempotency({ store: postgresStore(connection.pool) });
      const lost = connection.transaction(async (client) => {
        const broken = new Promise((resolve) => 'on' in client && client.on('error', resolve));
        await once.transaction(
          client,
          'lost',
          async () => {
            await insert(client, 'SET application_name = lost');
            await connection.query(
              "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lost'",
            );
            await broken;
            // Others go on by the pool meanwhile.
            await connection.query('SELECT 1');
            await insert(client, "INSERT INTO orders (key, cents) VALUES ('lost', 1)");
          },
          scope,
        );
      });
      await expect(lost).rejects.toThrow();
      expect(await orders('lost')).toBe(0);
      expect(await order('lost', 5)).toEqual({ attempt: 1, cents: 5 });
    });
  }
});
