/**
 * Refresh: an internal request that renews a response while clients are served the old one.
 *
 * Promise: the server handles it like the request that triggered it: same URL, same headers, through all mounted middleware. Its answer goes only to
 * the cache.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** Headers that were meant for one client and one connection. */
const dropped: ReadonlySet<string> = /* @__PURE__ */ new Set([
  ...['connection', 'keep-alive', 'te', 'upgrade', 'expect', 'content-length', 'transfer-encoding', 'range'],
  ...['if-none-match', 'if-modified-since', 'if-match', 'if-unmodified-since', 'if-range', 'cache-control', 'pragma'],
  ...['request-deadline-ms', 'grpc-timeout', 'x-envoy-expected-rq-timeout-ms', 'idempotency-key'],
]);
const addresses = ['remoteAddress', 'remotePort', 'remoteFamily', 'localAddress', 'localPort', 'encrypted'] as const;

/** Creates a copy of a request, and a response that is not connected to anything. */
export function detachedExchange(
  like: IncomingMessage,
  url: string,
): { readonly request: IncomingMessage; readonly response: ServerResponse } {
  const http = process.getBuiltinModule('node:http');
  const socket = deadEnd(like.socket);
  const request = new http.IncomingMessage(socket);
  request.method = 'GET';
  request.url = url;
  [request.httpVersion, request.httpVersionMajor, request.httpVersionMinor] = ['1.1', 1, 1];
  request.rawHeaders = [];
  request.headers = {};
  for (const [name, value] of Object.entries(like.headers)) {
    // Names with a colon belong to HTTP/2.
    if (dropped.has(name) || name.startsWith(':') || value === undefined) continue;
    request.headers[name] = value;
    for (const one of [value].flat()) request.rawHeaders.push(name, one);
  }
  const authority = like.headers[':authority'];
  if (request.headers.host === undefined && typeof authority === 'string') request.headers.host = authority;
  request.complete = true;
  request.push(null);
  const response = new http.ServerResponse(request);
  response.assignSocket(socket);
  // What a server does for its connections: a pipe waits for it and checks whether it has to wait.
  socket.on('drain', () => response.emit('drain'));
  Object.defineProperty(response, 'writableNeedDrain', { get: () => socket.writableNeedDrain });
  response.once('finish', () => {
    response.detachSocket(socket);
    socket.destroy();
    response.emit('close');
  });
  return { request, response };
}

function deadEnd(like: Socket): Socket {
  const { Duplex } = process.getBuiltinModule('node:stream');
  const socket = new Duplex({ read() {}, write: (_chunk, _encoding, done) => done() });
  const same = () => socket;
  for (const name of addresses) {
    Object.defineProperty(socket, name, {
      value: (like as unknown as Record<string, unknown>)[name],
      enumerable: true,
    });
  }
  // Methods that frameworks call on a socket.
  const methods = {
    setTimeout: same,
    setNoDelay: same,
    setKeepAlive: same,
    ref: same,
    unref: same,
    address: () => ({}),
  };
  return Object.assign(socket, methods) as unknown as Socket;
}
