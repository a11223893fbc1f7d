/**
 * Fault proxy: sits between a client and a real server, and breaks TCP in the ways that networks do.
 *
 * Promise: it changes no byte and no order; a fault applies to open and new connections
 * until it is healed; what a blackhole has held back then arrives, like a network's retransmission.
 * After: Shopify's Toxiproxy, whose toxics most of the faults are.
 */
import type { Duration } from '../core/duration.js';
import { checkArgument, checkOptions, duration, type Field, integer, oneOf, withDefault } from '../core/options.js';

/** The direction that a fault affects: to the server, from the server, or both. */
export type FaultDirection = 'requests' | 'replies' | 'both';

/** The faults that {@link FaultProxy.inject} takes. `direction` is `'both'` by default. */
export type ProxyFault =
  /** Everything arrives later by `delay`. */
  | { readonly kind: 'latency'; readonly delay: Duration; readonly direction?: FaultDirection | undefined }
  /** `bytes` at a time, one piece each `every`. */
  | {
      readonly kind: 'drip';
      readonly bytes: number;
      readonly every: Duration;
      readonly direction?: FaultDirection | undefined;
    }
  /** The connection is reset after this many more bytes; with `'replies'` and 0 the request is carried out and its reply lost. */
  | { readonly kind: 'cut'; readonly afterBytes: number; readonly direction?: FaultDirection | undefined }
  /** Nothing arrives, without an error. */
  | { readonly kind: 'blackhole'; readonly direction?: FaultDirection | undefined }
  /** The server sees its connections end, the client does not; what the client sends is lost, and new connections are half open, too. */
  | { readonly kind: 'half-open' }
  /** Open connections are reset, new ones are refused. */
  | { readonly kind: 'refuse' };

/** Options of {@link faultProxy}. */
export interface FaultProxyOptions {
  /** The server's port. */
  readonly port: number;
  /** The server's host. Default `'127.0.0.1'`. */
  readonly host?: string | undefined;
}

/** What {@link faultProxy} returns. */
export interface FaultProxy {
  /** The port on 127.0.0.1 that clients connect to, from 20000 to 31999. */
  readonly port: number;
  /** The number of open client connections. */
  readonly connections: number;
  /** Replaces the previous fault. Resolves when the fault is in effect. */
  inject(fault: ProxyFault): Promise<void>;
  /** Ends the fault. Half-open connections are reset, all others continue. */
  heal(): Promise<void>;
  /** Resets all open connections, once. */
  reset(): void;
  /** Resets all connections and closes the proxy. Safe to repeat. */
  close(): Promise<void>;
}

/**
 * Starts a TCP proxy in front of a real server, to test how a client fares on a bad network.
 *
 * Needs `node:net`, so Node, Bun or Deno. Like a server it keeps the process alive until `close()`.
 *
 * @throws `OptionsError` at once, for an invalid option or fault.
 * @example
 * ```ts
 * import { createServer } from 'node:http';
 * import { faultProxy } from 'holdfast/testing';
 *
 * const server = createServer((_, response) => response.end('hello')).listen(0, '127.0.0.1');
 * await new Promise((resolve) => server.once('listening', resolve));
 * const proxy = await faultProxy({ port: (server.address() as { port: number }).port });
 * await proxy.inject({ kind: 'cut', direction: 'replies', afterBytes: 0 });
 * const answer = await fetch(`http://127.0.0.1:${proxy.port}`).catch(() => 'the server has done it, and nobody knows');
 * console.log(answer); // the server has done it, and nobody knows
 * await proxy.close();
 * server.close();
 * ```
 */
export async function faultProxy(options: FaultProxyOptions): Promise<FaultProxy> {
  const { port, host } = checkOptions('faultProxy', options, {
    port: integer({ min: 1, max: 65_535 }),
    host: withDefault(hostField, '127.0.0.1'),
  });
  const proxy = new TcpProxy(net(), host, port);
  for (let triesLeft = 100; ; triesLeft--) {
    try {
      await proxy.listen(firstPort + Math.floor(Math.random() * ports));
      return proxy;
    } catch (error) {
      if (triesLeft === 1) throw error;
    }
  }
}

// Systems give higher ports to outgoing connections. One of these could take the port of a proxy that has refused connections and then listens again.
const firstPort = 20_000;
const ports = 12_000;

const hostField: Field<string> = {
  allowed: 'the name or address of a host',
  parse: (value) => (typeof value === 'string' && value !== '' ? value : undefined),
};

function net() {
  const module = globalThis.process?.getBuiltinModule?.('node:net');
  if (module === undefined) throw new Error('faultProxy needs node:net, which this runtime does not have');
  return module;
}

type Net = ReturnType<typeof net>;
type Socket = InstanceType<Net['Socket']>;
type Server = ReturnType<Net['createServer']>;

/** A fault with checked options. */
interface Fault {
  readonly kind: ProxyFault['kind'];
  readonly direction: FaultDirection;
  readonly delayMs: number;
  readonly bytes: number;
}

const kindField = oneOf(['latency', 'drip', 'cut', 'blackhole', 'half-open', 'refuse']);
const direction = withDefault(oneOf(['requests', 'replies', 'both']), 'both');

function checkFault(given: ProxyFault): Fault {
  const kind = checkArgument('faultProxy', 'kind', (given as Partial<ProxyFault> | null | undefined)?.kind, kindField);
  const none = { kind, direction: 'both', delayMs: 0, bytes: 0 } as const;
  switch (kind) {
    case 'latency': {
      const { delay, ...way } = check(given, { kind: kindField, direction, delay: duration({}) });
      return { ...none, ...way, delayMs: delay };
    }
    case 'drip': {
      const fields = { kind: kindField, direction, bytes: integer({ min: 1 }), every: duration({}) };
      const { every, ...way } = check(given, fields);
      return { ...none, ...way, delayMs: every };
    }
    case 'cut': {
      const { afterBytes, ...way } = check(given, { kind: kindField, direction, afterBytes: integer({}) });
      return { ...none, ...way, bytes: afterBytes };
    }
    case 'blackhole':
      return { ...none, ...check(given, { kind: kindField, direction }) };
    default:
      return { ...none, ...check(given, { kind: kindField }) };
  }
}

function check<const Fields extends Readonly<Record<string, Field<unknown>>>>(given: ProxyFault, fields: Fields) {
  return checkOptions('faultProxy', given, fields);
}

class TcpProxy implements FaultProxy {
  port = 0;
  private fault: Fault | undefined = undefined;
  private server: Server | undefined = undefined;
  private isClosed = false;
  private readonly links = new Set<Link>();
  private readonly net: Net;
  private readonly host: string;
  private readonly serverPort: number;

  constructor(net: Net, host: string, serverPort: number) {
    this.net = net;
    this.host = host;
    this.serverPort = serverPort;
  }

  get connections(): number {
    return this.links.size;
  }

  async inject(given: ProxyFault): Promise<void> {
    await this.set(checkFault(given));
  }

  async heal(): Promise<void> {
    await this.set(undefined);
  }

  reset(): void {
    for (const link of [...this.links]) link.reset();
  }

  async close(): Promise<void> {
    this.isClosed = true;
    this.reset();
    await this.stopListening();
  }

  listen(port: number): Promise<void> {
    const server = this.net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (client) => this.link(client));
    this.server = server;
    return new Promise((resolve, reject) => {
      server.once('error', (error) => {
        this.server = undefined;
        reject(error);
      });
      server.listen(port, '127.0.0.1', () => {
        this.port = (server.address() as { readonly port: number }).port;
        resolve();
      });
    });
  }

  private stopListening(): Promise<void> {
    const { server } = this;
    this.server = undefined;
    // `close` calls back only when the last connection has ended, but the port is released at once.
    server?.close();
    return new Promise((resolve) => globalThis.setTimeout(resolve));
  }

  private async set(fault: Fault | undefined): Promise<void> {
    if (this.isClosed) throw new Error('faultProxy: the proxy is closed');
    this.fault = fault;
    if (fault?.kind === 'refuse') {
      this.reset();
      await this.stopListening();
      return;
    }
    for (const link of [...this.links]) link.set(fault);
    if (this.server === undefined) await this.listenAgain();
  }

  /** A process just spawned by another thread shares the port until it has started its own program. */
  private async listenAgain(): Promise<void> {
    for (let triesLeft = 50; ; triesLeft--) {
      try {
        return await this.listen(this.port);
      } catch (error) {
        if (triesLeft === 1) throw error;
        await new Promise((resolve) => globalThis.setTimeout(resolve, 10));
      }
    }
  }

  private link(client: Socket): void {
    const server = this.net.connect({ port: this.serverPort, host: this.host, allowHalfOpen: true });
    const link = new Link(client, server, () => this.links.delete(link));
    this.links.add(link);
    link.set(this.fault);
  }
}

/** A client's connection, and the connection to the server that belongs to it. */
class Link {
  private readonly client: Socket;
  private readonly server: Socket;
  private readonly requests: Flow;
  private readonly replies: Flow;
  private isHalfOpen = false;

  constructor(client: Socket, server: Socket, onEnd: () => void) {
    this.client = client;
    this.server = server;
    const reset = () => this.reset();
    this.requests = new Flow(client, server, reset);
    this.replies = new Flow(server, client, reset);
    client.setNoDelay(true);
    server.setNoDelay(true);
    for (const socket of [client, server]) {
      // Errors at the server's end of a half-open connection are not passed on.
      socket.on('error', () => (this.isHalfOpen && socket === server ? undefined : this.reset()));
      socket.on('close', () => {
        if (client.destroyed && server.destroyed) onEnd();
      });
    }
  }

  set(fault: Fault | undefined): void {
    if (this.isHalfOpen && fault?.kind !== 'half-open') return this.reset();
    if (fault?.kind === 'half-open' && !this.isHalfOpen) {
      this.isHalfOpen = true;
      this.replies.drop();
      this.requests.drop();
      this.server.destroy();
      return;
    }
    this.requests.set(fault?.direction === 'replies' ? undefined : fault);
    this.replies.set(fault?.direction === 'requests' ? undefined : fault);
  }

  /** Resets both ends. */
  reset(): void {
    this.requests.drop();
    this.replies.drop();
    // A socket that is still connecting cannot be reset.
    for (const socket of [this.client, this.server]) {
      if (socket.connecting) socket.destroy();
      else if (!socket.destroyed) socket.resetAndDestroy();
    }
  }
}

interface Piece {
  /** Undefined: the end of the stream. */
  readonly bytes: Uint8Array | undefined;
  readonly dueMs: number;
}

/** One direction of a connection. Bytes in flight stay in order, whatever faults occur in between. */
class Flow {
  private fault: Fault | undefined = undefined;
  private readonly pieces: Piece[] = [];
  private lastDueMs = 0;
  private bytesLeft = 0;
  private isDropping = false;
  private timer: ReturnType<typeof globalThis.setTimeout> | undefined = undefined;
  private readonly from: Socket;
  private readonly to: Socket;
  private readonly reset: () => void;

  constructor(from: Socket, to: Socket, reset: () => void) {
    this.from = from;
    this.to = to;
    this.reset = reset;
    from.on('data', (bytes: Uint8Array) => this.take(bytes));
    from.on('end', () => this.take(undefined));
    to.on('drain', () => this.pump());
  }

  set(fault: Fault | undefined): void {
    this.fault = fault;
    this.bytesLeft = fault?.bytes ?? 0;
    this.pump();
  }

  /** From now on everything is dropped. */
  drop(): void {
    this.isDropping = true;
    globalThis.clearTimeout(this.timer);
    this.pieces.length = 0;
    this.from.resume();
  }

  private take(bytes: Uint8Array | undefined): void {
    if (this.isDropping) return;
    const { fault } = this;
    const nowMs = performance.now();
    if (bytes !== undefined && fault?.kind === 'drip') {
      this.lastDueMs = Math.max(this.lastDueMs, nowMs);
      for (let start = 0; start < bytes.length; start += fault.bytes) {
        this.lastDueMs += fault.delayMs;
        this.pieces.push({ bytes: bytes.subarray(start, start + fault.bytes), dueMs: this.lastDueMs });
      }
    } else {
      const delayMs = fault?.kind === 'latency' ? fault.delayMs : 0;
      this.lastDueMs = Math.max(this.lastDueMs, nowMs + delayMs);
      this.pieces.push({ bytes, dueMs: this.lastDueMs });
    }
    this.pump();
  }

  /** Passes on what is due, as far as the receiver accepts it. */
  private pump(): void {
    globalThis.clearTimeout(this.timer);
    if (this.isDropping) return;
    while (this.fault?.kind !== 'blackhole' && this.pieces.length > 0 && !this.to.writableNeedDrain) {
      const [piece] = this.pieces;
      const waitMs = piece!.dueMs - performance.now();
      if (waitMs > 0) {
        this.timer = globalThis.setTimeout(() => this.pump(), Math.ceil(waitMs));
        break;
      }
      this.pieces.shift();
      if (!this.pass(piece!.bytes)) return;
    }
    // Bytes that cannot be passed on wait at the sender, by flow control, so that little is kept here.
    const isStuck = this.fault?.kind === 'blackhole' || this.to.writableNeedDrain;
    if (isStuck || this.pieces.length > mostPieces) this.from.pause();
    else this.from.resume();
  }

  private pass(bytes: Uint8Array | undefined): boolean {
    if (bytes === undefined) {
      this.to.end();
      return true;
    }
    if (this.fault?.kind === 'cut') {
      if (bytes.length >= this.bytesLeft) {
        // `end` would close the connection properly. Instead it is reset after what has been written.
        if (this.bytesLeft > 0) this.to.write(bytes.subarray(0, this.bytesLeft), this.reset);
        else this.reset();
        this.isDropping = true;
        return false;
      }
      this.bytesLeft -= bytes.length;
    }
    this.to.write(bytes);
    return true;
  }
}

/** How many pieces may be in flight in one direction before the sender has to wait. */
const mostPieces = 10_000;
