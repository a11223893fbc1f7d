/**
 * The shop of `express-shop` on Fastify: one order per key and one charge per order, whatever breaks.
 *
 * `npm run start -w @holdfast/example-fastify-shop`; on Redis with SHOP_STORE=redis://127.0.0.1:6379, on Postgres with
 * SHOP_STORE=postgres://postgres@127.0.0.1:5432/postgres.
 */
import Fastify from 'fastify';
import { idempotency } from 'holdfast/fastify';
import { goShopping } from '../express-shop/customers.ts';
import { openProvider } from '../express-shop/payment.ts';
import { openStore, statusOf } from '../express-shop/store.ts';

const { name, store, reservations, close } = await openStore();
const provider = await openProvider();
let orders = 0;

const app = Fastify();
app.addHook('onRequest', async (request, reply) => {
  // An unauthenticated client has no keys here.
  if (request.headers.authorization === undefined) return reply.code(401).send();
});

await app.register(idempotency, {
  store,
  scope: (request) => request.headers.authorization!,
  // If a process dies halfway, the next request continues after the phases that are done.
  onLost: 'resume',
});

app.post<{ Body: { cents: number } }>(
  '/orders',
  { config: { idempotency: { required: true } } },
  async (request, reply) => {
    const { cents } = request.body;
    // The provider gets the same key in every attempt, so it recognises a charge whose answer was lost.
    const { charge } = await request.idempotency!.phase('charge', (key) => provider.charge(cents, key));
    return reply.code(201).send({ order: ++orders, cents, charge });
  },
);

// Not the plugin's key: this one is committed together with the row.
app.post<{ Body: { seat: string } }>('/reservations', { config: { idempotency: false } }, async (request, reply) => {
  const customer = request.headers.authorization!;
  const key = String(request.headers['idempotency-key'] ?? '');
  try {
    return reply.code(201).send(await reservations?.reserve({ customer, key, seat: request.body.seat }));
  } catch (error) {
    return reply.code(statusOf(error)).send({ error: (error as Error).message });
  }
});

app.setErrorHandler((_error, _request, reply) => {
  // Not stored, so that the next request with the key tries again.
  reply.code(502).send({ error: 'the provider cannot be reached' });
});

const address = await app.listen({ port: 0, host: '127.0.0.1' });
console.log(`Fastify, records in ${name}\n`);
await goShopping(address, provider, reservations);
await app.close();
await provider.close();
await close();
