/** Every way in which a Fastify handler can answer, by name. */
import { createReadStream } from 'node:fs';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { nodePaths } from './node-paths.js';

export type FastifyHandler = (request: FastifyRequest, reply: FastifyReply) => unknown;

const allBytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index));

export const fastifyPaths: Readonly<Record<string, FastifyHandler>> = {
  ...Object.fromEntries(
    Object.entries(nodePaths).map(([name, listener]) => [
      `${name}, hijacked`,
      (request: FastifyRequest, reply: FastifyReply) => {
        reply.hijack();
        void listener(request.raw, reply.raw);
      },
    ]),
  ),
  'a returned object': async (_request, reply) => {
    reply.code(201);
    return { id: 'order-1', total: 12.5 };
  },
  'a returned string': async () => 'text',
  'a returned 0': async () => 0,
  'a returned false': async () => false,
  'a returned null': async () => null,
  'a returned nothing': async () => undefined,
  'a returned empty string': async () => '',
  'a returned buffer': async () => allBytes,
  'a returned stream': async (_request, reply) => {
    reply.type('text/plain');
    return Readable.from(['one,', 'two,', 'three']);
  },
  'a returned web stream': async () => new Blob(['web stream']).stream(),
  'a returned Response': async () => new Response('from fetch', { status: 202, headers: { 'x-from': 'fetch' } }),
  'send of an object': (_request, reply) => void reply.code(201).send({ sent: true }),
  'send of an object, later': (_request, reply) => void setImmediate(() => reply.code(201).send({ sent: true })),
  'send and return of the reply': async (_request, reply) => reply.code(202).send({ sent: true }),
  'send in an asynchronous handler': async (_request, reply) => {
    reply.send({ sent: true });
  },
  'send of a string': (_request, reply) => void reply.type('text/html').send('<p>für 5 €</p>'),
  'send of a buffer': (_request, reply) => void reply.type('application/octet-stream').send(allBytes),
  'send of a stream': (_request, reply) => void reply.send(createReadStream(fileURLToPath(import.meta.url))),
  'send of nothing': (_request, reply) => void reply.send(),
  'send of a serialised string': (_request, reply) =>
    void reply.type('application/json').serializer(String).send('{"a":1}'),
  redirect: (_request, reply) => void reply.redirect('/orders/1', 303),
  '204 of Fastify': (_request, reply) => void reply.code(204).send(),
  '204 with a body that is dropped by Fastify': (_request, reply) => void reply.code(204).send('dropped'),
  '304 of Fastify': (_request, reply) => void reply.code(304).header('etag', '"1"').send(),
  'headers of all kinds': (_request, reply) =>
    void reply
      .header('X-Case', '1')
      .header('x-case', '2')
      .headers({ 'x-b': '3', 'x-number': 4 })
      .header('link', ['<a>', '<b>'])
      .header('set-cookie', 'a=1')
      .header('set-cookie', 'b=2')
      .send('headers'),
  'trailers of Fastify': (_request, reply) => {
    reply.trailer('x-checksum', (_reply, _payload, done) => done(null, '1f'));
    reply.send('with trailers');
  },
  'early headers by raw': (_request, reply) => {
    reply.raw.setHeader('x-raw', '1');
    reply.send('raw and reply');
  },
  'raw without hijack': (_request, reply) => void reply.raw.writeHead(201, { 'X-Raw': '1' }).end('raw'),
  callNotFound: (_request, reply) => void reply.callNotFound(),
  'a refusal of the handler': async (_request, reply) => {
    reply.code(422);
    return { error: 'too little' };
  },
  'a conflict of the handler': async (_request, reply) => reply.code(409).send({ error: 'sold out' }),
  'a thrown error that has a status': async () => {
    throw Object.assign(new Error('short'), { statusCode: 402 });
  },
  'a status that has words': (_request, reply) => {
    reply.raw.statusMessage = 'Taken Down';
    reply.code(202).send('words');
  },
};

/** Answers that are not final: the next request runs again. */
export const failingFastifyPaths: Readonly<Record<string, FastifyHandler>> = {
  throws: () => {
    throw new Error('broken');
  },
  rejects: async () => {
    throw new Error('broken');
  },
  'sends an error': (_request, reply) => void reply.send(new Error('broken')),
  'answers 503': (_request, reply) => void reply.code(503).header('retry-after', '1').send(),
  'answers 401': (_request, reply) => void reply.code(401).send({ error: 'who are you' }),
  'answers 403': (_request, reply) => void reply.code(403).send(),
  'answers 429': (_request, reply) => void reply.code(429).send(),
};
