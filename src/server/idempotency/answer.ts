/** Answer: encodes a captured answer as bytes, and replays it. */
import type { ServerResponse } from 'node:http';
import { Slab } from '../../core/slab.js';
import { bodyOf, type StoredAnswer } from '../capture.js';
import { setHeaders, setWords } from '../response-head.js';
import { isDeniedHeader, replayMarks } from './protocol.js';

/** First byte of a stored answer, so that a later format can be told from this one. */
const form = 1;
const prefixBytes = 5;
/** A larger body is not copied again. */
const largestText = 16_384;
const slab = /* @__PURE__ */ new Slab();
const encoder = /* @__PURE__ */ new TextEncoder();
const decoder = /* @__PURE__ */ new TextDecoder();

/** Layout: format byte, length of the head, the head as JSON, the body unchanged. */
export function encodeAnswer(answer: StoredAnswer): Uint8Array {
  const { status, statusMessage, headers, body, isText } = answer;
  const head = JSON.stringify([status, statusMessage, headers]);
  const bytes = slab.take(prefixBytes + head.length + body.byteLength);
  for (let index = 0; index < head.length; index++) {
    const code = head.charCodeAt(index);
    // How the body was given matters only for such a head.
    if (code >= 0x80) return encoded(JSON.stringify([status, statusMessage, headers, isText]), body);
    bytes[prefixBytes + index] = code;
  }
  return begun(bytes, head.length, body);
}

/** Encodes a head with characters outside ASCII. */
function encoded(text: string, body: Uint8Array): Uint8Array {
  const head = encoder.encode(text);
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

/** Undefined for bytes that neither this version of the package nor an earlier one has written. */
export function decodeAnswer(bytes: Uint8Array): StoredAnswer | undefined {
  if (bytes[0] !== form || bytes.length <= prefixBytes) return undefined;
  let headLength = 0;
  for (let index = 1; index < prefixBytes; index++) headLength = headLength * 256 + bytes[index]!;
  const headEnd = prefixBytes + headLength;
  // A stored function result begins with the same byte, followed by text, which reads as a length beyond all limits.
  if (headEnd > bytes.length) return undefined;
  const head = decoder.decode(bytes.subarray(prefixBytes, headEnd));
  const [status, statusMessage, headers, isText] = JSON.parse(head) as [number, string, string[], boolean?];
  return { status, statusMessage, headers, body: bytes.subarray(headEnd), isText: isText === true };
}

/** Sends a stored answer through Node's own response. */
export function replay(response: ServerResponse, answer: StoredAnswer, key: string): void {
  const { headers, body, isText } = answer;
  // A header set before us that the first answer did not contain was removed by its handler.
  for (const name of response.getHeaderNames()) {
    if (name === 'transfer-encoding' || !isDeniedHeader(name)) response.removeHeader(name);
  }
  // It was set for another body.
  if (response.hasHeader('content-length')) response.setHeader('Content-Length', body.byteLength);
  setHeaders(response, headers);
  for (const [name, value] of replayMarks(key)) response.setHeader(name, value);
  response.statusCode = answer.status;
  if (answer.statusMessage !== '') setWords(response, answer.statusMessage);
  if (isText || body.byteLength > largestText) response.end(bodyOf(answer));
  // Encoded as one byte per character, the body goes out in one piece with the head.
  else response.end(Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString('latin1'), 'latin1');
}
