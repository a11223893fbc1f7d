/** What the middleware tests share: real servers of both frameworks, and clients that can cut the connection. */
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { connect, type Socket } from 'node:net';
import express from 'express';
import Fastify from 'fastify';
import type { Call } from '../../src/index.js';
import type { DeadlineMiddlewareOptions } from '../../src/server/deadline.js';
import { callOf as callOfExpress, deadline as expressDeadline } from '../../src/server/express.js';
import { callOf as callOfFastify, deadline as fastifyDeadline } from '../../src/server/fastify.js';

/** A handler that knows no framework. It is given the call and the headers, and its answer is sent as JSON. */
export type Handler = (call: Call, headers: Readonly<Record<string, unknown>>) => unknown;

export interface Running {
  readonly port: number;
  readonly url: string;
  /** What the framework logged about requests that failed. */
  readonly complaints: unknown[];
  close(): Promise<void>;
}

export interface Framework {
  readonly name: string;
  /** `GET /` and `POST /` run the handler. */
  serve(options: DeadlineMiddlewareOptions, handler: Handler): Promise<Running>;
}

export const frameworks: readonly Framework[] = [
  {
    name: 'express',
    async serve(options, handler) {
      const complaints: unknown[] = [];
      const app = express();
      app.use(expressDeadline(options));
      app.use(express.json());
      app.all('/', async (request, response) => {
        response.json(await handler(callOfExpress(request), request.headers));
      });
      app.use(((error, _request, response, next) => {
        complaints.push(error);
        if (response.headersSent) next(error);
        else response.status(500).json({ error: String(error) });
      }) satisfies express.ErrorRequestHandler);
      app.set('env', 'test');
      const { port, close } = await running(createServer(app));
      return { port, url: `http://127.0.0.1:${port}/`, complaints, close };
    },
  },
  {
    name: 'fastify',
    async serve(options, handler) {
      const complaints: unknown[] = [];
      const stream = { write: (line: string) => void complaints.push(line) };
      const app = Fastify({ logger: { level: 'warn', stream }, forceCloseConnections: true });
      await app.register(fastifyDeadline, options);
      app.route({
        method: ['GET', 'POST'],
        url: '/',
        handler: (request) => handler(callOfFastify(request), request.headers),
      });
      const url = await app.listen({ port: 0, host: '127.0.0.1' });
      const { port } = app.server.address() as AddressInfo;
      return { port, url: `${url}/`, complaints, close: () => app.close() };
    },
  },
];

/** Listens on loopback until it is closed, together with its connections. */
export async function running(server: Server): Promise<Pick<Running, 'port' | 'close'>> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const close = async () => {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  };
  return { port: (server.address() as AddressInfo).port, close };
}

/** Sends by hand over a separate socket, so that a test can cut the connection. */
export async function openSocket(port: number, ...lines: readonly string[]): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  await once(socket, 'connect');
  socket.write(`${lines.join('\r\n')}\r\n\r\n`);
  return socket;
}

/** An answer that should be problem details. */
export async function problemOf(answer: Response) {
  const type = answer.headers.get('content-type')?.split(';')[0];
  return { status: answer.status, type, body: (await answer.json()) as Readonly<Record<string, unknown>> };
}

/** A promise that rejects when the signal aborts, with its reason. */
export function untilAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener('abort', () => reject(signal.reason));
  });
}
