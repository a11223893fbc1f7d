/** Every way in which an Express handler can answer, by name. Each one runs on Express 4 and 5. */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import type { ErrorRequestHandler, RequestHandler, Response } from 'express';
import { nodePaths } from './node-paths.js';

const allBytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index));

function answers(answer: (response: Response) => unknown): RequestHandler {
  return (_request, response) => void answer(response);
}

export const expressPaths: Readonly<Record<string, RequestHandler>> = {
  ...Object.fromEntries(
    Object.entries(nodePaths).map(([name, listener]) => [
      name,
      ((request, response) => listener(request, response)) as RequestHandler,
    ]),
  ),
  'json of an object': answers((response) => response.status(201).json({ id: 'order-1', total: 12.5 })),
  'json of a string': answers((response) => response.json('text')),
  'json of 0': answers((response) => response.json(0)),
  'json of false': answers((response) => response.json(false)),
  'json of null': answers((response) => response.json(null)),
  'json of nothing': answers((response) => response.json()),
  jsonp: answers((response) => response.jsonp({ id: 1 })),
  'send of a string': answers((response) => response.send('<p>für 5 €</p>')),
  'send of an empty string': answers((response) => response.send('')),
  'send of a buffer': answers((response) => response.send(allBytes)),
  'send of a boolean': answers((response) => response.send(true as unknown as string)),
  'send of an object': answers((response) => response.status(202).send({ queued: true })),
  'send of nothing': answers((response) => response.send()),
  sendStatus: answers((response) => response.sendStatus(201)),
  'sendStatus 204': answers((response) => response.sendStatus(204)),
  'send with 204': answers((response) => response.status(204).send('not for the wire')),
  'send with 304': answers((response) => response.status(304).send('not for the wire')),
  redirect: answers((response) => response.redirect(303, '/orders/1')),
  'location and end': answers((response) => response.location('/orders/2').status(201).end()),
  'type, set and append': answers((response) =>
    response
      .type('text/csv')
      .set('X-One', '1')
      .set({ 'X-One': '2' })
      .append('Link', '<a>')
      .append('Link', '<b>')
      .send('a,b'),
  ),
  format: answers((response) =>
    response.format({ json: () => response.json({ is: 'json' }), default: () => response.sendStatus(406) }),
  ),
  cookies: answers((response) => response.cookie('session', 'secret').cookie('b', '2').json({})),
  attachment: answers((response) => response.attachment('bill.pdf').send(allBytes)),
  sendFile: answers((response) => response.sendFile(fileURLToPath(new URL('./raw-client.ts', import.meta.url)))),
  'sendFile that is not there': (_request, response, next) => response.sendFile('/not/there', next),
  download: answers((response) => response.download(fileURLToPath(import.meta.url), 'paths.ts')),
  'pipe of a stream': answers((response) => Readable.from(['one,', 'two,', 'three']).pipe(response.type('text/plain'))),
  'pipeline of bytes': async (_request, response) => {
    await pipeline(Readable.from([allBytes, allBytes]), response.type('bin'));
  },
  'a refusal of the handler': answers((response) => response.status(422).json({ error: 'too little' })),
  'a conflict of the handler': answers((response) => response.status(409).json({ error: 'sold out' })),
  'an error for a handler of errors': (_request, _response, next) =>
    next(Object.assign(new Error('short'), { status: 402 })),
  'an asynchronous answer': async (_request, response) => {
    await new Promise((resolve) => setImmediate(resolve));
    response.status(201).json({ late: true });
  },
  'an answer and an error after it': (_request, response) => {
    response.status(201).json({ done: true });
    throw new Error('after the answer');
  },
  'two answers': answers((response) => {
    response.status(201).json({ first: true });
    try {
      response.status(500).json({ second: true });
    } catch {
      // Node refuses headers that are set after the head. What holds an answer back refuses nothing, and does nothing.
    }
  }),
};

/** Answers that are not final: the next request runs again. */
export const failingExpressPaths: Readonly<Record<string, RequestHandler>> = {
  throws: () => {
    throw new Error('broken');
  },
  rejects: (_request, _response, next) => {
    // Express 4 does not wait for handlers.
    Promise.reject(new Error('broken')).catch(next);
  },
  'answers 500': answers((response) => response.status(500).json({ error: 'broken' })),
  'answers 503 by end': answers((response) => response.writeHead(503, { 'Retry-After': '1' }).end()),
  'answers 401': answers((response) => response.status(401).json({ error: 'who are you' })),
  'answers 403': answers((response) => response.sendStatus(403)),
  'answers 429': answers((response) => response.sendStatus(429)),
};

/** Uses the status of the error if it has one, as applications do. */
export const errorHandler: ErrorRequestHandler = (error, _request, response, next) => {
  if (response.headersSent) return next(error);
  response.status(error.status ?? 500).json({ error: error.status === undefined ? 'internal' : error.message });
};
