/**
 * What requests and responses of Node have in common, whichever framework they come through.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type Problem, problemBody, problemType } from '../problem.js';
import { announcesBody, type Body, findRawBody, tapBody } from './body.js';
import { isJsonType, type RequestBody } from './idempotency.js';
import { joinedLines } from './protocol.js';

const keyHeaderName = 'idempotency-key';

/** Every line of the key's header: Node joins them in `headers`. */
export function keyLinesOf({ headers, rawHeaders }: IncomingMessage): readonly string[] {
  const joined = headers['idempotency-key'];
  // Lines that were joined have a comma between them.
  if (typeof joined === 'string' && !joined.includes(',')) return [joined];
  const lines: string[] = [];
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index]!;
    if (name.length === keyHeaderName.length && name.toLowerCase() === keyHeaderName)
      lines.push(rawHeaders[index + 1]!);
  }
  // The requests of adapters, for functions in a cloud, may have no lines.
  return lines.length > 0 ? lines : joinedLines(joined);
}

// Each header by its own name: to look names up in turn costs several times as much.

export function contentTypeOf({ headers }: IncomingMessage): string | undefined {
  return oneLine(headers['content-type']);
}

export function traceparentOf({ headers }: IncomingMessage): string | undefined {
  return oneLine(headers.traceparent);
}

function oneLine(value: string | readonly string[] | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

/**
 * The body of a request: its bytes, where they were kept or nobody has read them, else what a parser made of them.
 *
 * @param parsed - What a parser of the framework has left, if one has run.
 */
export function bodyOf(request: IncomingMessage, parsed: unknown, maxBytes: number): Found | Promise<Found> {
  const isJson = isJsonType(contentTypeOf(request));
  const raw = findRawBody(request);
  if (raw !== undefined) return { content: raw, isJson };
  if (!announcesBody(request)) return { content: undefined, isJson: false };
  if (request.readableDidRead) return parsedBody(parsed, isJson);
  const body = tapBody(request, maxBytes).body();
  return body instanceof Promise ? body.then((all) => contentOf(all, isJson)) : contentOf(body, isJson);
}

/** Undefined: the client was gone before all of it was there. */
type Found = RequestBody | 'too-large' | undefined;

export function contentOf(body: Body, isJson: boolean): Found {
  if (body.kind === 'bytes') {
    // An empty body is none, whether it was announced or not.
    return body.bytes.byteLength === 0 ? { content: undefined, isJson: false } : { content: body.bytes, isJson };
  }
  return body.kind === 'too-large' ? 'too-large' : undefined;
}

function parsedBody(parsed: unknown, isJson: boolean): RequestBody {
  if (typeof parsed === 'string' || parsed instanceof Uint8Array) return { content: parsed, isJson };
  const text = JSON.stringify(parsed);
  if (text === undefined) {
    const advice = 'mount idempotency() before what reads it, or keep the bytes with rawBody';
    throw new TypeError(`idempotency: the body was read and is not in request.body; ${advice}`);
  }
  if (/\d{16}/.test(text)) refuseInexact(parsed);
  return { content: text, isJson: true };
}

/** Two numbers that differ may have become one. */
function refuseInexact(parsed: unknown): void {
  JSON.stringify(parsed, (_name, value) => {
    if (typeof value === 'number' && Number.isInteger(value) && !Number.isSafeInteger(value)) {
      const advice = 'mount express.json({ verify: rawBody }), so that its digits are compared';
      throw new TypeError(`idempotency: the body holds a number that JavaScript cannot hold exactly; ${advice}`);
    }
    return value;
  });
}

/** Answers in place of the handler, over Node's own response. */
export function sendProblem(response: ServerResponse, problem: Problem): void {
  response.statusCode = problem.status;
  response.setHeader('Content-Type', `${problemType}; charset=utf-8`);
  for (const [name, value] of Object.entries(problem.headers ?? {})) response.setHeader(name, value);
  response.end(problemBody(problem));
}
