/**
 * Express: what the engines of this folder need to know of an Express request and its response. Express 4 and 5.
 */
import type { Request, RequestHandler, Response } from 'express';
import type { Call } from '../core/call.js';
import { DeadlineEngine, type DeadlineMiddlewareOptions, requireCall } from './deadline.js';
import { FenceEngine, type FenceMiddlewareOptions } from './fence.js';
import { type Problem, problemBody, problemType } from './problem.js';

export type { DeadlineMiddlewareOptions } from './deadline.js';
export type { FenceMiddlewareOptions } from './fence.js';

/**
 * Middleware that gives each request the time that its caller grants.
 *
 * Reads `request-deadline-ms`, `grpc-timeout` and `x-envoy-expected-rq-timeout-ms`. Mount it before everything else, or in
 * a route, where the nearer deadline holds. A request that has no time left is answered 504 and not handled; when the time
 * passes while it is handled, it is answered 504, its call is aborted, and what the handler still writes goes nowhere.
 * With `enableContext()` of `holdfast/context` every pipeline inside ends in time by itself; without it, pass on
 * `callOf(request)`.
 *
 * @param options - `default`, `maxAccept`, `headers`, and `name`, `on`, `clock` as every policy.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { callOf, deadline } from 'holdfast/express';
 *
 * const app = express();
 * app.use(deadline({ default: '10s', maxAccept: '30s' }));
 * app.get('/', (request, response) => {
 *   response.json({ hasTime: callOf(request).remainingMs > 0 });
 * });
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const { port } = server.address() as AddressInfo;
 * const answer = await fetch(`http://127.0.0.1:${port}/`, { headers: { 'request-deadline-ms': '500' } });
 * console.log(await answer.json());
 * server.close();
 * ```
 */
export function deadline(options?: DeadlineMiddlewareOptions): RequestHandler {
  const engine = new DeadlineEngine(options);
  return (request, response, next) => {
    const exchange = {
      request,
      response,
      header: (name: string) => request.headers[name],
      answer: (problem: Problem) => answer(response, problem),
    };
    engine.begin(exchange, () => next());
  };
}

/**
 * The call of a request: its `signal`, `deadline`, `remainingMs`, and `attempt`, if its caller sends the number.
 *
 * @throws TypeError, when the deadline middleware does not run before.
 */
export function callOf(request: Request): Call {
  return requireCall(request);
}

/**
 * Middleware that refuses writes of owners who have lost their lock: the header `Fence` must not be less than the greatest that the
 * resource has seen.
 *
 * Answers 412 for a fence that is stale, 428 for one that is missing, 400 for one that is no number. Mount it on the routes that write, after
 * authentication: who may send any number may lock everybody else out.
 *
 * @param options - `resource`, `gate`, `missing`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { fence } from 'holdfast/express';
 *
 * const app = express();
 * app.put('/reports/:id', fence({ resource: (request) => request.path }), (_request, response) => void response.send('ok'));
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/reports/4`;
 * const put = async (fence: string) => (await fetch(url, { method: 'PUT', headers: { fence } })).status;
 * console.log(await put('7'), await put('6'), await put('8')); // 200 412 200
 * server.close();
 * ```
 */
export function fence(options: FenceMiddlewareOptions<Request>): RequestHandler {
  const engine = new FenceEngine(options);
  return (request, response, next) => {
    const problem = engine.check(request, request.headers.fence);
    if (problem === undefined) next();
    else response.status(problem.status).type(problemType).end(problemBody(problem));
  };
}

function answer(response: Response, problem: Problem): void {
  if (response.headersSent) return;
  response.status(problem.status).type(problemType).end(problemBody(problem));
  // A body may be on its way through a compressor; then it still needs the methods.
  if (response.headersSent) detach(response);
  else response.once('finish', () => detach(response));
}

const writers = ['setHeader', 'appendHeader', 'removeHeader', 'writeHead', 'write', 'end', 'flushHeaders'] as const;

/**
 * What a handler does after the answer goes nowhere. Else `response.json()` would throw, and Express, which can then not
 * answer the error, would destroy the connection, on which the client may have sent its next request.
 */
function detach(response: Response): void {
  const { req: request, statusCode } = response;
  for (const name of writers) Object.defineProperty(response, name, { value: () => response, configurable: true });
  // The status stays what was sent: logs and metrics read it when the response has finished.
  Object.defineProperty(response, 'statusCode', { get: () => statusCode, set() {}, configurable: true });
  const socket = new Proxy(request.socket, {
    get: (target, name) => (name === 'destroy' ? () => socket : Reflect.get(target, name)),
  });
  Object.defineProperty(request, 'socket', { value: socket, configurable: true });
}
