/** Another process whose callers order in one transaction each, and again under the same key until they are answered; it tells each answer. */
import { setTimeout as sleep } from 'node:timers/promises';
import { idempotency } from '../../../src/coordination/idempotency/idempotency.js';
import { postgresStore } from '../../../src/stores/postgres.js';
import { drivers, type PostgresConnection } from '../../stores/postgres-clients.ts';

export interface Orders {
  readonly title: string;
  readonly port: number;
  /** Of each caller, the first order that nobody has been told of. */
  readonly next: readonly number[];
}

/** A caller is told which order it was. */
export interface Told {
  readonly key: string;
  readonly id: number;
}

type Client = Parameters<Parameters<PostgresConnection['transaction']>[0]>[0];

const { title, port, next } = JSON.parse(process.argv[2]!) as Orders;
// Its parent may be gone before it.
process.on('disconnect', () => process.exit());
let isEnough = false;
process.on('message', () => {
  isEnough = true;
});

const connection = drivers.find((driver) => driver.title === title)!.connect(port, next.length);
// A client of pg tells of a broken connection by an event, too.
if ('on' in connection.pool)
  connection.pool.on('connect', (client: NodeJS.EventEmitter) => client.on('error', () => {}));
const once = idempotency({ store: postgresStore(connection.pool, { timeout: '5s' }) });

async function order(key: string): Promise<number> {
  let id = 0;
  await connection.transaction(async (client) => {
    id = await once.transaction(client, key, () => insert(client, key), { scope: 'shop' });
  });
  return id;
}

async function insert(client: Client, key: string): Promise<number> {
  // Two rows, so that half of an order would be seen.
  const sql = `INSERT INTO orders (key) VALUES ('${key}') RETURNING id`;
  const line = `INSERT INTO lines (key) VALUES ('${key}')`;
  if ('unsafe' in client) {
    const [row] = (await client.unsafe(sql)) as { id: number }[];
    await client.unsafe(line);
    return row!.id;
  }
  const { rows } = await client.query({ text: sql });
  await client.query({ text: line });
  return (rows[0] as { id: number }).id;
}

async function callAgainAndAgain(caller: number, first: number): Promise<void> {
  for (let index = first; !isEnough; ) {
    const key = `${caller}.${index}`;
    try {
      const id = await order(key);
      process.send!({ key, id } satisfies Told);
      index++;
    } catch {
      await sleep(20);
    }
  }
}

await Promise.all(next.map((first, caller) => callAgainAndAgain(caller, first)));
// Only then has all been sent.
process.send!({}, () => process.exit());
