/** Every way in which Node's own response can be answered, by name. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';

export type Listener = (request: IncomingMessage, response: ServerResponse) => unknown;

const allBytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index));
const nextTurn = () => new Promise((resolve) => setImmediate(resolve));

export const nodePaths: Readonly<Record<string, Listener>> = {
  end: (_request, response) => response.end(),
  'end of a string': (_request, response) => response.end('plain'),
  'end of an empty string': (_request, response) => response.end(''),
  'end of bytes': (_request, response) => response.end(new Uint8Array(allBytes)),
  'end of bytes of latin1': (_request, response) => response.end('für', 'latin1'),
  'end of bytes of base64': (_request, response) => response.end('AAECAw==', 'base64'),
  'end of hexadecimal bytes': (_request, response) => response.end('00ff10', 'hex'),
  'end with a callback alone': (_request, response) => response.end(() => {}),
  'end of a string with a callback': (_request, response) => response.end('called', () => {}),
  'end with all arguments': (_request, response) => response.end('all', 'utf8', () => {}),
  'end with nulls, as frameworks do': (_request, response) => response.end('nulls', null as never, null as never),
  'setHeader and end': (_request, response) => {
    response.statusCode = 201;
    response.setHeader('X-Case-Kept', 'one');
    response.setHeader('x-lower', ['a', 'b']);
    response.setHeader('X-Number', 7);
    response.end('{}');
  },
  'a header set twice': (_request, response) => {
    response.setHeader('X-Twice', 'first');
    response.setHeader('x-twice', 'second');
    response.end();
  },
  'a header set and removed': (_request, response) => {
    response.setHeader('X-Gone', '1');
    response.removeHeader('x-gone');
    response.end('gone');
  },
  appendHeader: (_request, response) => {
    response.appendHeader('Link', '<a>');
    response.appendHeader('Link', '<b>');
    response.end();
  },
  statusMessage: (_request, response) => {
    response.statusCode = 202;
    response.statusMessage = 'Taken Down';
    response.end('ok');
  },
  'a header beyond ASCII before a text': (_request, response) => {
    response.setHeader('X-Name', 'José');
    response.end('für');
  },
  'a header beyond ASCII before bytes': (_request, response) => {
    response.setHeader('X-Name', 'José');
    response.end(Buffer.from('für'));
  },
  'a header beyond ASCII before a text in a chunk': (_request, response) => {
    response.writeHead(200, { 'X-Name': 'José' });
    response.end('für', 'utf8');
  },
  'words beyond ASCII before a text with a length': (_request, response) =>
    response.writeHead(200, 'Crème', { 'Content-Length': '4' }).end('für', () => {}),
  'writeHead with a status': (_request, response) => response.writeHead(201).end('made'),
  'writeHead with words': (_request, response) => response.writeHead(201, 'Made Now').end('made'),
  'writeHead with headers': (_request, response) =>
    response.writeHead(201, { 'X-A': '1', 'X-B': ['2', '3'] }).end('made'),
  'writeHead with words and headers': (_request, response) =>
    response.writeHead(200, 'Fine', { 'Content-Type': 'a/b' }).end('x'),
  'writeHead with nothing and headers': (_request, response) =>
    response.writeHead(200, undefined, { 'X-A': '1' }).end('x'),
  'writeHead with a flat list': (_request, response) =>
    response.writeHead(200, ['X-A', '1', 'X-A', '2', 'X-B', '3']).end('x'),
  'writeHead over headers set before': (_request, response) => {
    response.setHeader('X-A', 'before');
    response.setHeader('X-B', 'stays');
    response.writeHead(200, { 'x-a': 'after', 'X-C': 'new' });
    response.end('x');
  },
  'writeHead with a list over headers set before': (_request, response) => {
    response.setHeader('X-A', 'before');
    response.writeHead(200, ['X-A', 'one', 'X-A', 'two']);
    response.end('x');
  },
  'write and end': (_request, response) => {
    response.write('one,');
    response.write('two,');
    response.end('three');
  },
  'write with encodings and callbacks': (_request, response) => {
    response.write('für,', 'latin1');
    response.write('AAEC', 'base64', () => {});
    response.write('called', () => {});
    response.write(new Uint8Array([0, 255]));
    response.end('656e64', 'hex', () => {});
  },
  'write of a buffer that is used again': async (_request, response) => {
    const buffer = Buffer.from('first,');
    await new Promise<void>((resolve) => response.write(buffer, () => resolve()));
    buffer.fill('x');
    response.end('last');
  },
  'write with a length': (_request, response) => {
    response.writeHead(200, { 'Content-Length': '6' });
    response.write('abc');
    response.end('def');
  },
  flushHeaders: async (_request, response) => {
    response.setHeader('X-Early', '1');
    response.flushHeaders();
    await nextTurn();
    response.end('late');
  },
  'a slow stream': async (_request, response) => {
    for (const part of ['a', 'b', 'c']) {
      response.write(part);
      await nextTurn();
    }
    response.end();
  },
  'a pipe': (_request, response) => Readable.from([allBytes, Buffer.from('end')]).pipe(response),
  cork: (_request, response) => {
    response.cork();
    response.write('a');
    response.write('b');
    response.uncork();
    response.end('c');
  },
  trailers: (_request, response) => {
    response.setHeader('Trailer', 'X-Checksum');
    response.write('body');
    response.addTrailers({ 'X-Checksum': '1f' });
    response.end();
  },
  'early hints': (_request, response) => {
    response.writeEarlyHints({ link: '</a.css>; rel=preload' });
    response.end('hinted');
  },
  '204': (_request, response) => response.writeHead(204).end(),
  '304': (_request, response) => response.writeHead(304, { ETag: '"1"' }).end(),
  '204 with a body that is dropped': (_request, response) => response.writeHead(204).end('dropped'),
  'headers of this connection': (_request, response) => {
    response.writeHead(200, {
      ...{ Connection: 'close, X-Hop', 'X-Hop': '1', 'Set-Cookie': ['a=1', 'b=2'], Vary: 'accept', Age: '3' },
      ...{ 'Access-Control-Allow-Origin': '*', 'RateLimit-Policy': '"a"', 'X-Request-Id': '7', 'X-Kept': 'yes' },
    });
    response.end('hop');
  },
  'the default status': (_request, response) => {
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({ id: 9007199254740993n.toString() }));
  },
};
