/**
 * Refresh: a request that no client sent, so that a response can be made anew while its readers are shown the old one.
 *
 * Promise: the server handles it as it would the request that made it due: same URL, same headers, through everything that is
 * mounted; its answer goes to nobody but the cache.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** What made sense for one client and one connection. */
const dropped: ReadonlySet<string> = /* @__PURE__ */ new Set([
  ...['connection', 'keep-alive', 'te', 'upgrade', 'expect', 'content-length', 'transfer-encoding', 'range'],
  ...['if-none-match', 'if-modified-since', 'if-match', 'if-unmodified-since', 'if-range', 'cache-control', 'pragma'],
  ...['request-deadline-ms', 'grpc-timeout', 'x-envoy-expected-rq-timeout-ms', 'idempotency-key'],
]);
const addresses = ['remoteAddress', 'remotePort', 'remoteFamily', 'localAddress', 'localPort', 'encrypted'] as const;

/** A request like another one, and a response that leads nowhere. */
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
    // Those with a colon are of HTTP/2.
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
  // What a server does for its connections: who pipes waits for it, and looks whether to wait.
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
  // What frameworks call on a socket.
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
