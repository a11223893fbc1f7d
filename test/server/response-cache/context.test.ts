/** A response cache behind a deadline, where `holdfast/context` carries the call of a request to what its handler calls. */
import { createServer } from 'node:http';
import express from 'express';
import { describe, expect, it } from 'vitest';
import { currentCall, enableContext } from '../../../src/integrations/context.js';
import { callOf, deadline, responseCache } from '../../../src/server/express.js';
import { send } from '../idempotency/raw-client.js';
import { listening } from '../idempotency/support.js';

enableContext();

describe('responseCache', () => {
  it.each(['public', 'private'])(
    'runs a handler, of a %s response, in the call of its own request',
    async (control) => {
      const app = express();
      const cached = responseCache({ ttl: '1m', hardTimeout: '1s' });
      const seen: unknown[] = [];
      app.use(deadline({ default: '10s' }), cached);
      app.get('/', (request, response) => {
        seen.push(currentCall() === callOf(request));
        response.set('cache-control', control).send('x');
        seen.push(currentCall() === callOf(request));
      });
      app.set('env', 'test');
      await listening(createServer(app), (port) => send(port, { method: 'GET', path: '/', headers: [] }));
      expect(seen).toEqual([true, true]);
      await cached.close();
    },
  );

  it('does not end a handler without a deadline when the time of a load is over', async () => {
    const app = express();
    const cached = responseCache({ ttl: '1m', hardTimeout: '1s' });
    const calls: unknown[] = [];
    app.get('/', cached, (_request, response) => {
      calls.push(currentCall());
      response.send('x');
    });
    app.set('env', 'test');
    await listening(createServer(app), (port) => send(port, { method: 'GET', path: '/', headers: [] }));
    expect(calls).toEqual([undefined]);
    await cached.close();
  });
});
