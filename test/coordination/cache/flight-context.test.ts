/** Loads that begin inside a call, which `holdfast/context` carries to them. */
import { describe, expect, it } from 'vitest';
import { deadline, pipeline, retry } from '../../../src/index.js';
import { currentCall, enableContext } from '../../../src/integrations/context.js';
import { forbidUnhandledRejections } from '../../support/unhandled-rejections.ts';
import { type Changes, setUp } from './support.ts';

enableContext();
forbidUnhandledRejections();

const ways: readonly (readonly [string, Changes])[] = [
  ['in memory alone', { store: undefined }],
  ['before a store', {}],
];

describe.each(ways)('a load that begins inside a call, %s,', (_, way) => {
  /** A loader that asks a source through a pipeline of its own, for 100 ms. */
  function setUpNested(changes: Changes = {}) {
    const remaining: (number | undefined)[] = [];
    const reasons: unknown[] = [];
    const load = () =>
      pipeline(deadline({ after: '10s', clock: world.clock })).execute(async (call) => {
        remaining.push(currentCall()?.remainingMs);
        call.signal.addEventListener('abort', () => reasons.push(call.reason));
        await world.clock.sleep(100);
        return remaining.length;
      });
    const world = setUp({ ...way, hardTimeout: '2s', load, ...changes });
    return { ...world, remaining, reasons };
  }

  it('goes on for the others when the deadline of the caller who began it is over', async () => {
    const { users, clock, remaining } = setUpNested();
    const first = pipeline(deadline({ after: 50, clock })).attempt(() => users.get('42'));
    const second = pipeline(deadline({ after: '1s', clock })).attempt(() => users.get('42'));
    await clock.advance(200);
    expect([(await first).ok, await second, remaining.length]).toEqual([false, { ok: true, value: 1 }, 1]);
  });

  it('goes on for the others when the caller who began it is aborted', async () => {
    const { users, clock } = setUpNested();
    const controller = new AbortController();
    const first = pipeline().attempt(() => users.get('42'), { signal: controller.signal });
    const second = users.get('42');
    await clock.advance(50);
    controller.abort('gone');
    await clock.advance(200);
    expect([await first, await second]).toEqual([{ ok: false, error: 'gone' }, 1]);
  });

  it('has the time of the load, which ends the pipelines inside when nobody waits any more', async () => {
    const { users, clock, remaining, reasons } = setUpNested();
    const controller = new AbortController();
    const alone = pipeline(deadline({ after: '1s', clock })).attempt(() =>
      users.get('42', { signal: controller.signal }),
    );
    await clock.advance(50);
    controller.abort('gone');
    await clock.advance(50);
    expect([remaining, reasons, (await alone).ok]).toEqual([[2_000], ['gone'], false]);
  });

  it('is the same for many keys that are loaded at once', async () => {
    const { clock, users } = setUpNested({
      loadMany: (keys) =>
        pipeline().execute(async () => {
          await clock.sleep(100);
          return keys.map((key) => `user ${key}`);
        }),
    });
    const first = pipeline(deadline({ after: 50, clock })).attempt(() => users.getMany(['1', '2']));
    const second = users.get('2');
    await clock.advance(200);
    expect([(await first).ok, await second]).toEqual([false, 'user 2']);
  });
});

describe('a load that begins inside a retry', () => {
  it('leaves the attempts to it', async () => {
    const steady = (backoffMs: number) =>
      pipeline(retry({ attempts: 3, backoff: () => backoffMs, clock: world.clock }));
    const inner = () => steady(1).execute(() => world.source.load('42'));
    const world = setUp({ store: undefined, load: inner, failBackoff: () => 1 });
    world.source.error = new Error('down');
    const outcome = steady(5).attempt(() => world.users.get('42'));
    await world.clock.advance(100);
    expect([(await outcome).ok, world.source.loads]).toEqual([false, 3]);
  });
});
