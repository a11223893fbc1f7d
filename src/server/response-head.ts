/**
 * Response head: the status line and the headers of Node's response, read as they would be sent, and set.
 *
 * Promise: a header keeps all its values, its place and, where the response remembers it, the spelling of its name.
 */
import type { ServerResponse } from 'node:http';

/** An answer without its body. */
export interface AnswerHead {
  readonly status: number;
  /** The reason phrase of the status line; empty if there is none. */
  readonly statusMessage: string;
  /** A flat list of alternating names and values, in the order in which they were sent. */
  readonly headers: readonly string[];
}

/** A header as it was set: one value or several. */
export type Header = readonly [name: string, value: unknown];

/**
 * The status line and headers that a call of `writeHead` would send: those set before, and its own.
 *
 * @param given - The arguments of the call.
 */
export function headOf(
  response: ServerResponse,
  given: readonly unknown[],
  terms: { keepHeaders(headers: readonly Header[]): string[] },
): AnswerHead {
  const [status, second, third] = given;
  const message = typeof second === 'string' ? second : wordsOf(response);
  const own = (typeof second === 'string' ? third : (third ?? second)) as OwnHeaders | undefined;
  const named: Header[] = [];
  for (const name of namesOf(response)) named.push([name, response.getHeader(name)]);
  const headers = own === undefined || own === null ? named : override(named, pairsOf(own), Array.isArray(own));
  return { status: Number(status), statusMessage: message ?? '', headers: terms.keepHeaders(headers) };
}

/** Sets status and headers, and removes all other headers. */
export function putHead(response: ServerResponse, { status, statusMessage, headers }: AnswerHead): void {
  for (const name of response.getHeaderNames()) response.removeHeader(name);
  setHeaders(response, headers);
  response.statusCode = status;
  setWords(response, statusMessage);
}

/** Sets the reason phrase. Without one, Node sends the usual one. */
export function setWords(response: NodeResponse, words: string | undefined): void {
  if (!isOfHttp2(response)) response.statusMessage = words as string;
}

export function wordsOf(response: NodeResponse): string | undefined {
  return isOfHttp2(response) ? undefined : response.statusMessage;
}

/** Node's HTTP/2 response has no reason phrase and warns when it is read. */
export function isOfHttp2(response: NodeResponse): boolean {
  return response.getRawHeaderNames === undefined;
}

/** Sets the headers of a flat list. A name that occurs several times, in any case, gets all its values, in its first spelling. */
export function setHeaders(response: ServerResponse, headers: readonly string[]): void {
  for (let index = 0; index < headers.length; index += 2) {
    const name = headers[index]!;
    if (response.hasHeader(name)) response.appendHeader(name, headers[index + 1]!);
    else response.setHeader(name, headers[index + 1]!);
  }
}

/** Header names with all their values, in order. A name that occurs several times, in any case, is listed once, in its first spelling. */
export function headersOf(headers: readonly string[]): (readonly [name: string, values: string[]])[] {
  const all = new Map<string, readonly [name: string, values: string[]]>();
  for (let index = 0; index < headers.length; index += 2) {
    const name = headers[index]!;
    const value = headers[index + 1]!;
    const lowerCaseName = name.toLowerCase();
    const before = all.get(lowerCaseName);
    if (before === undefined) all.set(lowerCaseName, [name, [value]]);
    else before[1].push(value);
  }
  return [...all.values()];
}

/** Header names as they were written. Not every kind of response remembers them, and the types lack the method of Node's. */
type NodeResponse = ServerResponse & { getRawHeaderNames?(): string[] };

function namesOf(response: NodeResponse): string[] {
  return response.getRawHeaderNames === undefined ? response.getHeaderNames() : response.getRawHeaderNames();
}

/** Node accepts an object, an array of pairs, or a flat list of names and values. */
type OwnHeaders = Readonly<Record<string, unknown>> | readonly unknown[];

function pairsOf(own: OwnHeaders): Header[] {
  if (!Array.isArray(own)) return Object.entries(own);
  if (Array.isArray(own[0])) return own.map(([name, value]) => [String(name), value]);
  const pairs: Header[] = [];
  for (let index = 0; index + 1 < own.length; index += 2) pairs.push([String(own[index]), own[index + 1]]);
  return pairs;
}

/** Headers given to `writeHead` replace those set before: a list replaces all of them, an object each one in its place. */
function override(before: readonly Header[], own: readonly Header[], isList: boolean): readonly Header[] {
  if (before.length === 0) return own;
  const named = new Map(own.map((header) => [header[0].toLowerCase(), header]));
  if (isList) return [...before.filter(([name]) => !named.has(name.toLowerCase())), ...own];
  const rest = new Map(named);
  const merged = before.map((header) => {
    const lowerCaseName = header[0].toLowerCase();
    rest.delete(lowerCaseName);
    return named.get(lowerCaseName) ?? header;
  });
  return [...merged, ...rest.values()];
}
