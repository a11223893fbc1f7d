/** Real servers on loopback ports of their own. The test scripts them, and they end with its scope. */
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo, createServer as createNetServer, type Socket } from 'node:net';

export interface Received {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
  /** The client's port, which differs for each connection. */
  readonly port: number;
}

export interface ScriptedServer extends AsyncDisposable {
  readonly origin: string;
  readonly received: Received[];
}

type Script = (request: Received, response: ServerResponse, number: number) => void;

/** An HTTP server. The script is given each request with its body, and the number of the request from 1. */
export async function httpServer(script: Script): Promise<ScriptedServer> {
  const received: Received[] = [];
  const server = createHttpServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('error', () => {});
    request.on('end', () => {
      const { method = '', url = '', headers } = request;
      const body = Buffer.concat(chunks).toString('latin1');
      const one = { method, url, headers, body, port: request.socket.remotePort ?? 0 };
      received.push(one);
      script(one, response, received.length);
    });
  });
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  return {
    origin: originOf(server.address() as AddressInfo),
    received,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((done) => server.close(done));
      server.closeAllConnections();
      await closed;
    },
  };
}

export interface RawConnection {
  readonly socket: Socket;
  /** The number of the connection, from 1. */
  readonly number: number;
  /** The number of the request on this connection, from 1. */
  readonly request: number;
}

export interface RawServer extends AsyncDisposable {
  readonly origin: string;
  /** The number of all requests. */
  readonly requests: number;
  /** The number of all connections. */
  readonly connections: number;
}

/** A server below HTTP. The script is called for each chunk that looks like a request, and may do anything with the socket. */
export async function rawServer(script: (connection: RawConnection) => void): Promise<RawServer> {
  const sockets = new Set<Socket>();
  let connections = 0;
  let requests = 0;
  const server = createNetServer((socket) => {
    sockets.add(socket);
    const number = ++connections;
    let request = 0;
    socket.on('error', () => {});
    socket.on('close', () => sockets.delete(socket));
    socket.on('data', (chunk) => {
      if (!/^[A-Z]+ \S+ HTTP\/1\.1\r\n/.test(chunk.toString('latin1'))) return;
      requests++;
      script({ socket, number, request: ++request });
    });
  });
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  return {
    origin: originOf(server.address() as AddressInfo),
    get requests() {
      return requests;
    },
    get connections() {
      return connections;
    },
    async [Symbol.asyncDispose]() {
      const closed = new Promise((done) => server.close(done));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** A complete answer of HTTP/1.1, written by hand. */
export function answerText(status: number, body: string, headers: readonly string[] = []): string {
  return [`HTTP/1.1 ${status} Scripted`, `content-length: ${Buffer.byteLength(body)}`, ...headers, '', body].join(
    '\r\n',
  );
}

function originOf({ port }: AddressInfo): string {
  return `http://127.0.0.1:${port}`;
}
