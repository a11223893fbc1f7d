import { StoreError } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { type ListeningEvents, PostgresWatches } from '../../src/stores/postgres-watches.js';
import { Watcher } from '../../src/stores/watchers.js';

function failure(reason: StoreError['reason']): StoreError {
  return new StoreError({ store: 'postgres', operation: 'watch', reason, applied: 'no', detail: 'x' });
}

function bench() {
  const clock = virtualClock();
  const connections: { events: ListeningEvents; hasEnded: boolean }[] = [];
  const state = {
    connect: (): Promise<unknown> => Promise.resolve(),
    confirm: (): Promise<unknown> => Promise.resolve(),
  };
  const listen = async (events: ListeningEvents) => {
    const connection = { events, hasEnded: false };
    await state.connect();
    connections.push(connection);
    return {
      confirm: () => state.confirm(),
      end() {
        connection.hasEnded = true;
      },
    };
  };
  const failureOf = (cause: unknown) => cause as StoreError;
  const watches = new PostgresWatches(listen as never, 500, clock, failureOf);
  const watch = () => {
    const told: string[] = [];
    const watcher = new Watcher('postgres', 'key', ({ kind }) => told.push(kind));
    watches.add(watcher, 'payload');
    return { told, watcher };
  };
  return { clock, connections, state, watches, watch };
}

describe('PostgresWatches', () => {
  it('reports a gap on a new connection when the old one has not replied for a round, and ignores the old one', async () => {
    const { clock, connections, state, watch } = bench();
    const { told, watcher } = watch();
    await watcher.ready;
    await clock.advance(10_000);
    expect(connections.length).toBe(1);
    state.confirm = () => new Promise(() => {});
    await clock.advance(20_000);
    expect([connections[0]!.hasEnded, told]).toEqual([true, []]);
    await clock.advance(500);
    expect([connections.length, told]).toEqual([2, ['gap']]);
    connections[0]!.events.onPayload('payload');
    connections[0]!.events.onLost();
    connections[1]!.events.onPayload('payload');
    expect([connections[1]!.hasEnded, told]).toEqual([false, ['gap', 'changed']]);
  });

  it('fails every watch for ten seconds after a refusal, without a connection for each', async () => {
    const { clock, connections, state, watch } = bench();
    const refusal = failure('invalid');
    let tries = 0;
    state.connect = async () => {
      tries++;
      throw refusal;
    };
    for (let watches = 0; watches < 3; watches++) await expect(watch().watcher.ready).rejects.toBe(refusal);
    await clock.advance(9_999);
    await expect(watch().watcher.ready).rejects.toBe(refusal);
    expect(tries).toBe(1);
    state.connect = () => Promise.resolve();
    await clock.advance(1);
    await watch().watcher.ready;
    expect(connections.length).toBe(1);
  });

  it('reconnects after a loss was reported, or a confirmation failed', async () => {
    const { clock, connections, state, watch } = bench();
    const { told, watcher } = watch();
    await watcher.ready;
    connections[0]!.events.onLost();
    await clock.advance(500);
    expect([connections.length, told]).toEqual([2, ['gap']]);
    state.confirm = () => Promise.reject(new Error('broken'));
    await clock.advance(10_500);
    expect([connections.length, told]).toEqual([3, ['gap', 'gap']]);
  });

  it('closes its connection a round after the last watch was closed', async () => {
    const { clock, connections, watch } = bench();
    const { watcher } = watch();
    await watcher.ready;
    watcher.close();
    await clock.advance(10_000);
    expect([connections[0]!.hasEnded, clock.pendingTimers]).toEqual([true, 0]);
  });

  it('fails a watch that gets no connection, at once or in time, and ends a connection that comes after closing', async () => {
    const { clock, connections, state, watches, watch } = bench();
    state.connect = () => Promise.reject(failure('failed'));
    await expect(watch().watcher.ready).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'failed' });
    let connected = (_: unknown) => {};
    state.connect = () => new Promise((resolve) => (connected = resolve));
    await clock.advance(500);
    const timedOut = expect(watch().watcher.ready).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'timeout' });
    await clock.advance(500);
    await timedOut;
    watches.close();
    connected(undefined);
    await clock.flush();
    expect([connections.map(({ hasEnded }) => hasEnded), clock.pendingTimers]).toEqual([[true], 0]);
  });
});
