/** Compared with two libraries of the field, where all of them mean the same: one request after the other, one path, one caller. */
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { Idempotency, type IdempotencyResponse } from '@node-idempotency/core';
import { MemoryStorageAdapter } from '@node-idempotency/storage-adapter-memory';
import express, { type ErrorRequestHandler, type RequestHandler } from 'express';
import { idempotency as expressIdempotency, getSharedIdempotencyService } from 'express-idempotency';
import { seededRandom } from 'holdfast/testing';
import { describe, expect, it, vi } from 'vitest';
import { memoryStore } from '../../../src/index.js';
import { idempotency, rawBody } from '../../../src/server/express.js';
import { type RawAnswer, send } from './raw-client.js';
import { listening } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

interface Contender {
  readonly name: string;
  /** Runs the handler once for each key. */
  mount(handler: RequestHandler): RequestHandler[];
}

const ours: Contender = {
  name: 'holdfast',
  mount: (handler) => [idempotency({ store: memoryStore(), scope: () => 'all' }), handler],
};

const others: readonly Contender[] = [
  {
    name: 'express-idempotency',
    mount: (handler) => [
      expressIdempotency() as unknown as RequestHandler,
      (request, response, next) => {
        // It continues to the handler after a replay, too.
        if (!getSharedIdempotencyService().isHit(request as never)) void handler(request, response, next);
      },
    ],
  },
  {
    name: '@node-idempotency/core',
    mount(handler) {
      const core = new Idempotency(new MemoryStorageAdapter());
      return [
        (request, response, next) => {
          const { headers, path, method, body } = request;
          const asked = { headers, path, method, body };
          core.onRequest<string, unknown>(asked).then((stored) => {
            if (stored !== undefined) return response.status(Number(stored.additional?.status)).send(stored.body);
            const { send: sendOn } = response;
            response.send = (sent: unknown) => {
              const answer: IdempotencyResponse<string> = {
                body: String(sent),
                additional: { status: response.statusCode },
              };
              void core.onResponse(asked, answer).then(() => Reflect.apply(sendOn, response, [sent]));
              return response;
            };
            return handler(request, response, next);
          }, next);
        },
      ];
    },
  },
];

const refuse: ErrorRequestHandler = (_error, _request, response, next) => {
  if (response.headersSent) return next(_error);
  response.status(response.statusCode < 400 ? 400 : response.statusCode).send('refused');
};

/** What became of each request: whether it ran, and what a replay said. */
async function outcomes(contender: Contender, requests: readonly { key: string | undefined; body: string }[]) {
  let runs = 0;
  const handler: RequestHandler = (request, response) =>
    void response.status(201).send(`${request.body.amount}: run ${++runs}`);
  const app = express();
  app.use(express.json({ verify: rawBody }));
  app.post('/', ...contender.mount(handler));
  app.use(refuse);
  return listening(createServer(app), async (port) => {
    const seen: string[] = [];
    for (const { key, body } of requests) {
      const before = runs;
      const headers = [
        ['Content-Type', 'application/json'] as const,
        ...(key === undefined ? [] : [['Idempotency-Key', key] as const]),
      ];
      const answer: RawAnswer = await send(port, { headers, body });
      // One of the libraries stores the answer after it has sent it.
      await sleep(2);
      const kind = runs > before ? 'ran' : answer.status < 400 ? 'replayed' : 'refused';
      seen.push(kind === 'refused' ? kind : `${kind} ${answer.status} ${answer.body.toString()}`);
    }
    return seen;
  });
}

describe.each(others)('beside $name', (other) => {
  it.each([1, 2, 3, 4])('each request of seed %i has the same outcome', async (seed) => {
    const random = seededRandom(seed);
    // The keys belong to this run only, because one of the libraries keeps its records in the process.
    const keys = ['a', 'b', 'c'].map((letter) => `${other.name}-${seed}-${letter}`);
    const requests = Array.from({ length: 60 }, () => ({
      key: random.pick([...keys, ...keys, undefined]),
      body: JSON.stringify({ amount: random.pick([1, 1, 1, 2]) }),
    }));
    const expected = await outcomes(ours, requests);
    expect(expected.some((outcome) => outcome.startsWith('replayed'))).toBe(true);
    expect(expected).toContain('refused');
    expect(await outcomes(other, requests)).toEqual(expected);
  });
});
