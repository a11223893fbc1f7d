/** The errors of other clients, as they really throw them: their statuses, and what they say about when to come back, are found. */
import grpc from '@grpc/grpc-js';
import axios from 'axios';
import { describe, expect, it } from 'vitest';
import { breakerHandles, handles } from '../../src/client/handles.js';
import type { Outcome } from '../../src/core/outcome.js';
import { retryHintOf } from '../../src/policies/retry/retry-after.js';
import { httpServer } from './support/servers.ts';

const outcomeOf = (running: Promise<unknown>): Promise<Outcome> =>
  running.then(
    (value) => ({ ok: true, value }),
    (error: unknown) => ({ ok: false, error }),
  );

describe('an error of axios', () => {
  it.each([
    { status: 404, headers: {}, isWorthAnother: false, isUnhealthy: false, hint: undefined },
    { status: 422, headers: {}, isWorthAnother: false, isUnhealthy: false, hint: undefined },
    { status: 429, headers: { 'retry-after': '2' }, isWorthAnother: true, isUnhealthy: false, hint: 2_000 },
    { status: 503, headers: { 'Retry-After-Ms': '40' }, isWorthAnother: true, isUnhealthy: true, hint: 40 },
    { status: 500, headers: {}, isWorthAnother: true, isUnhealthy: true, hint: undefined },
  ])('is judged by its status: $status', async ({ status, headers, isWorthAnother, isUnhealthy, hint }) => {
    await using server = await httpServer((_, response) => void response.writeHead(status, headers).end());
    const outcome = await outcomeOf(axios.get(server.origin));
    expect([outcome.ok, handles(outcome), breakerHandles(outcome)]).toEqual([false, isWorthAnother, isUnhealthy]);
    expect(retryHintOf(outcome, 0)).toBe(hint);
  });

  it('is a network fault where there was no answer', async () => {
    await using server = await httpServer((_, response) => void response.destroy());
    const outcome = await outcomeOf(axios.get(server.origin));
    expect([outcome.ok, handles(outcome), breakerHandles(outcome)]).toEqual([false, true, true]);
  });
});

describe('an error of gRPC', () => {
  it.each([
    { pushback: '20', hint: 20 },
    { pushback: '-1', hint: 'never' },
    { pushback: undefined, hint: undefined },
  ])('says by its pushback $pushback when to come back', async ({ pushback, hint }) => {
    const text = { requestSerialize: Buffer.from, requestDeserialize: String };
    const reply = { responseSerialize: Buffer.from, responseDeserialize: String };
    const service = {
      find: { path: '/Items/Find', requestStream: false, responseStream: false, ...text, ...reply },
    } as const;
    const server = new grpc.Server();
    server.addService(service, {
      find(_: unknown, answer: grpc.sendUnaryData<string>) {
        const metadata = new grpc.Metadata();
        if (pushback !== undefined) metadata.set('grpc-retry-pushback-ms', pushback);
        answer({ code: grpc.status.UNAVAILABLE, metadata });
      },
    });
    const port = await new Promise<number>((bound, failed) =>
      server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, at) =>
        error ? failed(error) : bound(at),
      ),
    );
    const Items = grpc.makeGenericClientConstructor(service, 'Items');
    const client = new Items(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
    try {
      const outcome = await outcomeOf(
        new Promise((found, failed) => {
          client.find!('kelp', (error: unknown, item: unknown) => (error ? failed(error) : found(item)));
        }),
      );
      expect(outcome).toMatchObject({ ok: false, error: { code: grpc.status.UNAVAILABLE } });
      expect(retryHintOf(outcome, 0)).toBe(hint);
    } finally {
      client.close();
      server.forceShutdown();
    }
  });
});
