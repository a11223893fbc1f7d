/**
 * An Express shop that charges payments: one order per key and one charge per order, whatever breaks.
 *
 * `npm run start -w @holdfast/example-express-shop`; on Redis with SHOP_STORE=redis://127.0.0.1:6379, on Postgres with
 * SHOP_STORE=postgres://postgres@127.0.0.1:5432/postgres.
 */
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import express, { type ErrorRequestHandler } from 'express';
import { idempotency, rawBody } from 'holdfast/express';
import { goShopping } from './customers.ts';
import { openProvider } from './payment.ts';
import { openStore, statusOf } from './store.ts';

const { name, store, reservations, close } = await openStore();
const provider = await openProvider();
let orders = 0;

const app = express();
app.use(express.json({ verify: rawBody }));
app.use((request, response, next) => {
  // An unauthenticated client has no keys here.
  if (request.get('authorization') === undefined) response.sendStatus(401);
  else next();
});

const onceForEachKey = idempotency({
  store,
  scope: (request) => request.get('authorization')!,
  required: true,
  // If a process dies halfway, the next request continues after the phases that are done.
  onLost: 'resume',
});

app.post('/orders', onceForEachKey, async (request, response) => {
  const { cents } = request.body;
  // The provider gets the same key in every attempt, so it recognises a charge whose answer was lost.
  const { charge } = await request.idempotency!.phase('charge', (key) => provider.charge(cents, key));
  response.status(201).json({ order: ++orders, cents, charge });
});

app.post('/reservations', async (request, response) => {
  const [customer, key] = [request.get('authorization')!, request.get('idempotency-key') ?? ''];
  try {
    response.status(201).json(await reservations?.reserve({ customer, key, seat: request.body.seat }));
  } catch (error) {
    response.status(statusOf(error)).json({ error: (error as Error).message });
  }
});

app.use(((_error, _request, response, _next) => {
  // Not stored, so that the next request with the key tries again.
  response.status(502).json({ error: 'the provider cannot be reached' });
}) satisfies ErrorRequestHandler);

const server = app.listen(0, '127.0.0.1');
await once(server, 'listening');
console.log(`Express, records in ${name}\n`);
await goShopping(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, provider, reservations);
server.closeAllConnections();
server.close();
await provider.close();
await close();
