/** The demo's shop on Express. */
import type { AddressInfo } from 'node:net';
import express from 'express';
import { idempotency } from 'holdfast/express';
import { charge, isProtected, lookAndCharge, opened, product, quote, store } from './shop.ts';

const app = express().use(express.json());
app.post('/quote', async (_request, response) => void response.json(await quote()));
app.post('/product', async (_request, response) => void response.json(await product()));
if (isProtected) {
  const once = idempotency({ store, scope: () => 'users', ttl: '24h', lease: '1s', onLost: 'rerun', required: true });
  app.post('/order', once, async (request, response) => {
    response.json(await charge(request.body.key, request.idempotency!.downstreamKey('charge')));
  });
} else {
  app.post('/order', async (request, response) => void response.json(await lookAndCharge(request.body.key)));
}
// Express recognises an error handler by its four parameters.
app.use((error: unknown, _request: express.Request, response: express.Response, _next: unknown) => {
  response.status(503).send(String(error));
});

const server = app.listen(0, '127.0.0.1', () => opened((server.address() as AddressInfo).port));
server.keepAliveTimeout = 120_000;
