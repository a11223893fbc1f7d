import type { StoreError } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { RedisWatches } from '../../src/stores/redis-watches.js';
import { Watcher } from '../../src/stores/watchers.js';

/** Watches of one channel, whose server publishes or does not, and whose connection receives messages or does not. */
function bench() {
  const clock = virtualClock();
  const state = { isHeard: true, canPublish: true, isDead: false };
  const count = { subscribed: 0, tried: 0 };
  let hear = (_channel: string, _message: string) => {};
  let begin = (_moved?: string) => {};
  const watches = new RedisWatches(
    {
      state: () => 'ready',
      async subscribe() {
        count.subscribed++;
        if (state.isDead) await new Promise(() => {});
      },
      async unsubscribe() {},
      listen(onMessage, onConnection) {
        [hear, begin] = [onMessage, onConnection];
        return () => {};
      },
    },
    async (channel) => {
      count.tried++;
      if (!state.canPublish) throw new Error('NOPERM');
      if (state.isHeard) hear(channel, '');
    },
    500,
    clock,
    (error) => error as StoreError,
  );
  const watch = async (channel: string) => {
    const told: string[] = [];
    const watcher = new Watcher('redis', 'key', ({ kind }) => told.push(kind));
    watches.add(watcher, 'message', channel);
    await watcher.ready;
    return told;
  };
  return {
    ...{ clock, state, count, watch },
    hear: (channel: string, message: string) => hear(channel, message),
    begin: (moved?: string) => begin(moved),
  };
}

const round = '5s';

describe('RedisWatches', () => {
  it('reports nothing while published messages are heard, and subscribes once', async () => {
    const { clock, count, watch } = bench();
    const told = await watch('channel');
    for (let rounds = 0; rounds < 20; rounds++) await clock.advance(round);
    expect([told, count.subscribed]).toEqual([[], 1]);
    // A message that is heard also counts for the next round.
    expect(count.tried).toBe(10);
  });

  it('tells a gap each round while what is published is not heard, and subscribes again', async () => {
    const { clock, state, count, watch } = bench();
    const told = await watch('channel');
    state.isHeard = false;
    await clock.advance(round);
    expect(told).toEqual([]);
    await clock.advance(round);
    expect([told[0], count.subscribed]).toEqual(['gap', 2]);
    await clock.advance(round);
    expect([told.slice(1).includes('gap'), count.subscribed]).toEqual([true, 3]);
    state.isHeard = true;
    await clock.advance(round);
    told.length = 0;
    for (let rounds = 0; rounds < 5; rounds++) await clock.advance(round);
    expect([told, count.subscribed]).toEqual([[], 4]);
  });

  it('reports a gap each round while nobody replies, and subscribes once', async () => {
    const { clock, state, count, watch } = bench();
    const told = await watch('channel');
    state.isDead = true;
    state.isHeard = false;
    for (let rounds = 0; rounds < 6; rounds++) await clock.advance(round);
    expect([told, count.subscribed]).toEqual([['gap', 'gap', 'gap', 'gap', 'gap'], 2]);
  });

  it('reports a gap each round if it may not publish, and does not subscribe again for that', async () => {
    const { clock, state, count, watch } = bench();
    state.canPublish = false;
    const told = await watch('channel');
    for (let rounds = 0; rounds < 4; rounds++) await clock.advance(round);
    expect([told, count.subscribed]).toEqual([['gap', 'gap', 'gap'], 1]);
  });

  it('publishes no test messages while it hears others', async () => {
    const { clock, count, hear, watch } = bench();
    const told = await watch('channel');
    for (let rounds = 0; rounds < 4; rounds++) {
      hear('channel', '');
      await clock.advance(round);
    }
    expect([told, count.tried]).toEqual([[], 0]);
    hear('channel', 'message');
    expect(told).toEqual(['changed']);
  });

  it('reports a gap in the first round after the connection was lost, whatever was heard before', async () => {
    const { clock, state, begin, hear, watch } = bench();
    const told = await watch('channel');
    hear('channel', '');
    [state.isDead, state.isHeard] = [true, false];
    begin();
    await clock.advance(round);
    expect(told).toEqual(['gap']);
  });

  it('reports a gap on the channel that has moved, and on no other', async () => {
    const { clock, count, begin, watch } = bench();
    const [moved, other] = [await watch('moved'), await watch('other')];
    begin('moved');
    await clock.advance(1);
    expect([moved, other, count.subscribed]).toEqual([['gap'], [], 3]);
    begin();
    await clock.advance(1);
    expect([moved, other, count.subscribed]).toEqual([['gap', 'gap'], ['gap'], 5]);
  });
});
