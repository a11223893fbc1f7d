/**
 * Express: what the engines of this folder need to know of an Express request and its response. Express 4 and 5.
 */
import type { Request, RequestHandler, Response } from 'express';
import type { Call } from '../core/call.js';
import { DeadlineEngine, type DeadlineMiddlewareOptions, requireCall } from './deadline.js';
import { HealthEngine, type HealthOptions, healthType } from './health.js';
import { type Problem, problemBody, problemType } from './problem.js';

export type { DeadlineMiddlewareOptions } from './deadline.js';
export type { HealthCheck, HealthOptions, HealthPolicy, HealthProbe, HealthStore, HealthSubject } from './health.js';

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
 * Middleware that answers probes: `/health/live` whether the process answers at all, `/health/ready` and `/health` whether
 * it should get requests, with breaker, limit and store states as details, as `application/health+json`.
 *
 * Mount it before what authenticates or limits requests. It answers 503 when something `critical` is down, and shows
 * names, states and codes only.
 *
 * @param options - `checks`, `path`, `timeout`, `maxAge`, `clock`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { circuitBreaker, memoryStore } from 'holdfast';
 * import { health } from 'holdfast/express';
 *
 * const app = express();
 * app.use(health({ checks: { payments: circuitBreaker(), store: { check: memoryStore(), critical: true } } }));
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const { port } = server.address() as AddressInfo;
 * const answer = await fetch(`http://127.0.0.1:${port}/health/ready`);
 * console.log(answer.status, await answer.json());
 * server.close();
 * ```
 */
export function health(options?: HealthOptions): RequestHandler {
  const engine = new HealthEngine(options);
  return (request, response, next) => {
    const probe = engine.probe(request.method, request.path);
    if (probe === undefined) return next();
    // Not `send`, which would add an ETag and answer 304.
    probe.then(({ status, body }) => {
      if (!response.headersSent) response.status(status).set('cache-control', 'no-store').type(healthType).end(body);
    }, next);
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
