/**
 * Answer: how a captured answer is written down as bytes, and given again.
 */
import type { ServerResponse } from 'node:http';
import { Slab } from '../../core/slab.js';
import { headersOf, type StoredAnswer, setWords } from '../capture.js';
import { isDeniedHeader, replayMarks } from './protocol.js';

/** First byte of what is stored, so that a later form can be told from this one. */
const form = 1;
const prefixBytes = 5;
/** A larger body is not copied once more. */
const largestText = 16_384;
const slab = /* @__PURE__ */ new Slab();
const encoder = /* @__PURE__ */ new TextEncoder();
const decoder = /* @__PURE__ */ new TextDecoder();

/** Form, length of the head, head as JSON, and the body as it is. */
export function encodeAnswer(answer: StoredAnswer): Uint8Array {
  const { status, statusMessage, headers, body } = answer;
  const head = JSON.stringify([status, statusMessage, headers]);
  const bytes = slab.take(prefixBytes + head.length + body.byteLength);
  for (let index = 0; index < head.length; index++) {
    const code = head.charCodeAt(index);
    if (code >= 0x80) return encoded(encoder.encode(head), body);
    bytes[prefixBytes + index] = code;
  }
  return begun(bytes, head.length, body);
}

/** For a head of other characters than ASCII. */
function encoded(head: Uint8Array, body: Uint8Array): Uint8Array {
  const bytes = slab.take(prefixBytes + head.byteLength + body.byteLength);
  bytes.set(head, prefixBytes);
  return begun(bytes, head.byteLength, body);
}

function begun(bytes: Uint8Array, headLength: number, body: Uint8Array): Uint8Array {
  bytes[0] = form;
  for (let index = 0; index < 4; index++) bytes[1 + index] = headLength >>> (24 - 8 * index);
  bytes.set(body, prefixBytes + headLength);
  return bytes;
}

/** Undefined for bytes that no version of this package before or with this one has written. */
export function decodeAnswer(bytes: Uint8Array): StoredAnswer | undefined {
  if (bytes[0] !== form || bytes.length <= prefixBytes) return undefined;
  const headEnd = prefixBytes + new DataView(bytes.buffer, bytes.byteOffset).getUint32(1);
  // The result of a function begins with the same byte, and then with a text, which makes a length beyond all limits.
  if (headEnd > bytes.length) return undefined;
  const head = decoder.decode(bytes.subarray(prefixBytes, headEnd));
  const [status, statusMessage, headers] = JSON.parse(head) as [number, string, string[]];
  return { status, statusMessage, headers, body: bytes.subarray(headEnd) };
}

/** Gives an answer again, over Node's own response. */
export function replay(response: ServerResponse, answer: StoredAnswer, key: string): void {
  const { headers, body } = answer;
  // What was set before us and not sent with the first answer, the handler had taken away.
  for (const name of response.getHeaderNames()) {
    if (name === 'transfer-encoding' || !isDeniedHeader(name)) response.removeHeader(name);
  }
  // It was set for another body.
  if (response.hasHeader('content-length')) response.setHeader('Content-Length', body.byteLength);
  for (const [name, values] of headersOf(headers)) response.setHeader(name, values.length === 1 ? values[0]! : values);
  for (const [name, value] of replayMarks(key)) response.setHeader(name, value);
  response.statusCode = answer.status;
  if (answer.statusMessage !== '') setWords(response, answer.statusMessage);
  if (body.byteLength > largestText) response.end(body);
  // As one byte per character it goes out in one piece with the head.
  else response.end(Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString('latin1'), 'latin1');
}
