/** What the tests of idempotency over HTTP share: servers, and answers that can be compared. */
import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { memoryStore, type Store } from '../../../src/index.js';
import { median } from '../../support/median.js';
import { threadUs } from '../../support/thread-time.js';
import type { RawAnswer } from './raw-client.js';

/** A store in memory that is awaited like a store on a server. */
export function awaitedStore(): Store {
  const inner = memoryStore();
  return {
    read: async (...given) => inner.read(...given),
    write: async (...given) => inner.write(...given),
    remove: async (...given) => inner.remove(...given),
  };
}

/** A store that takes new records at once and their changes late, as when two connections overtake each other. */
export function lateStore(inner: Store = memoryStore()): Store {
  return {
    read: (...given) => inner.read(...given),
    remove: (...given) => inner.remove(...given),
    async write(...given) {
      if (given[2]?.ifVersion !== 0) await sleep(50);
      return inner.write(...given);
    },
  };
}

/** The two ways in which a store answers. */
export const storesToTry: readonly (readonly [name: string, store: () => Store])[] = [
  ['answers at once', () => memoryStore()],
  ['is waited for', awaitedStore],
];

/** Listens on loopback while a task runs. */
export async function listening<T>(server: Server, task: (port: number) => Promise<T>): Promise<T> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    return await task((server.address() as AddressInfo).port);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

/** The computing time of this thread, in milliseconds. What else runs on the machine does not count. */
export const cpuMs = () => threadUs() / 1_000;

/**
 * How long two copies of a body of 20 MB take here, in milliseconds. Most of it is the system's work for memory that is new to the process, which a busy
 * machine does ten times as slowly, all of it in computing time of this thread. Both are made in one piece, which is too large for memory that was freed.
 */
export function twoCopiesMs(): number {
  const both = new Uint8Array(40 * 1_048_576);
  const times = Array.from({ length: 3 }, () => {
    const before = cpuMs();
    both.slice();
    return cpuMs() - before;
  });
  return median(times);
}

/** All headers except the date. */
export function wire({ statusLine, headers, body, trailers }: RawAnswer) {
  return { statusLine, headers: headers.filter(([name]) => name !== 'Date'), body: body.toString('latin1'), trailers };
}

const denied = new RegExp(
  `^(${[
    ...['set-cookie', 'date', 'connection', 'keep-alive', 'proxy-.*', 'te', 'trailer', 'transfer-encoding', 'upgrade'],
    ...['content-length', 'access-control-.*', 'vary', 'alt-svc', 'strict-transport-security', 'server-timing'],
    ...['traceparent', 'x-request-id', 'ratelimit-.*', 'age', 'x-hop'],
  ].join('|')})$`,
  'i',
);
const marks = /^(idempotent-replayed|idempotency-key|cache-control)$/i;

/** What a replay must have in common with the first answer. */
export function lasting(answer: RawAnswer) {
  const { statusLine, headers, body } = wire(answer);
  return { statusLine, headers: headers.filter(([name]) => !denied.test(name) && !marks.test(name)), body };
}

/** The headers that a replay may not carry. */
export function leaked(answer: RawAnswer): readonly string[] {
  return answer.headers
    .map(([name]) => name)
    .filter((name) => /^(set-cookie|vary|age|x-hop|x-request-id|ratelimit-.*)$/i.test(name));
}

/** The marks of a replay, for the key that most tests use. */
export const replayMarks = { 'idempotent-replayed': 'true', 'idempotency-key': '"k-1"', 'cache-control': 'no-store' };

/** Claims that an answer is the replay of this one: the same in what lasts, marked, and without what was meant for one caller. */
export function expectReplay(replayed: RawAnswer, original: RawAnswer): void {
  expect(lasting(replayed)).toEqual(lasting(original));
  expect(marksOf(replayed)).toEqual(replayMarks);
  expect(leaked(replayed)).toEqual([]);
}

export function marksOf(answer: RawAnswer) {
  return Object.fromEntries(
    answer.headers.filter(([name]) => marks.test(name)).map(([name, value]) => [name.toLowerCase(), value]),
  );
}

/** The headers of a request with a key. */
export function keyed(key: string, ...more: readonly (readonly [string, string])[]) {
  return [['Idempotency-Key', key] as const, ...more];
}
