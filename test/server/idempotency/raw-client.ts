/** A client over a bare socket. It sees every byte of an answer, and can leave at any of them. */
import { once } from 'node:events';
import { connect } from 'node:net';

export interface RawRequest {
  readonly method?: string;
  readonly path?: string;
  readonly headers?: readonly (readonly [name: string, value: string])[];
  readonly body?: string | Uint8Array;
}

export interface RawAnswer {
  readonly statusLine: string;
  readonly status: number;
  /** The headers in the order in which they were written. */
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly body: Buffer;
  readonly trailers: readonly (readonly [name: string, value: string])[];
  /** Everything that was received. */
  readonly bytes: Buffer;
}

/** The bytes of a request. The connection is closed after its answer. */
export function requestBytes({ method = 'POST', path = '/', headers = [], body }: RawRequest): Buffer {
  const bytes = body === undefined ? Buffer.alloc(0) : Buffer.from(body as Uint8Array);
  const lines = [`${method} ${path} HTTP/1.1`, 'Host: test', 'Connection: close'];
  for (const [name, value] of headers) lines.push(`${name}: ${value}`);
  if (body !== undefined) lines.push(`Content-Length: ${bytes.byteLength}`);
  return Buffer.concat([Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1'), bytes]);
}

/** Sends a request and reads its answer to the end, or until the signal is aborted. */
export async function send(port: number, request: RawRequest, signal?: AbortSignal): Promise<RawAnswer> {
  const bytes = await exchange(port, requestBytes(request), signal);
  return parseAnswer(bytes, request.method === 'HEAD');
}

/** Sends bytes, and reads until the server closes the connection or the signal is aborted. */
export async function exchange(port: number, bytes: Uint8Array, signal?: AbortSignal): Promise<Buffer> {
  const socket = connect({ port, host: '127.0.0.1', signal });
  const chunks: Buffer[] = [];
  socket.on('data', (chunk) => chunks.push(chunk));
  // A reset also counts as an answer, which ends in the middle.
  socket.on('error', () => {});
  socket.write(bytes);
  await new Promise((resolve) => socket.once('close', resolve));
  return Buffer.concat(chunks);
}

/** Sends bytes and leaves, either after this many of them or after this many bytes of the answer. */
export async function sendAndLeave(
  port: number,
  bytes: Uint8Array,
  leave: { readonly afterSent: number } | { readonly afterReceived: number },
): Promise<void> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  const closed = new Promise((resolve) => socket.once('close', resolve));
  await once(socket, 'connect');
  if ('afterSent' in leave) {
    socket.write(bytes.subarray(0, leave.afterSent), () => socket.destroy());
  } else {
    let received = 0;
    socket.on('data', (chunk) => {
      received += chunk.byteLength;
      if (received >= leave.afterReceived) socket.destroy();
    });
    socket.write(bytes);
  }
  await closed;
}

export function parseAnswer(bytes: Buffer, isHead = false): RawAnswer {
  const headEnd = bytes.indexOf('\r\n\r\n');
  if (headEnd < 0) return { statusLine: '', status: 0, headers: [], body: Buffer.alloc(0), trailers: [], bytes };
  const [statusLine = '', ...lines] = bytes.subarray(0, headEnd).toString('latin1').split('\r\n');
  const status = Number(statusLine.split(' ')[1]);
  const rest = bytes.subarray(headEnd + 4);
  // Early hints and similar heads arrive before the answer itself.
  if (status >= 100 && status < 200) return { ...parseAnswer(rest, isHead), bytes };
  const headers = lines.map(pairOf);
  const isChunked = headers.some(([name, value]) => name.toLowerCase() === 'transfer-encoding' && value === 'chunked');
  const { body, trailers } = isChunked && !isHead ? dechunked(rest) : { body: rest, trailers: [] };
  return { statusLine, status, headers, body, trailers, bytes };
}

export function headerOf(answer: RawAnswer, name: string): string | undefined {
  return answer.headers.find(([one]) => one.toLowerCase() === name.toLowerCase())?.[1];
}

function pairOf(line: string): [string, string] {
  const colon = line.indexOf(':');
  return [line.slice(0, colon), line.slice(colon + 1).trim()];
}

function dechunked(bytes: Buffer): Pick<RawAnswer, 'body' | 'trailers'> {
  const chunks: Buffer[] = [];
  let at = 0;
  for (;;) {
    const lineEnd = bytes.indexOf('\r\n', at);
    if (lineEnd < 0) throw new Error('the last chunk is missing');
    const length = Number.parseInt(bytes.subarray(at, lineEnd).toString('latin1'), 16);
    at = lineEnd + 2;
    if (length === 0) break;
    chunks.push(bytes.subarray(at, at + length));
    at += length + 2;
  }
  const lines = bytes.subarray(at).toString('latin1').split('\r\n');
  return { body: Buffer.concat(chunks), trailers: lines.filter((line) => line !== '').map(pairOf) };
}
