/**
 * Fastify: what the engines of this folder need to know of a Fastify request and its reply. Fastify 5.
 */
import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify';
/*!
 * This bundle contains fastify-plugin.
 *
 * MIT License
 *
 * Copyright (c) 2017-present The Fastify team <https://github.com/fastify/fastify#team>
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
import fastifyPlugin from 'fastify-plugin';
import type { Call } from '../core/call.js';
import {
  DeadlineEngine,
  type DeadlineMiddlewareOptions,
  type RouteDeadline,
  requireCall,
  routeLimitMs,
  runUnderCall,
} from './deadline.js';
import { type HealthAnswer, HealthEngine, type HealthOptions, healthType } from './health.js';
import { type Problem, problemBody, problemType } from './problem.js';

export type { DeadlineMiddlewareOptions, RouteDeadline } from './deadline.js';
export type { HealthCheck, HealthOptions, HealthPolicy, HealthProbe, HealthStore, HealthSubject } from './health.js';

declare module 'fastify' {
  interface FastifyContextConfig {
    /**
     * The route's own time: what a request gets that names none, and the most that any request gets. `false`: none, for
     * routes that stream.
     */
    deadline?: RouteDeadline;
  }
}

// Asynchronous, because Fastify does not catch what a plugin with a callback throws.
const plugin: FastifyPluginAsync<DeadlineMiddlewareOptions> = async (app, options) => {
  const engine = new DeadlineEngine(options);
  const begun = new WeakSet<FastifyReply>();
  // A mistake in a route shows when the server starts.
  app.addHook('onRoute', ({ config }) => void routeLimitMs((config as { deadline?: unknown } | undefined)?.deadline));
  app.addHook('onRequest', (request, reply, next) => {
    const exchange = {
      request: request.raw,
      response: reply.raw,
      header: (name: string) => request.headers[name],
      answer(problem: Problem) {
        if (!begun.has(reply)) answer(reply, problem);
      },
    };
    engine.begin(exchange, next, routeLimitMs(request.routeOptions.config.deadline));
  });
  // A body is read in events of the socket, and what reads it may have lost the request it belongs to.
  app.addHook('preValidation', (request, _reply, next) => runUnderCall(request.raw, next));
  // From here to the first byte `reply.sent` is not true yet.
  app.addHook('onSend', (_request, reply, _payload, next) => {
    begun.add(reply);
    next();
  });
};

/**
 * Plugin that gives each request the time that its caller grants.
 *
 * Reads `request-deadline-ms`, `grpc-timeout` and `x-envoy-expected-rq-timeout-ms`. Register it before other plugins; a route
 * has its own time by `config: { deadline: '2s' }`. A request that has no time left is answered 504 and not handled; when
 * the time passes while it is handled, it is answered 504, its call is aborted, and what the handler answers later goes
 * nowhere. With `enableContext()` of `holdfast/context` every pipeline inside ends in time by itself; without it, pass on
 * `callOf(request)`.
 *
 * Options: `default`, `maxAccept`, `headers`, and `name`, `on`, `clock` as every policy; a wrong one lets `register` fail.
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { callOf, deadline } from 'holdfast/fastify';
 *
 * const app = Fastify();
 * await app.register(deadline, { default: '10s', maxAccept: '30s' });
 * app.get('/', { config: { deadline: '2s' } }, (request) => ({ hasTime: callOf(request).remainingMs > 0 }));
 * const address = await app.listen({ port: 0, host: '127.0.0.1' });
 * const answer = await fetch(address, { headers: { 'request-deadline-ms': '500' } });
 * console.log(await answer.json());
 * await app.close();
 * ```
 */
export const deadline: FastifyPluginAsync<DeadlineMiddlewareOptions> = /* @__PURE__ */ fastifyPlugin(plugin, {
  fastify: '5.x',
  name: 'holdfast-deadline',
});

/**
 * The call of a request: its `signal`, `deadline`, `remainingMs`, and `attempt`, if its caller sends the number.
 *
 * @throws TypeError, when the deadline plugin is not registered.
 */
export function callOf(request: FastifyRequest): Call {
  return requireCall(request.raw);
}

const healthPlugin: FastifyPluginAsync<HealthOptions> = async (app, options) => {
  const engine = new HealthEngine(options);
  const send = async (reply: FastifyReply, probe: Promise<HealthAnswer>) => {
    const { status, body } = await probe;
    return reply.code(status).header('cache-control', 'no-store').type(healthType).send(body);
  };
  for (const path of engine.readyPaths) app.get(path, (_request, reply) => send(reply, engine.ready()));
  app.get(engine.livePath, (_request, reply) => send(reply, engine.live()));
};

/**
 * Plugin that answers probes: `/health/live` whether the process answers at all, `/health/ready` and `/health` whether it
 * should get requests, with breaker, limit and store states as details, as `application/health+json`.
 *
 * Register it before what authenticates or limits requests. It answers 503 when something `critical` is down, and shows
 * names, states and codes only.
 *
 * Options: `checks`, `path`, `timeout`, `maxAge`, `clock`; a wrong one lets `register` fail.
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { circuitBreaker, memoryStore } from 'holdfast';
 * import { health } from 'holdfast/fastify';
 *
 * const app = Fastify();
 * await app.register(health, { checks: { payments: circuitBreaker(), store: { check: memoryStore(), critical: true } } });
 * const address = await app.listen({ port: 0, host: '127.0.0.1' });
 * const answer = await fetch(`${address}/health/ready`);
 * console.log(answer.status, await answer.json());
 * await app.close();
 * ```
 */
export const health: FastifyPluginAsync<HealthOptions> = /* @__PURE__ */ fastifyPlugin(healthPlugin, {
  fastify: '5.x',
  name: 'holdfast-health',
});

function answer(reply: FastifyReply, problem: Problem): void {
  if (reply.sent || reply.raw.headersSent) return;
  reply.code(problem.status).type(problemType).send(problemBody(problem));
  // What the handler answers later is not for Fastify to send, nor to warn of.
  reply.hijack();
}
