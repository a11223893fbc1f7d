/**
 * Answer: how a captured answer is written down as bytes, and given again.
 */
import type { ServerResponse } from 'node:http';
import { headersOf, type StoredAnswer } from '../capture.js';
import { isDeniedHeader, replayMarks } from './protocol.js';

/** First byte of what is stored, so that a later form can be told from this one. */
const form = 1;
const prefixBytes = 5;
const encoder = /* @__PURE__ */ new TextEncoder();
const decoder = /* @__PURE__ */ new TextDecoder();

/** Form, length of the head, head as JSON, and the body as it is. */
export function encodeAnswer(answer: StoredAnswer): Uint8Array {
  const { status, statusMessage, headers, body } = answer;
  const head = encoder.encode(JSON.stringify([status, statusMessage, headers]));
  const bytes = new Uint8Array(prefixBytes + head.byteLength + body.byteLength);
  bytes[0] = form;
  new DataView(bytes.buffer).setUint32(1, head.byteLength);
  bytes.set(head, prefixBytes);
  bytes.set(body, prefixBytes + head.byteLength);
  return bytes;
}

/** Undefined for bytes that no version of this package before or with this one has written. */
export function decodeAnswer(bytes: Uint8Array): StoredAnswer | undefined {
  if (bytes[0] !== form) return undefined;
  const headEnd = prefixBytes + new DataView(bytes.buffer, bytes.byteOffset).getUint32(1);
  const head = decoder.decode(bytes.subarray(prefixBytes, headEnd));
  const [status, statusMessage, headers] = JSON.parse(head) as [number, string, string[]];
  return { status, statusMessage, headers, body: bytes.subarray(headEnd) };
}

/** Gives an answer again, over Node's own response. */
export function replay(response: ServerResponse, answer: StoredAnswer, key: string): void {
  const headers = headersOf(answer.headers);
  const names = new Set(Array.from(headers.keys(), (name) => name.toLowerCase()));
  // What was set before us and not sent with the first answer, the handler had taken away.
  for (const name of response.getHeaderNames()) {
    if (!names.has(name) && !isDeniedHeader(name)) response.removeHeader(name);
  }
  for (const [name, values] of headers) response.setHeader(name, values.length === 1 ? values[0]! : values);
  for (const [name, value] of replayMarks(key)) response.setHeader(name, value);
  response.statusCode = answer.status;
  // Without words of its own Node says the usual ones.
  if (answer.statusMessage !== '') response.statusMessage = answer.statusMessage;
  response.end(answer.body);
}
