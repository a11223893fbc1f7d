/** Key, effect and result in one transaction while the primary is killed and its standby promoted, with callers who repeat until they are answered. */
import { type ChildProcess, fork } from 'node:child_process';
import { once as eventOf } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, connect as connectTo, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { postgresStore } from '../../../src/stores/postgres.js';
import { esbuildLowering } from '../../../tools/lowering.ts';
import { until } from '../../stores/faults.ts';
import { drivers } from '../../stores/postgres-clients.ts';
import { debianPostgresHome, startPostgres, startStandby } from '../../support/servers/postgres.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';
import type { Orders, Told } from './transaction-child.ts';

const home = debianPostgresHome();
// A child lies within the checkout, so that it finds the packages it imports.
const folder = mkdtempSync(
  join(fileURLToPath(new URL('../../../node_modules', import.meta.url)), '.holdfast-transaction-'),
);
const program = join(folder, 'child.mjs');
const ends: (() => unknown)[] = [];

beforeAll(() =>
  build({
    ...{ entryPoints: [fileURLToPath(new URL('transaction-child.ts', import.meta.url))], outfile: program },
    ...{ bundle: true, format: 'esm', platform: 'node', target: 'node22', logLevel: 'error' },
    plugins: [esbuildLowering],
    external: ['pg', 'postgres', 'lru-cache', 'tslib'],
  }),
);
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The address that clients know: it leads to the primary, and after the move to its successor. */
async function movingAddress(first: number) {
  let target = first;
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const upstream = connectTo(target, '127.0.0.1');
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        other.destroy();
      });
      socket.pipe(other);
    }
  });
  server.listen(0, '127.0.0.1');
  await eventOf(server, 'listening');
  ends.push(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return {
    port: (server.address() as AddressInfo).port,
    moveTo(port: number) {
      target = port;
      for (const socket of sockets) socket.destroy();
    },
  };
}

/** A primary with the tables, and a standby that follows it. */
async function startPair(kind: 'sync' | 'async') {
  const started = async (server: Promise<ServerProcess>) => {
    const own = await server;
    ends.push(() => own.dispose());
    return own;
  };
  const opened = (port: number) => {
    const connection = drivers[0]!.connect(port, 3);
    ends.push(() => connection.close().catch(() => {}));
    return connection;
  };
  const primary = await started(startPostgres(home!));
  const admin = opened(primary.port);
  await postgresStore(admin.pool).migrate();
  await admin.query(
    'CREATE TABLE orders (key TEXT, id INTEGER GENERATED ALWAYS AS IDENTITY); CREATE TABLE lines (key TEXT)',
  );
  const standby = await started(startStandby(home!, primary));
  if (kind === 'sync') {
    await admin.query("ALTER SYSTEM SET synchronous_standby_names = '*'");
    await admin.query('SELECT pg_reload_conf()');
  }
  await until(
    () => admin.query('SELECT sync_state FROM pg_stat_replication'),
    (rows) => rows.some(({ sync_state }) => sync_state === kind),
  );
  return { primary, standby, after: opened(standby.port) };
}

const callers = 4;

/** A process that orders, and one in its place whenever postgres.js has ended it with an error that nothing can catch: what was answered, by key. */
function startCallers(title: string, port: number) {
  const answers = new Map<string, number>();
  const next = new Array<number>(callers).fill(0);
  let child: ChildProcess;
  let isEnough = false;
  const start = () => {
    child = fork(program, [JSON.stringify({ title, port, next } satisfies Orders)], { stdio: 'ignore' });
    child.on('message', ({ key, id }: Partial<Told>) => {
      if (key === undefined) return;
      answers.set(key, id!);
      const [caller, index] = key.split('.').map(Number);
      next[caller!] = index! + 1;
    });
    child.on('close', () => {
      if (!isEnough) start();
    });
  };
  start();
  ends.push(() => {
    isEnough = true;
    child.kill('SIGKILL');
  });
  return {
    answers,
    least: () => Math.min(...next),
    async end() {
      isEnough = true;
      const gone = eventOf(child, 'close');
      child.send('enough');
      await gone;
    },
  };
}

/** Orders before, during and after the loss of the primary. */
async function orderThroughFailover(title: string, kind: 'sync' | 'async') {
  const { primary, standby, after } = await startPair(kind);
  const address = await movingAddress(primary.port);
  const orders = startCallers(title, address.port);
  const reach = (least: number) =>
    until(
      async () => orders.least(),
      (count) => count >= least,
    );
  await reach(10);
  await primary.kill();
  await after.query('SELECT pg_promote()');
  address.moveTo(standby.port);
  await reach(orders.least() + 20);
  await orders.end();
  const rows = await after.query('SELECT key, id FROM orders');
  const lines = await after.query('SELECT key FROM lines');
  return {
    answers: orders.answers,
    orders: rows.map(({ key, id }) => [key, id] as [string, number]),
    lines: lines.map(({ key }) => key as string),
  };
}

describe.skipIf(home === undefined).each(drivers)('once.transaction by $title', ({ title }) => {
  it('has one whole effect per key, that of the answer, when the primary is lost and its synchronous standby promoted', async () => {
    const { answers, orders, lines } = await orderThroughFailover(title, 'sync');
    expect(orders).toHaveLength(answers.size);
    expect(new Map(orders)).toEqual(answers);
    expect(lines.sort()).toEqual([...answers.keys()].sort());
  });

  it('loses only whole effects, the last ones, when the standby was not synchronous, and has none twice', async () => {
    const { answers, orders, lines } = await orderThroughFailover(title, 'async');
    const keys = orders.map(([key]) => key);
    expect(new Set(keys).size).toBe(keys.length);
    for (const [key, id] of orders) expect(answers.get(key)).toBe(id);
    expect(lines.sort()).toEqual(keys.sort());
  });
});
