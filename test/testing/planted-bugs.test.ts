/** Bugs that are planted on purpose. A simulation that misses them would find nothing else either. */
import { checkSeeds, type Scenario, type SimulatedProcess, SimulationError, simulate } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';

async function firstFailure(run: Promise<unknown>): Promise<SimulationError> {
  const failure = await run.catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(SimulationError);
  return failure as SimulationError;
}

async function requestWithin<T>(process: SimulatedProcess, to: string, message: unknown, limitMs: number): Promise<T> {
  const controller = new AbortController();
  void process.sleep(limitMs).then(() => controller.abort(new Error('no answer in time')));
  return process.request<T>(to, message, { signal: controller.signal });
}

/** A shop that charges a card, and tries again when no answer comes. */
function shop(dedupes: boolean): Scenario {
  return async (world) => {
    const charged: string[] = [];
    world.node('bank', {
      start: (process) =>
        process.serve(async (orderId: string) => {
          if (dedupes && charged.includes(orderId)) return 'charged before';
          charged.push(orderId);
          return 'charged';
        }),
    });
    world.invariant('no order is charged twice', () => new Set(charged).size === charged.length);
    await world.node('shop').run('sell', async (process) => {
      for (let order = 1; order <= 5; order++) {
        for (let attempt = 1; attempt <= 5; attempt++) {
          const isDone = await requestWithin(process, 'bank', `order ${order}`, 50).then(
            () => true,
            () => false,
          );
          if (isDone) break;
        }
      }
    });
  };
}

/** A lock that expires, and a store that may or may not check the fence of each write. */
function lockedCounter(checksFence: boolean): Scenario {
  return async (world) => {
    let lock = { owner: '', fence: 0, untilMs: 0 };
    let highestFence = 0;
    let lastWriter = 0;
    const accepted: number[] = [];
    world.node('store', {
      start: (process) =>
        process.serve((message: { kind: 'lock' | 'write'; owner: string; fence: number }) => {
          if (message.kind === 'lock') {
            if (process.clock.now() < lock.untilMs) return 0;
            lock = { owner: message.owner, fence: lock.fence + 1, untilMs: process.clock.now() + 100 };
            return lock.fence;
          }
          if (checksFence && message.fence < highestFence) return 0;
          highestFence = Math.max(highestFence, message.fence);
          lastWriter = message.fence;
          accepted.push(lastWriter);
          return 1;
        }),
    });
    world.invariant('a later holder is never overwritten by an earlier one', () =>
      accepted.every((fence, index) => index === 0 || fence >= accepted[index - 1]!),
    );
    const workers = ['a', 'b'].map((owner) =>
      world.node(owner, {
        start: async (process) => {
          for (;;) {
            await process.sleep(process.random.between(1, 40));
            const fence = await process.request<number>('store', { kind: 'lock', owner });
            if (fence === 0) continue;
            await process.sleep(process.random.between(10, 60));
            await process.request('store', { kind: 'write', owner, fence });
          }
        },
      }),
    );
    for (let pause = 0; pause < 4; pause++) {
      await world.sleep(world.random.between(50, 300));
      const victim = world.random.pick(workers);
      victim.freeze();
      await world.sleep(world.random.between(50, 200));
      victim.thaw();
    }
    await world.sleep(200);
  };
}

describe('checkSeeds', () => {
  it('finds a card that is charged twice when a lost reply is tried again, and the seed repeats it', async () => {
    const network = { replyLoss: 0.02 } as const;
    const failure = await firstFailure(checkSeeds({ seeds: 200, network }, shop(false)));
    expect(failure.message).toContain('no order is charged twice');
    const again = await firstFailure(simulate({ seed: failure.seed, network }, shop(false)));
    expect(again.message).toBe(failure.message);
    expect(again.digest).toBe(failure.digest);
  });

  it('finds nothing once the bank knows the order', async () => {
    await checkSeeds({ seeds: 200, network: { replyLoss: 0.2, duplicate: 0.1 } }, shop(true));
  });

  it('finds a lock that a frozen holder outlives, when writes carry no fence', async () => {
    const failure = await firstFailure(checkSeeds({ seeds: 200 }, lockedCounter(false)));
    expect(failure.message).toContain('a later holder is never overwritten');
    const again = await firstFailure(simulate({ seed: failure.seed }, lockedCounter(false)));
    expect(again.message).toBe(failure.message);
  });

  it('finds nothing once the store checks the fence', async () => {
    await checkSeeds({ seeds: 200 }, lockedCounter(true));
  });

  it('finds a deadline that was sent as an instant of the sender own clock', async () => {
    const failure = await firstFailure(
      checkSeeds({ seeds: 5 }, async (world) => {
        const server = world.node('server', {
          start: (process) => process.serve((deadline: number) => process.clock.now() < deadline),
        });
        const inTime = await world
          .node('client')
          .run('ask', (process) => process.request(server, process.clock.now() + 1000));
        expect(inTime).toBe(true);
      }),
    );
    expect(failure.reason).toBe('error');
  });

  it('finds a counter that two handlers read before either writes', async () => {
    const failure = await firstFailure(
      checkSeeds({ seeds: 50 }, async (world) => {
        let stored = 0;
        const server = world.node('server', {
          start: (process) =>
            process.serve(async () => {
              const seen = stored;
              await process.sleep(1);
              stored = seen + 1;
            }),
        });
        const clients = Array.from({ length: 3 }, (_, index) => world.node(`client ${index}`));
        await Promise.all(clients.map((client) => client.run('add', (process) => process.request(server, 1))));
        world.atEnd('every addition counts', () => stored === 3);
      }),
    );
    expect(failure.reason).toBe('end-check');
  });
});
