/** The shops of the examples on each store. Their customers compare what they see with what they should see. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { postgresHome, startPostgres } from '../support/servers/postgres.ts';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';

const run = promisify(execFile);
const redis = await redisProgram();
const home = postgresHome();
let ofRedis: ServerProcess | undefined;
let ofPostgres: ServerProcess | undefined;

beforeAll(async () => {
  if (redis) ofRedis = await startRedis(redis);
  if (home) ofPostgres = await startPostgres(home);
});

afterAll(async () => {
  await ofRedis?.dispose();
  await ofPostgres?.dispose();
});

/** Each shop has its own database to count in. */
async function addressOf(store: string, shop: string): Promise<string> {
  if (store === 'Redis') return `redis://127.0.0.1:${ofRedis!.port}`;
  if (store !== 'Postgres') return '';
  const server = `postgres://postgres@127.0.0.1:${ofPostgres!.port}`;
  const client = new pg.Client({ connectionString: `${server}/postgres` });
  await client.connect();
  await client.query(`CREATE DATABASE "${shop}"`);
  await client.end();
  return `${server}/${shop}`;
}

describe.each(['express-shop', 'fastify-shop'])('the example %s', (shop) => {
  const stores = ['SQLite', ...(redis ? ['Redis'] : []), ...(home ? ['Postgres'] : [])];

  it.each(stores)(
    'charges and reserves once for each key on %s',
    async (store) => {
      const folder = fileURLToPath(new URL(`../../examples/${shop}/`, import.meta.url));
      const env = { ...process.env, SHOP_STORE: await addressOf(store, shop) };
      const { stdout } = await run(process.execPath, ['--no-warnings', 'main.ts'], {
        cwd: folder,
        env,
        timeout: 60_000,
      });
      expect(stdout).toContain(`records in ${store}`);
      expect(stdout).toContain('charged: ');
      expect(stdout.includes('frank reserves once more')).toBe(store !== 'Redis');
    },
    90_000,
  );
});
