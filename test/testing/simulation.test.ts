import { checkSeeds, type Scenario, type SimulateOptions, SimulationError, simulate } from 'holdfast/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';

async function failureOf(run: Promise<unknown>): Promise<SimulationError> {
  const failure = await run.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(failure).toBeInstanceOf(SimulationError);
  return failure as SimulationError;
}

/** Clients that race for a counter over a bad network, while the server crashes, freezes and is cut off. */
const stormyNetwork = { delay: { mean: 3 }, loss: 0.05, replyLoss: 0.05, duplicate: 0.05 } as const;
const storm: Scenario<number> = async (world) => {
  let count = 0;
  const server = world.node('server', {
    drift: 0.01,
    start: (process) =>
      process.serve(async () => {
        const seen = count;
        await process.sleep(process.random.between(0, 2));
        count = seen + 1;
        return count;
      }),
  });
  const clients = Array.from({ length: 5 }, (_, index) => world.node(`client ${index}`, { wallOffset: index * 100 }));
  const tasks = clients.map((client) =>
    client.run('count', async (process) => {
      for (let round = 0; round < 20; round++) {
        const controller = new AbortController();
        const limit = process.sleep(20).then(() => controller.abort());
        await process.request(server, { round }, { signal: controller.signal }).catch(() => undefined);
        await limit;
      }
    }),
  );
  void world.run('faults', async () => {
    await world.sleep(world.random.between(10, 50));
    server.freeze();
    await world.sleep(30);
    server.thaw();
    await world.sleep(world.random.between(10, 50));
    server.restart();
    world.network.cut(clients[0]!, server);
    await world.sleep(50);
    world.network.heal();
  });
  await Promise.all(tasks);
  return count;
};

describe('simulate', () => {
  afterEach(() => {
    vi.unstubAllEnvs();
    vi.useRealTimers();
  });

  it('replays the same seed bit for bit', async () => {
    const reports = [];
    for (let run = 0; run < 3; run++) reports.push(await simulate({ seed: 7, network: stormyNetwork }, storm));
    expect(reports[1]).toEqual(reports[0]);
    expect(reports[2]).toEqual(reports[0]);
    expect(reports[0]!.steps).toBeGreaterThan(300);
  });

  it('gives the digest that is written here, on every machine', async () => {
    const { digest, steps } = await simulate({ seed: 7, network: stormyNetwork }, storm);
    expect({ digest, steps }).toEqual({ digest: 'b0575ae7b742c4af', steps: 422 });
  });

  it('goes another way for another seed', async () => {
    const reports = [];
    for (let seed = 1; seed <= 10; seed++) reports.push(await simulate({ seed, network: stormyNetwork }, storm));
    expect(new Set(reports.map(({ digest }) => digest)).size).toBe(10);
    expect(new Set(reports.map(({ trace }) => trace.join())).size).toBe(10);
  });

  it('replays the same way beside other simulations', async () => {
    const alone = await simulate({ seed: 7, network: stormyNetwork }, storm);
    const [together] = await Promise.all([
      simulate({ seed: 7, network: stormyNetwork }, storm),
      simulate({ seed: 8, network: stormyNetwork }, storm),
    ]);
    expect(together).toEqual(alone);
  });

  it('tells a difference in one message by the digest', async () => {
    const say = (text: string) =>
      simulate({ seed: 1 }, async (world) => {
        const server = world.node('server', { start: (process) => process.serve(() => 'same') });
        await world.node('client').run('say', (client) => client.request(server, { text }));
      });
    expect((await say('hello')).digest).not.toBe((await say('hallo')).digest);
  });

  it('runs simultaneous events in an order drawn from the seed', async () => {
    const orderOf = async (seed: number) => {
      const order: number[] = [];
      await simulate({ seed }, async (world) => {
        for (let index = 0; index < 3; index++) void world.sleep(10).then(() => order.push(index));
        await world.sleep(11);
      });
      return order.join('');
    };
    const orders = new Set<string>();
    for (let seed = 0; seed < 60; seed++) orders.add(await orderOf(seed));
    expect(orders.size).toBe(6);
  });

  it('lets all microtasks run between two events of one instant', async () => {
    await checkSeeds({ seeds: 20 }, async (world) => {
      const order: string[] = [];
      for (const name of ['a', 'b', 'c']) {
        void world.sleep(5).then(async () => {
          order.push(name);
          for (let link = 0; link < 10; link++) await undefined;
          order.push(name);
        });
      }
      await world.sleep(6);
      expect(order[0]).toBe(order[1]);
      expect(order[2]).toBe(order[3]);
      expect(order[4]).toBe(order[5]);
    });
  });

  it('takes no real time and needs no real timer', async () => {
    vi.useFakeTimers();
    const { virtualMs } = await simulate({ maxTime: '7d' }, (world) => world.sleep('6d'));
    expect(virtualMs).toBe(6 * 86_400_000);
  });

  it('checks an invariant after each step, and names it with seed, step, time, trace and replay', async () => {
    const failure = await failureOf(
      simulate({ seed: 1234 }, async (world) => {
        let balance = 10;
        world.invariant('never in debt', () => balance >= 0);
        for (const amount of [4, 4, 4, 4]) {
          await world.sleep(100);
          world.log(`spend ${amount}`);
          balance -= amount;
        }
      }),
    );
    expect(failure.reason).toBe('invariant');
    expect(failure.virtualMs).toBe(300);
    expect(failure.step).toBe(3);
    expect(failure.trace.at(-1)).toBe('#3 300.000 ms log world spend 4');
    for (const part of [
      'simulate: invariant "never in debt" does not hold',
      `seed 1234, step 3, virtual time 300.000 ms, digest ${failure.digest}`,
      'log world spend 4',
      'simulate({ seed: 1234, ... }, scenario)',
      'HOLDFAST_SEED=1234',
    ]) {
      expect(failure.message).toContain(part);
    }
  });

  it('keeps what an invariant threw as the cause', async () => {
    const failure = await failureOf(
      simulate({}, (world) => {
        world.invariant('equal', () => expect(1).toBe(2));
        return world.sleep(1);
      }),
    );
    expect((failure.cause as Error).message).toContain('to be 2');
    expect(failure.message).toContain('because: ');
  });

  it('tells of what cannot be made a string, thrown here or by who was asked', async () => {
    const strange = Object.create(null) as object;
    const here = await failureOf(simulate({}, () => Promise.reject(strange)));
    expect(here.cause).toBe(strange);
    const asked = await failureOf(
      simulate({}, async (world) => {
        world.node('server', { start: (process) => process.serve(() => Promise.reject(strange)) });
        await world.node('client').run('ask', (process) => process.request('server', 1));
      }),
    );
    for (const { message } of [here, asked]) expect(message).toMatch(/because: .*something that cannot be shown/);
  });

  it('shows the last lines only, as many as were asked for', async () => {
    const failure = await failureOf(
      simulate({ traceLines: 3 }, (world) => {
        for (let line = 1; line <= 10; line++) world.log(`line ${line}`);
        throw new Error('enough');
      }),
    );
    expect(failure.trace.map((line) => line.split('world ')[1])).toEqual(['line 8', 'line 9', 'line 10']);
  });

  it('resumes when an awaited condition comes true, at that very instant', async () => {
    await simulate({}, async (world) => {
      let isReady = false;
      void world.run('get ready', async () => {
        await world.sleep(70);
        isReady = true;
        await world.sleep(1000);
      });
      await world.eventually('ready', () => isReady, { within: '1s' });
      expect(world.now()).toBe(70);
    });
  });

  it('fails when a condition has not come true in time', async () => {
    const failure = await failureOf(
      simulate({}, async (world) => {
        void world.run('tick', async () => {
          for (;;) await world.sleep(10);
        });
        await world.eventually('done', () => false, { within: '1s' });
      }),
    );
    expect(failure.message).toContain('"done" has not come true within 1000 ms');
    expect(failure.virtualMs).toBe(1000);
  });

  it('does not end while something that must come true has not', async () => {
    let isDone = false;
    await simulate({}, (world) => {
      void world.run('work', async () => {
        await world.sleep(500);
        isDone = true;
      });
      void world.eventually('done', () => isDone, { within: '1s' });
    });
    expect(isDone).toBe(true);
  });

  it('checks what must hold at the end after the scenario has returned', async () => {
    const failure = await failureOf(
      simulate({}, (world) => {
        world.atEnd('nothing left', () => false);
      }),
    );
    expect(failure.reason).toBe('end-check');
    expect(failure.message).toContain('end check "nothing left" does not hold');
  });

  it('wraps what a scenario throws, and keeps it as the cause', async () => {
    const thrown = new Error('my mistake');
    const failure = await failureOf(
      simulate({ seed: 9 }, async (world) => {
        await world.sleep(5);
        throw thrown;
      }),
    );
    expect(failure.cause).toBe(thrown);
    expect(failure.reason).toBe('error');
    expect(failure.seed).toBe(9);
  });

  it('fails when a task throws and nobody waits for it', async () => {
    const failure = await failureOf(
      simulate({}, async (world) => {
        void world.node('server').run('compact', () => {
          throw new Error('disk full');
        });
        await world.sleep(10);
      }),
    );
    expect(failure.message).toContain('task "compact" threw and nobody waits for it');
    expect(failure.message).toContain('disk full');
  });

  it('hands what a task throws to whoever waits for it', async () => {
    await simulate({}, async (world) => {
      const task = world.node('server').run('compact', async (process) => {
        await process.sleep(5);
        throw new Error('disk full');
      });
      await expect(Promise.resolve(task)).rejects.toThrow('disk full');
    });
  });

  it('reports a deadlock, and names what waits', async () => {
    const failure = await failureOf(
      simulate({}, async (world) => {
        const server = world.node('server', { start: (process) => process.serve(() => 1) });
        const client = world.node('client');
        world.network.link(client, server, { loss: 1 });
        await client.run('ask', (process) => process.request(server, 'hello'));
      }),
    );
    expect(failure.reason).toBe('deadlock');
    expect(failure.message).toContain('task "ask" of node "client" has not ended');
    expect(failure.message).toContain('request 1 of node "client" to "server" has no answer: lost');
  });

  it('reports a deadlock when the scenario waits for a promise that nobody settles', async () => {
    const failure = await failureOf(simulate({}, () => new Promise(() => {})));
    expect(failure.reason).toBe('deadlock');
  });

  it('names a node that was never thawed', async () => {
    const failure = await failureOf(
      simulate({}, async (world) => {
        const node = world.node('sleeper');
        node.freeze();
        await node.run('wake', () => 1);
      }),
    );
    expect(failure.message).toContain('node "sleeper" is frozen and holds back 1 events');
  });

  it('stops a scenario that never ends by its events', async () => {
    const failure = await failureOf(
      simulate({ maxSteps: 500 }, async (world) => {
        for (;;) await world.sleep(0);
      }),
    );
    expect(failure.reason).toBe('limit');
    expect(failure.message).toContain('maxSteps, 500 events');
    expect(failure.step).toBe(500);
  });

  it('stops a scenario that waits again and again for what is true', async () => {
    const failure = await failureOf(
      simulate({ seed: 1, maxSteps: 50 }, async (world) => {
        const jobs = ['never taken'];
        let rounds = 0;
        for (;;) {
          await world.eventually('there is a job', () => jobs.length > 0, { within: '1s' });
          // So that this ends where it is not stopped.
          expect(++rounds).toBeLessThan(1_000);
        }
      }),
    );
    expect(failure.reason).toBe('limit');
    expect(failure.message).toContain('has not ended after maxSteps, 50 events');
  });

  it('stops a scenario that never ends by its time', async () => {
    const failure = await failureOf(
      simulate({ maxTime: '1m' }, async (world) => {
        void world.run('heartbeat', async () => {
          for (;;) await world.sleep('7s');
        });
        await new Promise(() => {});
      }),
    );
    expect(failure.reason).toBe('limit');
    expect(failure.message).toContain('maxTime, 60000 ms');
    expect(failure.message).toContain('task "heartbeat" has not ended');
  });

  it('takes the seed from HOLDFAST_SEED only when none is given', async () => {
    vi.stubEnv('HOLDFAST_SEED', '77');
    expect((await simulate({}, () => {})).seed).toBe(77);
    expect((await simulate({ seed: 5 }, () => {})).seed).toBe(5);
    vi.stubEnv('HOLDFAST_SEED', '');
    expect((await simulate({}, () => {})).seed).toBe(1);
    vi.stubEnv('HOLDFAST_SEED', 'abc');
    await expect(simulate({}, () => {})).rejects.toThrow("HOLDFAST_SEED must be an integer of at least 0, got 'abc'");
  });

  it('says every event in words to onEvent', async () => {
    const lines: string[] = [];
    await simulate({ seed: 1, network: { delay: 2 }, onEvent: (line) => lines.push(line) }, async (world) => {
      const server = world.node('server', { start: (process) => process.serve(() => ({ ok: 1 })) });
      await world.node('client').run('ask', (process) => process.request(server, { id: 4 }));
    });
    expect(lines).toEqual([
      '#0 0.000 ms start server process 1',
      '#0 0.000 ms start client process 1',
      '#1 0.000 ms task client ask',
      '#1 0.000 ms request client -> server {"id":4}',
      '#2 2.000 ms receive client -> server',
      '#2 2.000 ms reply server -> client {"ok":1}',
      '#3 4.000 ms answer server -> client {"ok":1}',
    ]);
  });

  it.each([
    [{ seed: -1 }, 'option "seed" must be an integer'],
    [{ sead: 1 }, 'unknown option "sead", did you mean "seed"?'],
    [{ maxTime: '1 day' }, 'option "maxTime" must be a duration'],
    [{ network: { loss: 2 } }, 'option "loss" must be a number from 0 to 1'],
    [{ network: { delay: { min: 5, max: 1 } } }, 'option "delay" must be a duration'],
    [{ network: { delay: { mean: 5, shape: 0 } } }, 'option "delay" must be'],
    [{ network: { delay: {} } }, 'option "delay" must be'],
  ])('refuses the options %j', async (options, message) => {
    await expect(simulate(options as SimulateOptions, () => {})).rejects.toThrow(message);
  });

  it.each(['request', 'receive', 'reply', 'abort'])('ends with what onEvent throws about a %s', async (kind) => {
    const failure = await failureOf(
      simulate(
        {
          seed: 9,
          onEvent(line) {
            if (line.includes(` ${kind} `)) throw new Error('the log is full');
          },
        },
        async (world) => {
          const server = world.node('server', { start: (process) => process.serve(() => process.sleep(50)) });
          const stop = new AbortController();
          const client = world.node('client');
          void client.run('ask', (process) => process.request(server, 1, { signal: stop.signal }).catch(() => 1));
          await world.sleep(10);
          if (kind === 'abort') stop.abort();
          await world.sleep(100);
        },
      ),
    );
    expect(failure).toMatchObject({ reason: 'error', seed: 9, cause: { message: 'the log is full' } });
    expect(failure.message).toContain('onEvent threw');
  });

  it('refuses to go on with a world that has ended', async () => {
    const { result: world } = await simulate({}, (one) => ({ one }));
    expect(() => world.one.node('late')).toThrow('has ended');
    expect(() => world.one.run('late', () => {})).toThrow('has ended');
    await expect(world.one.sleep('1s')).rejects.toThrow('has ended');
  });
});

describe('checkSeeds', () => {
  afterEach(() => {
    vi.unstubAllEnvs();
  });

  it('plays as many seeds as asked, from the first one on', async () => {
    const seeds: number[] = [];
    const report = await checkSeeds({ seeds: 5, from: 100 }, async (world) => {
      seeds.push(world.seed);
      await world.sleep(10);
    });
    // The first one runs twice, to show that the scenario repeats itself.
    expect(seeds).toEqual([100, 100, 101, 102, 103, 104]);
    expect(report).toEqual({ seeds: 5, steps: 5, virtualMs: 50 });
  });

  it('stops at the first seed that fails, and names it', async () => {
    const seeds = new Set<number>();
    const failure = await failureOf(
      checkSeeds({ seeds: 100 }, (world) => {
        seeds.add(world.seed);
        world.atEnd('seed below 17', () => world.seed < 17);
      }),
    );
    expect(failure.seed).toBe(17);
    expect(seeds.size).toBe(17);
  });

  it('plays only the seed in HOLDFAST_SEED', async () => {
    vi.stubEnv('HOLDFAST_SEED', '5555');
    const seeds = new Set<number>();
    const report = await checkSeeds({ seeds: 100 }, (world) => {
      seeds.add(world.seed);
    });
    expect([...seeds]).toEqual([5555]);
    expect(report.seeds).toBe(1);
  });

  it('finds out a scenario that does not repeat itself', async () => {
    let runs = 0;
    const failure = await failureOf(checkSeeds({ seeds: 3 }, (world) => world.sleep(++runs)));
    expect(failure.reason).toBe('not-deterministic');
    expect(failure.message).toContain('does not repeat itself');
    // The names that locks and idempotency give their owners come from there.
    expect(failure.message).toContain('crypto');
  });

  it('refuses what is no scenario at once, as does a simulation', async () => {
    const missing = undefined as never;
    await expect(checkSeeds({ seeds: 1 }, missing)).rejects.toThrow(/^checkSeeds: option "scenario" is required/);
    await expect(simulate({}, 5 as never)).rejects.toThrow(/^simulate: option "scenario" must be a function, got 5/);
  });

  it('refuses a seed of its own and a count below one', async () => {
    await expect(checkSeeds({ seeds: 1, seed: 3 } as never, () => {})).rejects.toThrow('unknown option "seed"');
    await expect(checkSeeds({ seeds: 0 }, () => {})).rejects.toThrow('option "seeds" must be an integer from 1');
  });
});
