import { mock } from 'node:test';
import { afterEach, describe, expect, it, vi } from 'vitest';

// In this order: once vitest has removed a fake of its own, those of node:test cannot be removed any more.
describe('the event loop at import', { shuffle: false }, () => {
  afterEach(() => {
    vi.useRealTimers();
    mock.timers.reset();
    vi.unstubAllGlobals();
    vi.resetModules();
  });

  const load = () => {
    vi.resetModules();
    return import('../../src/core/event-loop.js');
  };

  it('uses the functions of the platform', async () => {
    const { atTurnEnd, atTickEnd, asMicrotask, queueTask } = await load();
    expect([atTurnEnd, atTickEnd, asMicrotask, queueTask]).toEqual([
      setImmediate,
      process.nextTick,
      queueMicrotask,
      setImmediate,
    ]);
  });

  it('is that of the platform also where somebody has bound or wrapped it', async () => {
    const wrapped = (task: () => void) => setTimeout(task, 0);
    for (const given of [setImmediate.bind(globalThis), wrapped]) {
      vi.stubGlobal('setImmediate', given);
      expect((await load()).atTurnEnd).toBe(given);
    }
  });

  it.each([
    ['vitest', () => void vi.useFakeTimers({ toFake: ['setImmediate', 'queueMicrotask'] })],
    ['node:test', () => mock.timers.enable({ apis: ['setImmediate'] })],
    ['a platform that has none', () => vi.stubGlobal('setImmediate', undefined)],
  ])('runs tasks in their own turn past the fakes of %s', async (_whose, put) => {
    put();
    const { atTurnEnd, asMicrotask, queueTask } = await load();
    expect(atTurnEnd).toBeUndefined();
    const order: string[] = [];
    await new Promise<void>((resolve) => {
      queueTask(() => {
        order.push('task');
        resolve();
      });
      asMicrotask(() => order.push('microtask'));
      order.push('here');
    });
    expect(order).toEqual(['here', 'microtask', 'task']);
  });

  it('closes the channel that carried a task, which would keep the process alive', async () => {
    const ends: InstanceType<typeof MessageChannel>['port2'][] = [];
    const Channel = globalThis.MessageChannel;
    vi.stubGlobal('setImmediate', undefined);
    vi.stubGlobal(
      'MessageChannel',
      class extends Channel {
        constructor() {
          super();
          ends.push(this.port2);
        }
      },
    );
    const { queueTask } = await load();
    const closed = new Promise<void>((resolve) => {
      queueTask(() => {});
      ends[0]!.addEventListener('close', () => resolve());
    });
    await closed;
    expect(ends).toHaveLength(1);
  });

  it('uses a timer if the platform has nothing better', async () => {
    vi.stubGlobal('setImmediate', undefined);
    vi.stubGlobal('MessageChannel', undefined);
    const { queueTask } = await load();
    await new Promise<void>((resolve) => queueTask(resolve));
  });
});
