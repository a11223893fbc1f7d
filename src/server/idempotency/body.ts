/**
 * Body: the bytes of a request, seen without taking them from whoever parses them.
 *
 * Promise: the request can be read afterwards as if nobody had looked; no more is kept than the limit.
 */
import type { IncomingMessage } from 'node:http';
import { asMicrotask } from '../../core/event-loop.js';
import { listOf } from '../../core/list-of.js';

/** The bytes, or why there are none: longer than the limit, or the client left in the middle. */
export type Body =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array }
  | { readonly kind: 'too-large' }
  | { readonly kind: 'gone' };

// A property that any copy of this package finds.
const rawBodyKey = Symbol.for('holdfast.rawBody');

interface WithRawBody {
  [rawBodyKey]?: Uint8Array;
}

/** Remembers the bytes of a body for {@link findRawBody}. */
export function putRawBody(request: object, bytes: Uint8Array): void {
  (request as WithRawBody)[rawBodyKey] = bytes;
}

export function findRawBody(request: object): Uint8Array | undefined {
  return (request as WithRawBody)[rawBodyKey];
}

/** Whether a body may come with this head: without either header there is none, but in HTTP/2, whose bodies need no header. */
export function announcesBody(request: IncomingMessage): boolean {
  const { headers, httpVersionMajor } = request;
  const length = headers['content-length'];
  if (length !== undefined) return length !== '0';
  if (httpVersionMajor >= 2) return (request as WithStream).stream?.endAfterHeaders !== true;
  return headers['transfer-encoding'] !== undefined;
}

/** A request of HTTP/2. */
type WithStream = IncomingMessage & { readonly stream?: { readonly endAfterHeaders?: boolean } };

// Shared functions find the tap by it: closures for each request would cost more.
const tapKey = Symbol('holdfast.tap');

type TappedRequest = IncomingMessage & {
  [tapKey]?: BodyTap;
  _read(bytes: number): void;
  readonly _readableState: { readonly ended: boolean };
};

/**
 * Watches the bytes of a request come in.
 */
export function tapBody(request: IncomingMessage, maxBytes: number): BodyTap {
  return new BodyTap(request as TappedRequest, maxBytes);
}

/** The tap of a request, if there is one. */
export function findTap(request: IncomingMessage): BodyTap | undefined {
  return (request as TappedRequest)[tapKey];
}

const noChunks: Uint8Array[] = [];

export class BodyTap {
  private readonly request: TappedRequest;
  private readonly maxBytes: number;
  private readonly inner: IncomingMessage['push'];
  private chunks: Uint8Array[] = noChunks;
  private bytes = 0;
  private isWhole = false;
  private comesUnread = false;
  /** More is asked for in a moment. */
  private isAsking = false;
  private settle: ((body: Body) => void) | undefined = undefined;

  constructor(request: TappedRequest, maxBytes: number) {
    this.request = request;
    this.maxBytes = maxBytes;
    this.inner = request.push;
    request[tapKey] = this;
    // What came before is still there, because nobody has read.
    const early: unknown = request.readableLength > 0 ? request.read() : null;
    if (early !== null) {
      this.take(early, undefined);
      request.unshift(early);
    }
    if (comesByItself(request) ? request.complete : request._readableState.ended) this.isWhole = true;
    else request.push = tappedPush;
  }

  /** All of it: now, if it is there; else when it is, and it comes although nobody reads. */
  body(): Body | Promise<Body> {
    if (this.isWhole) return this.whole();
    const { request } = this;
    if (request.destroyed) return { kind: 'gone' };
    this.comesUnread = true;
    return new Promise((resolve) => {
      const onClose = () => resolve({ kind: 'gone' });
      request.once('close', onClose);
      this.settle = (body) => {
        request.removeListener('close', onClose);
        resolve(body);
      };
      this.pull();
    });
  }

  private pull(): void {
    const { request } = this;
    // All of it may have come by the time that more is asked for.
    if (this.isWhole || request.destroyed) return;
    // If reading has paused, because so much lies there unread.
    if (request.readableLength >= request.readableHighWaterMark) request._read(0);
    else if (!comesByItself(request)) request.read(0);
  }

  push(chunk: unknown, encoding: BufferEncoding | undefined): boolean {
    const { request, inner } = this;
    const wantsMore = Reflect.apply(inner, request, [chunk, encoding]) as boolean;
    if (chunk !== null) this.take(chunk, encoding);
    if (chunk === null || this.bytes > this.maxBytes) {
      this.isWhole = true;
      request.push = inner;
      this.settle?.(this.whole());
    } else if (this.comesUnread && !this.isAsking && !comesByItself(request)) {
      this.isAsking = true;
      asMicrotask(() => {
        this.isAsking = false;
        this.pull();
      });
    }
    return this.comesUnread || wantsMore;
  }

  private take(chunk: unknown, encoding: BufferEncoding | undefined): void {
    const taken = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : (chunk as Uint8Array);
    this.bytes += taken.byteLength;
    if (this.bytes > this.maxBytes) this.chunks = noChunks;
    else if (this.chunks.length === 0) this.chunks = listOf(taken);
    else this.chunks.push(taken);
  }

  private whole(): Body {
    if (this.bytes > this.maxBytes) return { kind: 'too-large' };
    const { chunks } = this;
    return { kind: 'bytes', bytes: chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks) };
  }
}

/** Whether nobody need ask for the bytes: others than Node's requests from a socket, as of HTTP/2, tests and functions in a cloud, wait for that. */
function comesByItself(request: TappedRequest): boolean {
  readOfNode ??= process.getBuiltinModule('node:http').IncomingMessage.prototype._read;
  return request._read === readOfNode;
}

let readOfNode: TappedRequest['_read'] | undefined;

function tappedPush(this: TappedRequest, chunk: unknown, encoding?: BufferEncoding): boolean {
  return this[tapKey]!.push(chunk, encoding);
}
