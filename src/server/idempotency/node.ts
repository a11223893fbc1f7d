/** What Node requests and responses have in common, whichever framework passes them on. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type Problem, problemBody, problemType } from '../problem.js';
import { announcesBody, type Body, findRawBody, tapBody } from './body.js';
import { isJsonType, type RequestBody } from './idempotency.js';
import { joinedLines } from './protocol.js';

const keyHeaderName = 'idempotency-key';

/** Every line of the key header. Node joins them in `headers`. */
export function keyLinesOf({ headers, rawHeaders }: IncomingMessage): readonly string[] {
  const joined = headers['idempotency-key'];
  // Joined lines are separated by a comma.
  if (typeof joined === 'string' && !joined.includes(',')) return [joined];
  const lines: string[] = [];
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index]!;
    if (name.length === keyHeaderName.length && name.toLowerCase() === keyHeaderName)
      lines.push(rawHeaders[index + 1]!);
  }
  // The requests of some adapters, for cloud functions, have no raw lines.
  return lines.length > 0 ? lines : joinedLines(joined);
}

// Each header by its own name: looking names up in a loop costs several times as much.

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
 * The body of a request: its bytes if they were kept or nobody has read them, otherwise the result of a parser.
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

/** Undefined: the client disconnected before the whole body had arrived. */
type Found = RequestBody | 'too-large' | undefined;

export function contentOf(body: Body, isJson: boolean): Found {
  if (body.kind === 'bytes') {
    // An empty body counts as no body, announced or not.
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

/** Refuses numbers that may have lost precision, because two different numbers may have become equal. */
function refuseInexact(parsed: unknown): void {
  JSON.stringify(parsed, (_name, value) => {
    if (typeof value === 'number' && Number.isInteger(value) && !Number.isSafeInteger(value)) {
      const advice = 'mount express.json({ verify: rawBody }), so that its digits are compared';
      throw new TypeError(`idempotency: the body holds a number that JavaScript cannot hold exactly; ${advice}`);
    }
    return value;
  });
}

/** Answers in place of the handler, through Node's own response. */
export function sendProblem(response: ServerResponse, problem: Problem): void {
  response.statusCode = problem.status;
  response.setHeader('Content-Type', `${problemType}; charset=utf-8`);
  for (const [name, value] of Object.entries(problem.headers ?? {})) response.setHeader(name, value);
  response.end(problemBody(problem));
}
