/** Entry: a response as the cache stores it, its encoding, and how it is sent again. */
import type { ServerResponse } from 'node:http';
import type { Serializer } from '../../coordination/cache/cache.js';
import { bodyOf, type StoredAnswer } from '../capture.js';
import { type AnswerHead, headersOf, setWords } from '../response-head.js';
import { fieldsOf, type ResponseLifetime } from './storability.js';

/** A stored response, and the requests that it is valid for. */
export interface KeptResponse {
  readonly kind: 'response';
  /** What the handler set. Headers set before it ran are set again for each request. */
  readonly answer: StoredAnswer;
  /** Headers that were set before, and that the handler removed. */
  readonly removed: readonly string[];
  /** The request headers that the response depends on, and their values. */
  readonly vary: readonly string[];
  readonly variant: string;
  readonly initialAgeMs: number;
  /** Known when the entry is filled; not stored. */
  readonly lifetime: ResponseLifetime | undefined;
  readonly tags: readonly string[];
}

/** A response, or a note that there is none to store: for a while requests go straight to the handler. */
export type Entry = KeptResponse | { readonly kind: 'pass' };

export const pass: Entry = { kind: 'pass' };

/** First byte of a stored entry; another value is another format, or not a response. */
const form = 1;
const passForm = 2;
const prefixBytes = 5;

type StoredHead = readonly [
  ...[status: number, statusMessage: string, headers: string[], removed: string[]],
  ...[vary: string[], variant: string, initialAgeMs: number, isText?: boolean],
];

/** Layout: format byte, length of the head, the head as JSON, the body unchanged. */
export const entrySerializer: Serializer<Entry> = {
  encode(entry) {
    if (entry.kind === 'pass') return Uint8Array.of(passForm);
    const { answer, removed, vary, variant, initialAgeMs } = entry;
    const { status, statusMessage, headers, body, isText } = answer;
    const head = new TextEncoder().encode(
      JSON.stringify([status, statusMessage, headers, removed, vary, variant, initialAgeMs, isText]),
    );
    const bytes = new Uint8Array(prefixBytes + head.byteLength + body.byteLength);
    bytes[0] = form;
    new DataView(bytes.buffer).setUint32(1, head.byteLength);
    bytes.set(head, prefixBytes);
    bytes.set(body, prefixBytes + head.byteLength);
    return bytes;
  },
  decode(bytes) {
    if (bytes[0] === passForm) return pass;
    if (bytes[0] !== form) throw new TypeError('these bytes are no response of this release');
    const headEnd = prefixBytes + new DataView(bytes.buffer, bytes.byteOffset).getUint32(1);
    const head = JSON.parse(new TextDecoder().decode(bytes.subarray(prefixBytes, headEnd))) as StoredHead;
    const [status, statusMessage, headers, removed, vary, variant, initialAgeMs, isText] = head;
    const answer = { status, statusMessage, headers, body: bytes.subarray(headEnd), isText: isText === true };
    return { kind: 'response', answer, removed, vary, variant, initialAgeMs, lifetime: undefined, tags: [] };
  },
};

/** The headers of a response before its handler ran. */
export type HeadersBefore = Readonly<Record<string, unknown>>;

/** Headers that belong to one connection. RFC 9110, section 7.6.1. */
const hopByHop: ReadonlySet<string> = /* @__PURE__ */ new Set([
  ...['connection', 'keep-alive', 'proxy-connection', 'proxy-authenticate', 'te', 'transfer-encoding', 'upgrade'],
]);
/** Headers that the cache sets itself. */
const ownHeaders: ReadonlySet<string> = /* @__PURE__ */ new Set(['age', 'cache-status', 'date']);

/** The headers that the handler set and removed, without those of the connection. The date belongs to the answer, whoever sends it. */
export function handlersShare(
  { status, statusMessage, headers }: AnswerHead,
  before: HeadersBefore,
  wallMs: number,
): { readonly head: AnswerHead; readonly removed: readonly string[] } {
  const listed = new Set(
    (fieldsOf(headers).get('connection') ?? '')
      .toLowerCase()
      .split(',')
      .map((name) => name.trim()),
  );
  const names = new Set<string>();
  const own: string[] = [];
  let date = new Date(wallMs).toUTCString();
  for (const [name, values] of headersOf(headers)) {
    const lowerCaseName = name.toLowerCase();
    names.add(lowerCaseName);
    if (lowerCaseName === 'date') date = values[0]!;
    if (hopByHop.has(lowerCaseName) || ownHeaders.has(lowerCaseName) || listed.has(lowerCaseName)) continue;
    if (Object.hasOwn(before, lowerCaseName) && isSame(before[lowerCaseName], values)) continue;
    for (const value of values) own.push(name, value);
  }
  own.push('Date', date);
  const removed = Object.keys(before).filter((name) => !names.has(name) && !hopByHop.has(name));
  return { head: { status, statusMessage, headers: own }, removed };
}

function isSame(value: unknown, values: readonly string[]): boolean {
  const list = Array.isArray(value) ? value : [value];
  return list.length === values.length && list.every((one, index) => String(one) === values[index]);
}

/** Headers that say where a body ends. Those set before belong to another body, and a response may have only one of them. */
const framing: ReadonlySet<string> = /* @__PURE__ */ new Set(['content-length', 'transfer-encoding']);

/** What counts of the request that gets the response. */
export interface Shown {
  readonly before: HeadersBefore;
  /** The headers of a conditional request; no other is read. */
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  readonly ageMs: number;
  readonly status: string;
}

/** The answer to one request: the headers set before, those of the stored response, and those of the cache. */
export function answerFor({ answer, removed, initialAgeMs }: KeptResponse, shown: Shown): StoredAnswer {
  const { before, headers, ageMs, status } = shown;
  const all = new Map<string, readonly [name: string, values: readonly string[]]>();
  for (const [name, value] of Object.entries(before)) {
    const values = Array.isArray(value) ? value.map(String) : [String(value)];
    if (!removed.includes(name) && !framing.has(name)) all.set(name, [name, values]);
  }
  for (const [name, values] of headersOf(answer.headers)) all.set(name.toLowerCase(), [name, values]);
  const length = answer.body.byteLength;
  // A HEAD response has no body that would reveal the length.
  if (!all.has('content-length') && hasBody(answer.status)) {
    all.set('content-length', ['Content-Length', [String(length)]]);
  }
  all.set('age', ['Age', [String(Math.floor((ageMs + initialAgeMs) / 1_000))]]);
  all.set('cache-status', ['Cache-Status', [status]]);
  const flat = [...all.values()].flatMap(([name, values]) => values.flatMap((value) => [name, value]));
  const whole = { ...answer, headers: flat };
  const unmodified = notModified(whole, headers);
  return unmodified === undefined ? whole : { ...unmodified, body: new Uint8Array(0) };
}

function hasBody(status: number): boolean {
  return status !== 204 && status !== 304;
}

/** Headers that describe a body, which a 304 does not have. */
const representation: ReadonlySet<string> = /* @__PURE__ */ new Set([
  ...['content-type', 'content-length', 'content-encoding', 'content-language', 'content-range', 'transfer-encoding'],
]);

/** Returns a 304 if the request names a version that is still current. RFC 9110, sections 13.1.2, 13.1.3 and 13.2.2. */
export function notModified(
  { status, headers }: AnswerHead,
  asked: Readonly<Record<string, string | readonly string[] | undefined>>,
): AnswerHead | undefined {
  const tags = asked['if-none-match'];
  const since = asked['if-modified-since'];
  if (status !== 200 || (tags === undefined && since === undefined)) return undefined;
  const fields = fieldsOf(headers);
  const isRight =
    tags !== undefined
      ? matches(String(tags), fields.get('etag'))
      : Date.parse(fields.get('last-modified') ?? '') <= Date.parse(String(since));
  if (!isRight) return undefined;
  const kept: string[] = [];
  for (let index = 0; index < headers.length; index += 2) {
    if (!representation.has(headers[index]!.toLowerCase())) kept.push(headers[index]!, headers[index + 1]!);
  }
  return { status: 304, statusMessage: 'Not Modified', headers: kept };
}

/** Weak comparison. */
function matches(list: string, etag: string | undefined): boolean {
  if (list.trim() === '*') return true;
  if (etag === undefined) return false;
  const opaque = (tag: string) => tag.replace(/^W\//, '');
  const wanted = opaque(etag);
  for (const [tag] of list.matchAll(/(?:W\/)?"[^"]*"/g)) if (opaque(tag) === wanted) return true;
  return false;
}

/** Sends an answer through Node's own response. */
export function give(response: ServerResponse, answer: StoredAnswer): void {
  const { status, statusMessage, headers } = answer;
  const set = headersOf(headers);
  const names = new Set(set.map(([name]) => name.toLowerCase()));
  for (const name of response.getHeaderNames()) if (!names.has(name)) response.removeHeader(name);
  for (const [name, values] of set) {
    // Headers that already have the right value keep their spelling.
    if (!isSame(response.getHeader(name), values)) response.setHeader(name, values.length === 1 ? values[0]! : values);
  }
  response.statusCode = status;
  if (statusMessage !== '') setWords(response, statusMessage);
  response.end(bodyOf(answer));
}
