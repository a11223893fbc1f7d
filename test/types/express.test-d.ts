import express, { type Request, type RequestHandler, type Response } from 'express';
import { describe, expectTypeOf, it } from 'vitest';
import { memoryStore } from '../../src/index.js';
import { deadline, fence, health, idempotency, type Middleware, responseCache } from '../../src/server/express.js';

const scope = () => 'everybody';
const middleware: Readonly<Record<string, Middleware>> = {
  deadline: deadline(),
  fence: fence({ resource: (request) => request.path }),
  health: health(),
  idempotency: idempotency({ store: memoryStore(), scope }),
  responseCache: responseCache(),
};

describe('the middleware of express', () => {
  it('leaves the parameters of the route typed for the handlers behind it', () => {
    const app = express();
    app.get('/orders/:id', responseCache(), (request) => {
      expectTypeOf(request.params).toEqualTypeOf<{ id: string }>();
    });
    for (const before of Object.values(middleware)) {
      app.post('/orders/:id', before, (request) => {
        expectTypeOf(request.params).toEqualTypeOf<{ id: string }>();
      });
      app.route('/orders/:id').put(before, before, (request) => {
        expectTypeOf(request.params).toEqualTypeOf<{ id: string }>();
      });
      app.patch(
        '/orders/:id',
        before,
        (request: Request<{ id: string }, unknown, { item: string }>, response: Response) => {
          response.json(request.body.item);
        },
      );
    }
  });

  it('leaves them typed behind a response cache, which is more than middleware', () => {
    express().get('/orders/:id', responseCache(), (request) => {
      expectTypeOf(request.params).toEqualTypeOf<{ id: string }>();
    });
  });

  it('is a RequestHandler wherever one is asked for', () => {
    expectTypeOf<Middleware>().toExtend<RequestHandler>();
    express().use(deadline(), [health(), responseCache()]);
  });
});
