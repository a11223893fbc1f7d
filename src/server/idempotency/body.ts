/**
 * Body: the bytes of a request, seen without taking them from whoever parses them.
 *
 * Promise: the request can be read afterwards as if nobody had looked; no more is kept than the limit.
 */
import type { IncomingMessage } from 'node:http';

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

/** Whether a body comes with these headers: without either there is none. */
export function announcesBody({ headers }: Pick<IncomingMessage, 'headers'>): boolean {
  const length = headers['content-length'];
  return headers['transfer-encoding'] !== undefined || (length !== undefined && length !== '0');
}

/**
 * Watches the bytes of a request come in.
 *
 * @param keepsComing - Lets them come although nobody reads yet: for whoever must know all of them before he goes on.
 */
export function tapBody(request: IncomingMessage, maxBytes: number, keepsComing: boolean): Promise<Body> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  const take = (chunk: unknown, encoding?: BufferEncoding) => {
    const taken = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : (chunk as Uint8Array);
    bytes += taken.byteLength;
    if (bytes <= maxBytes) chunks.push(taken);
    else chunks.length = 0;
  };
  const whole = (): Body =>
    bytes > maxBytes ? { kind: 'too-large' } : { kind: 'bytes', bytes: Buffer.concat(chunks) };

  // What came before is still there, because nobody has read.
  const early: unknown = request.readableLength > 0 ? request.read() : null;
  if (early !== null) {
    take(early);
    request.unshift(early);
  }
  if (request.complete) return Promise.resolve(whole());
  if (request.destroyed) return Promise.resolve({ kind: 'gone' });

  return new Promise((resolve) => {
    const { push } = request;
    const onClose = () => settle({ kind: 'gone' });
    const settle = (body: Body) => {
      request.push = push;
      request.removeListener('close', onClose);
      resolve(body);
    };
    request.push = (chunk: unknown, encoding?: BufferEncoding) => {
      const wantsMore = Reflect.apply(push, request, [chunk, encoding]) as boolean;
      if (chunk === null) settle(whole());
      else take(chunk, encoding);
      if (bytes > maxBytes) settle(whole());
      return keepsComing || wantsMore;
    };
    request.once('close', onClose);
  });
}
