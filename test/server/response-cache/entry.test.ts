import { createServer, type ServerResponse } from 'node:http';
import { describe, expect, it } from 'vitest';
import {
  answerFor,
  entrySerializer,
  give,
  handlersShare,
  type KeptResponse,
  notModified,
  pass,
} from '../../../src/server/response-cache/entry.js';
import { send } from '../idempotency/raw-client.js';
import { listening } from '../idempotency/support.js';

const bytesOf = (text: string) => new TextEncoder().encode(text);
const head = (headers: readonly string[], status = 200) => ({ status, statusMessage: '', headers });
const kept = (given: Partial<KeptResponse> & { headers?: readonly string[]; status?: number; body?: string } = {}) => {
  const { headers = [], status = 200, body = 'body', ...rest } = given;
  return {
    ...{ kind: 'response', removed: [], vary: [], variant: '', initialAgeMs: 0, lifetime: undefined, tags: [] },
    ...rest,
    answer: { ...head(headers, status), body: bytesOf(body), isText: false },
  } as KeptResponse;
};

describe('an entry', () => {
  it('is decoded from its bytes, even from the middle of a buffer', () => {
    const entry = kept({
      ...{ headers: ['X-A', '1', 'x-ä', 'ü'], removed: ['x-b'], vary: ['accept'], variant: 'v', initialAgeMs: 7 },
      body: 'b'.repeat(300),
    });
    const bytes = entrySerializer.encode(entry) as Uint8Array;
    const within = new Uint8Array(bytes.length + 9);
    within.set(bytes, 5);
    const again = entrySerializer.decode(within.subarray(5, 5 + bytes.length)) as KeptResponse;
    expect({ ...again, answer: { ...again.answer, body: new Uint8Array(again.answer.body) } }).toEqual(entry);
    expect(entrySerializer.decode(entrySerializer.encode(pass) as Uint8Array)).toBe(pass);
  });

  it('is not decoded from what another release has stored', () => {
    for (const bytes of [[], [0], [3, 0, 0, 0, 0]]) {
      expect(() => entrySerializer.decode(Uint8Array.from(bytes))).toThrow('no response of this release');
    }
  });
});

describe("the handler's share of a response", () => {
  const wallMs = Date.parse('Mon, 30 Nov 2026 03:00:00 GMT');
  const now = ['Date', 'Mon, 30 Nov 2026 03:00:00 GMT'];

  it('is what it has set, without earlier headers, those of the connection, and those of the cache', () => {
    const connection = ['Connection', 'close , X-Hop', 'keep-alive', 'a', 'Proxy-Connection', 'a', 'TE', 'a'];
    const hops = ['Transfer-Encoding', 'chunked', 'Upgrade', 'a', 'x-hop', '1', 'Proxy-Authenticate', 'a'];
    const share = handlersShare(
      head([...connection, ...hops, 'Age', '7', 'Cache-Status', 'x', 'X-A', '1', 'X-B', '2', 'X-B', '3', 'X-C', '4']),
      { 'x-a': 1, 'x-b': ['2', '3'], 'x-c': '5' },
      wallMs,
    );
    expect(share).toEqual({ head: head(['X-C', '4', ...now]), removed: [] });
  });

  it('includes what it has set again in part, and what it has removed', () => {
    const before = { 'x-a': ['1', '2'], 'x-b': '1', 'x-c': ['1'], connection: 'close' };
    const share = handlersShare(head(['X-A', '1', 'X-B', '1', 'X-B', '2']), before, wallMs);
    expect(share).toEqual({ head: head(['X-A', '1', 'X-B', '1', 'X-B', '2', ...now]), removed: ['x-c'] });
    const other = handlersShare(head(['X-A', '1', 'X-A', '3']), { 'x-a': ['1', '2'] }, wallMs);
    expect(other.head.headers).toEqual(['X-A', '1', 'X-A', '3', ...now]);
  });

  it('has the date that the handler has set', () => {
    const { head: own } = handlersShare(head(['date', 'Sun, 29 Nov 2026 03:00:00 GMT', 'X-A', '1']), {}, wallMs);
    expect(own.headers).toEqual(['X-A', '1', 'Date', 'Sun, 29 Nov 2026 03:00:00 GMT']);
  });
});

describe('the answer to one request', () => {
  const shown = { before: {}, headers: {}, ageMs: 0, status: 'responses; hit' };
  const named = (headers: readonly string[]) => {
    const pairs: string[] = [];
    for (let index = 0; index < headers.length; index += 2) pairs.push(`${headers[index]}: ${headers[index + 1]}`);
    return pairs;
  };

  it('has the earlier headers, those of the response in their place, and those of the cache', () => {
    const before = { 'x-before': 1, 'x-both': ['1', 2], 'x-gone': '1', 'content-length': '99' };
    const entry = kept({ headers: ['X-Both', '3', 'X-Own', '4'], removed: ['x-gone'], initialAgeMs: 1_500 });
    expect(named(answerFor(entry, { ...shown, before, ageMs: 2_600 }).headers)).toEqual([
      ...['x-before: 1', 'X-Both: 3', 'X-Own: 4', 'Content-Length: 4', 'Age: 4', 'Cache-Status: responses; hit'],
    ]);
  });

  it('states the length of its body, if it has one, which a HEAD cannot see', () => {
    const lengthOf = (given: Parameters<typeof kept>[0]) =>
      named(answerFor(kept(given), shown).headers).filter((one) => /^content-length/i.test(one));
    expect(lengthOf({})).toEqual(['Content-Length: 4']);
    expect(lengthOf({ headers: ['content-length', '4'] })).toEqual(['content-length: 4']);
    for (const status of [204, 304]) expect(lengthOf({ status, body: '' })).toEqual([]);
    expect(lengthOf({ status: 404 })).toEqual(['Content-Length: 4']);
  });

  it('is a 304 without a body, if the request has the current version', () => {
    const entry = kept({ headers: ['ETag', '"a"', 'Content-Type', 'text/plain'] });
    const answer = answerFor(entry, { ...shown, headers: { 'if-none-match': '"a"' } });
    expect([answer.status, answer.body.length, named(answer.headers)]).toEqual([
      ...[304, 0, ['ETag: "a"', 'Age: 0', 'Cache-Status: responses; hit']],
    ]);
  });
});

describe('a response is not modified', () => {
  const isKnown = (asked: Record<string, string>, headers: readonly string[], status = 200) =>
    notModified(head(headers, status), asked) !== undefined;

  it('for a client that names its tag, weak or not, alone or in a list', () => {
    for (const list of ['"a"', 'W/"a"', '"b", "a"', '"b","aW/" , W/"a"', '*', ' * ']) {
      expect([list, isKnown({ 'if-none-match': list }, ['ETag', '"a"'])]).toEqual([list, true]);
      expect(isKnown({ 'if-none-match': list }, ['etag', 'W/"a"'])).toBe(true);
    }
    for (const list of ['"b"', '"aa"', 'a', '', '"', '"b a"', '**'])
      expect([list, isKnown({ 'if-none-match': list }, ['ETag', '"a"'])]).toEqual([list, false]);
    expect(isKnown({ 'if-none-match': '"W/a"' }, ['ETag', '"a"'])).toBe(false);
    expect([isKnown({ 'if-none-match': '"a"' }, []), isKnown({ 'if-none-match': '*' }, [])]).toEqual([false, true]);
  });

  it('for a client that has one as recent, unless it names a tag', () => {
    const since = { 'if-modified-since': 'Mon, 30 Nov 2026 03:00:00 GMT' };
    const modified = (second: string) => ['Last-Modified', `Mon, 30 Nov 2026 03:00:${second} GMT`];
    expect([isKnown(since, modified('00')), isKnown(since, modified('01')), isKnown(since, [])]).toEqual([
      ...[true, false, false],
    ]);
    expect(isKnown({ 'if-modified-since': 'soon' }, modified('00'))).toBe(false);
    expect(isKnown({ ...since, 'if-none-match': '"b"' }, [...modified('00'), 'ETag', '"a"'])).toBe(false);
  });

  it('only if it was found, and if the request is conditional', () => {
    for (const status of [201, 204, 404]) {
      expect(isKnown({ 'if-none-match': '*' }, ['ETag', '"a"'], status)).toBe(false);
    }
    expect(isKnown({}, ['ETag', '"a"', 'Last-Modified', 'Mon, 30 Nov 2026 03:00:00 GMT'])).toBe(false);
  });

  it('and then describes no body', () => {
    const body = ['Content-Type', 'Content-Length', 'Content-Encoding', 'Content-Language', 'Content-Range'];
    const headers = [...body, 'Transfer-Encoding', 'ETag', 'Content-Location'].flatMap((name) => [name, 'x']);
    expect(notModified(head(headers), { 'if-none-match': '*' })).toEqual({
      ...{ status: 304, statusMessage: 'Not Modified', headers: ['ETag', 'x', 'Content-Location', 'x'] },
    });
  });
});

describe('a given answer', () => {
  it('replaces all other headers, each in its first spelling, and sets the reason phrase if there is one', async () => {
    const statusLines: string[] = [];
    for (const statusMessage of ['', 'Found Here']) {
      const handler = (_: unknown, response: ServerResponse) => {
        response.setHeader('X-SAME', '1');
        response.setHeader('X-Other', '1');
        response.setHeader('X-Gone', '1');
        const headers = ['x-same', '1', 'x-other', '2', 'X-Two', '1', 'X-Two', '2'];
        give(response, { status: 200, statusMessage, headers, body: bytesOf('body') });
      };
      const answer = await listening(createServer(handler), (port) => send(port, { path: '/', headers: [] }));
      statusLines.push(answer.statusLine);
      const own = /^(date|connection|keep-alive|content-length)$/i;
      expect(answer.headers.filter(([name]) => !own.test(name))).toEqual([
        ...[
          ['X-SAME', '1'],
          ['x-other', '2'],
          ['X-Two', '1'],
          ['X-Two', '2'],
        ],
      ]);
      expect(answer.body.toString()).toBe('body');
    }
    expect(statusLines).toEqual(['HTTP/1.1 200 OK', 'HTTP/1.1 200 Found Here']);
  });
});
