import { IncomingMessage, ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { headersOf, putHead, setHeaders } from '../../src/server/response-head.js';

/** Node's types lack the method that tells the spelling. */
type Response = ServerResponse & { getRawHeaderNames(): string[] };

const newResponse = () => new ServerResponse(new IncomingMessage(new Socket())) as Response;

describe('the head of a response', () => {
  it('that is put in place of another keeps nothing of it, neither headers nor words', () => {
    const response = newResponse();
    response.statusCode = 201;
    response.statusMessage = 'Made';
    response.setHeader('X-Old', '1');
    putHead(response, { status: 503, statusMessage: '', headers: ['Content-Type', 'text/plain'] });
    expect([response.statusCode, response.statusMessage]).toEqual([503, '']);
    expect(response.getHeaders()).toEqual({ 'content-type': 'text/plain' });
    putHead(response, { status: 200, statusMessage: 'Fine', headers: [] });
    expect([response.statusMessage, response.getHeaderNames()]).toEqual(['Fine', []]);
  });

  it('lists a header that occurs in several spellings once, in the first, with all its values', () => {
    const flat = ['Set-Cookie', 'a', 'X', '1', 'set-cookie', 'b'];
    expect(headersOf(flat)).toEqual([
      ['Set-Cookie', ['a', 'b']],
      ['X', ['1']],
    ]);
    const response = newResponse();
    setHeaders(response, flat);
    expect(response.getRawHeaderNames()).toEqual(['Set-Cookie', 'X']);
    expect(response.getHeader('set-cookie')).toEqual(['a', 'b']);
  });
});
