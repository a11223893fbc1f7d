/** The demo's shop on Fastify. */
import type { AddressInfo } from 'node:net';
import Fastify from 'fastify';
import { idempotency } from 'holdfast/fastify';
import { charge, isProtected, lookAndCharge, opened, product, quote, store } from './shop.ts';

interface Order {
  readonly Body: { readonly key: string };
}

const app = Fastify({ keepAliveTimeout: 120_000 });
app.setErrorHandler((error, _request, reply) => reply.code(503).send(String(error)));
app.post('/quote', () => quote());
app.post('/product', () => product());
if (isProtected) {
  await app.register(async (orders) => {
    await orders.register(idempotency, {
      store,
      scope: () => 'users',
      ttl: '24h',
      lease: '1s',
      onLost: 'rerun',
      required: true,
    });
    orders.post<Order>('/order', (request) => charge(request.body.key, request.idempotency!.downstreamKey('charge')));
  });
} else {
  app.post<Order>('/order', (request) => lookAndCharge(request.body.key));
}

await app.listen({ port: 0, host: '127.0.0.1' });
opened((app.server.address() as AddressInfo).port);
