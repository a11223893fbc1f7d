import { checkSeeds, NodeCrashedError, type Scenario, type SimulatedProcess, simulate } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { callbackTimer } from '../../src/core/clock.ts';

async function play<T>(scenario: Scenario<T>): Promise<T> {
  const { result } = await simulate({ seed: 1, network: { delay: 1 } }, scenario);
  return result;
}

describe('crash and restart of a simulated node', () => {
  it('never runs timers and tasks of a crashed process again', async () => {
    await play(async (world) => {
      const beats: number[] = [];
      const node = world.node('node', {
        start: async (process) => {
          for (;;) {
            await process.sleep(10);
            beats.push(process.incarnation);
          }
        },
      });
      await world.sleep(25);
      node.crash();
      expect(node.state).toBe('down');
      expect(node.pendingTimers).toBe(0);
      await world.sleep(100);
      expect(beats).toEqual([1, 1]);
      node.restart();
      await world.sleep(15);
      expect(beats).toEqual([1, 1, 2]);
    });
  });

  it('crashes in the middle of a handler: half of the work is done, the caller sees a reset', async () => {
    await play(async (world) => {
      const disk: string[] = [];
      const server = world.node('server', {
        start: (process) =>
          process.serve(async () => {
            disk.push('debit');
            await process.sleep(10);
            disk.push('credit');
            return 'done';
          }),
      });
      const answer = world.node('client').run('transfer', (process) => process.request(server, 1));
      await world.sleep(5);
      server.crash();
      await expect(Promise.resolve(answer)).rejects.toMatchObject({ code: 'ECONNRESET' });
      await world.sleep(100);
      expect(disk).toEqual(['debit']);
    });
  });

  it('loses what a process held in memory, and keeps what lay outside', async () => {
    await play(async (world) => {
      let durable = 0;
      const server = world.node('server', {
        start: (process) => {
          let volatile = 0;
          process.serve(() => ({ volatile: ++volatile, durable: ++durable }));
        },
      });
      const ask = () => world.node(`client ${world.now()}`).run('ask', (process) => process.request(server, 1));
      expect(await ask()).toEqual({ volatile: 1, durable: 1 });
      server.restart();
      expect(await ask()).toEqual({ volatile: 1, durable: 2 });
    });
  });

  it('rejects a task of a crashed node for whoever waits for it, and for nobody else', async () => {
    await play(async (world) => {
      const node = world.node('node');
      const lost = node.run('work', (process) => process.sleep(100));
      void node.run('unwatched work', (process) => process.sleep(100));
      await world.sleep(10);
      node.crash();
      await expect(Promise.resolve(lost)).rejects.toBeInstanceOf(NodeCrashedError);
      await expect(Promise.resolve(node.run('late', () => 1))).rejects.toThrow('node "node" is down');
    });
  });

  it('drops replies to a client that has crashed, also when it is up again', async () => {
    await play(async (world) => {
      const server = world.node('server', { start: (process) => process.serve(() => 1) });
      const answers: number[] = [];
      const client = world.node('client', {
        start: async (process) => {
          if (process.incarnation > 1) return;
          await process.request(server, 1);
          answers.push(process.incarnation);
        },
      });
      client.restart();
      await world.sleep(100);
      expect(answers).toEqual([]);
    });
  });

  it('lets nothing out of a process that crashes itself', async () => {
    const ghosts: string[] = [];
    await play(async (world) => {
      const echo = world.node('echo', { start: (process) => process.serve((message) => ghosts.push(String(message))) });
      const server = world.node('server', {
        start: (process) =>
          process.serve(async () => {
            process.node.crash();
            void process.run('ghost task', () => ghosts.push('task'));
            void process.request(echo, 'request');
            void process.sleep(0).then(() => ghosts.push('sleep'));
            process.log('ghost line');
            return 'ghost answer';
          }),
      });
      const answer = world.node('client').run('ask', (process) => process.request(server, 1));
      await expect(Promise.resolve(answer)).rejects.toMatchObject({ code: 'ECONNRESET' });
      server.restart();
      await world.sleep(100);
    });
    expect(ghosts).toEqual([]);
  });

  it.each([
    ['a task that it waits for', (process: SimulatedProcess) => process.run('part', () => process.sleep(100))],
    [
      'a task that began with it and crashes it',
      (process: SimulatedProcess) => process.run('part', () => process.node.crash()),
    ],
    [
      'a sleep that others can end',
      (process: SimulatedProcess, stop: AbortSignal) => process.sleep(100, { signal: stop }),
    ],
    [
      'a request that others can end',
      (process: SimulatedProcess, stop: AbortSignal) => process.request('silent', 1, { signal: stop }),
    ],
  ])('does not resume code of a crashed process after %s', async (_, wait) => {
    const ghosts: string[] = [];
    await play(async (world) => {
      world.node('silent', { start: (process) => process.serve(() => new Promise(() => {})) });
      const stop = new AbortController();
      const node = world.node('node', {
        start: async (process) => {
          if (process.incarnation > 1) return;
          try {
            await wait(process, stop.signal);
          } finally {
            ghosts.push('cleaned up');
          }
        },
      });
      await world.sleep(10);
      node.restart();
      stop.abort();
      await world.sleep(200);
    });
    expect(ghosts).toEqual([]);
  });

  it('never settles what a crashed process starts before its next await', async () => {
    const ghosts: string[] = [];
    await play(async (world) => {
      world.node('node', {
        start: (process) => {
          process.node.crash();
          for (const started of [
            process.sleep(1, { signal: AbortSignal.abort() }),
            process.run('task', () => 1),
            process.request('node', 1),
          ]) {
            started.then(
              () => ghosts.push('done'),
              () => ghosts.push('failed'),
            );
          }
        },
      });
      await world.sleep(10);
    });
    expect(ghosts).toEqual([]);
  });

  it('does not tell a handler of a crashed process that its caller has given up', async () => {
    const undone: number[] = [];
    await play(async (world) => {
      const server = world.node('server', {
        start: (process) =>
          process.serve(async (_message, { signal }) => {
            signal.addEventListener('abort', () => undone.push(process.incarnation));
            await process.sleep(100, { signal }).catch(() => undone.push(process.incarnation));
          }),
      });
      const stop = new AbortController();
      void world
        .node('client')
        .run('ask', (process) => process.request(server, 1, { signal: stop.signal }).catch(() => undefined));
      await world.sleep(10);
      stop.abort();
      server.restart();
      await world.sleep(200);
    });
    expect(undone).toEqual([]);
  });

  it('tells a server that its client has crashed', async () => {
    await play(async (world) => {
      let wasTold = false;
      const server = world.node('server', {
        start: (process) =>
          process.serve(async (_message, { signal }) => {
            await process.sleep(50);
            wasTold = signal.aborted;
          }),
      });
      const client = world.node('client');
      void client.run('ask', (process) => process.request(server, 1));
      await world.sleep(10);
      client.crash();
      await world.sleep(100);
      expect(wasTold).toBe(true);
    });
  });
});

describe('freeze and thaw of a simulated node', () => {
  it('runs nothing while frozen, and what fell due meanwhile in order after the thaw', async () => {
    await checkSeeds({ seeds: 30, network: { delay: 1 } }, async (world) => {
      const order: string[] = [];
      const node = world.node('node', {
        start: (process) => process.serve((message) => order.push(message as string)),
      });
      for (const atMs of [30, 10, 20])
        void node.run('nap', (process) => process.sleep(atMs).then(() => order.push(`timer ${atMs}`)));
      void world.node('client').run('ask', async (process) => {
        await process.sleep(14);
        await process.request(node, 'request at 15');
      });
      await world.sleep(5);
      node.freeze();
      await world.sleep(95);
      expect(order).toEqual([]);
      node.thaw();
      await world.sleep(0);
      await world.sleep(1);
      expect(order).toEqual(['timer 10', 'request at 15', 'timer 20', 'timer 30']);
    });
  });

  it.each([
    ['sleep', (process: SimulatedProcess, signal: AbortSignal) => process.sleep(100, { signal })],
    ['request', (process: SimulatedProcess, signal: AbortSignal) => process.request('silent', 1, { signal })],
  ])('hears only after the thaw that somebody else has ended its %s', async (_, wait) => {
    await play(async (world) => {
      world.node('silent', { start: (process) => process.serve(() => new Promise(() => {})) });
      const stop = new AbortController();
      const node = world.node('node');
      let endedAtMs = 0;
      void node.run('wait', (process) =>
        wait(process, stop.signal).catch((reason) => {
          endedAtMs = world.now();
          expect(reason).toBe('enough');
        }),
      );
      await world.sleep(10);
      node.freeze();
      stop.abort('enough');
      await world.sleep(20);
      expect(endedAtMs).toBe(0);
      node.thaw();
      await world.sleep(1);
      expect(endedAtMs).toBe(30);
      expect(node.pendingTimers).toBe(0);
    });
  });

  it('goes on past a lease that ran out in the freeze, and sees it on its clock', async () => {
    await play(async (world) => {
      const node = world.node('holder');
      const held = node.run('hold', async (process) => {
        const startedMs = process.clock.now();
        await process.sleep(100);
        return process.clock.now() - startedMs;
      });
      await world.sleep(50);
      node.freeze();
      await world.sleep(1000);
      node.thaw();
      expect(await held).toBe(1050);
    });
  });

  it('breaks requests that came in while frozen when the node crashes then', async () => {
    await play(async (world) => {
      const server = world.node('server', { start: (process) => process.serve(() => 1) });
      server.freeze();
      const answer = world.node('client').run('ask', (process) => process.request(server, 1));
      await world.sleep(10);
      server.crash();
      await expect(Promise.resolve(answer)).rejects.toMatchObject({ code: 'ECONNRESET' });
    });
  });

  it('does not let a timer of a crashed process fire that fell due in a freeze', async () => {
    await checkSeeds({ seeds: 10 }, async (world) => {
      const node = world.node('node');
      let fired = 0;
      void node.run('nap', (process) => process.sleep(10).then(() => fired++));
      await world.sleep(5);
      node.freeze();
      await world.sleep(50);
      node.thaw();
      node.crash();
      await world.sleep(50);
      expect(fired).toBe(0);
    });
  });

  it('forgets what fell due in a freeze when the node crashes before it is thawed', async () => {
    await play(async (world) => {
      const node = world.node('node');
      let fired = 0;
      node.clock.schedule(
        callbackTimer(() => fired++),
        node.clock.now() + 10,
      );
      node.freeze();
      await world.sleep(50);
      node.restart();
      await world.sleep(50);
      expect(fired).toBe(0);
    });
  });

  it('takes back a timer that fell due in the freeze', async () => {
    await play(async (world) => {
      const node = world.node('node');
      let fired = 0;
      const timer = callbackTimer(() => fired++);
      node.clock.schedule(timer, node.clock.now() + 10);
      node.freeze();
      await world.sleep(50);
      node.clock.cancel(timer);
      node.thaw();
      await world.sleep(50);
      expect(fired).toBe(0);
    });
  });
});

describe('the clocks of simulated nodes', () => {
  it('shows each node a wall clock of its own', async () => {
    await play(async (world) => {
      const ahead = world.node('ahead', { wallOffset: 3000 });
      const behind = world.node('behind', { wallOffset: -500 });
      await world.sleep(100);
      expect(ahead.clock.wallNow() - world.clock.wallNow()).toBe(3000);
      expect(behind.clock.wallNow() - world.clock.wallNow()).toBe(-500);
    });
  });

  it('jumps on the wall without moving monotonic time or timers', async () => {
    await play(async (world) => {
      const node = world.node('node');
      const nap = node.run('nap', (process) => process.sleep(100));
      await world.sleep(10);
      const wallMs = node.clock.wallNow();
      const monotonicMs = node.clock.now();
      node.jumpWallClock(-86_400_000);
      expect(node.clock.wallNow()).toBe(wallMs - 86_400_000);
      expect(node.clock.now()).toBe(monotonicMs);
      await nap;
      expect(world.now()).toBe(100);
    });
  });

  it('runs fast or slow by its drift, and fires timers by its own time', async () => {
    await play(async (world) => {
      const wokenAt: Record<string, number> = {};
      for (const [name, drift] of [
        ['fast', 1],
        ['slow', -0.5],
        ['true', 0],
      ] as const) {
        void world.node(name, { drift }).run('nap', async (process) => {
          await process.sleep(100);
          wokenAt[name] = world.now();
        });
      }
      await world.sleep(300);
      expect(wokenAt).toEqual({ fast: 50, slow: 200, true: 100 });
    });
  });

  it('keeps the instants of timers when the drift changes', async () => {
    await play(async (world) => {
      const node = world.node('node');
      const nap = node.run('nap', (process) => process.sleep(100));
      await world.sleep(50);
      const beforeMs = node.clock.now();
      node.setDrift(1);
      expect(node.clock.now()).toBe(beforeMs);
      await nap;
      expect(world.now()).toBe(75);
    });
  });

  it('never fires a timer before its own clock has come so far', async () => {
    await checkSeeds({ seeds: 30, maxTime: '24d' }, async (world) => {
      const drift = world.random.between(-0.9, 3);
      const node = world.node('node', { drift });
      // After days, the last bits of a time are so coarse that rounding decides.
      await world.sleep('10d');
      for (let round = 0; round < 200; round++) {
        const atMs = node.clock.now() + (world.random.integer(0, 20_000) / 1024) * (1 + drift);
        await new Promise<void>((resolve) => node.clock.schedule(callbackTimer(resolve), atMs));
        expect(node.clock.now()).toBeGreaterThanOrEqual(atMs);
        expect(node.clock.now()).toBeLessThan(atMs + 0.01);
      }
    });
  });

  it('starts the monotonic clock of each process somewhere else', async () => {
    await play(async (world) => {
      const one = world.node('one');
      const other = world.node('other');
      const first = one.clock.now();
      expect(other.clock.now()).not.toBe(first);
      one.restart();
      expect(one.clock.now()).not.toBe(first);
    });
  });

  it('counts the timers that are pending, for leak checks', async () => {
    await play(async (world) => {
      const node = world.node('node');
      const timer = callbackTimer(() => {});
      node.clock.schedule(timer, node.clock.now() + 10);
      expect(node.pendingTimers).toBe(1);
      node.clock.cancel(timer);
      expect(node.pendingTimers).toBe(0);
    });
  });

  it('gives each node and each process a random stream of its own', async () => {
    const draws = await play((world) => {
      const processes: SimulatedProcess[] = [];
      const start = (process: SimulatedProcess) => void processes.push(process);
      const one = world.node('one', { start });
      world.node('other', { start });
      one.restart();
      return [one.random(), ...processes.map((process) => process.random())];
    });
    expect(new Set(draws).size).toBe(4);
  });

  it('refuses options and calls that cannot be meant', async () => {
    await play(async (world) => {
      const node = world.node('node', { start: (process) => process.serve(() => 1) });
      expect(() => world.node('node')).toThrow('there is already a node "node"');
      expect(() => world.node('')).toThrow('"name" must be a string of 1 to 200 characters');
      expect(() => world.node('bad', { drift: -1 })).toThrow('option "drift" must be a number from -0.999');
      expect(() => world.node('bad', { statr: () => {} } as never)).toThrow('did you mean "start"?');
      expect(() => node.setDrift(Number.NaN)).toThrow('"drift" must be');
      expect(() =>
        node.clock.schedule(
          callbackTimer(() => {}),
          Number.NaN,
        ),
      ).toThrow(RangeError);
      await node.run('serve again', (process) => {
        expect(() => process.serve(() => 2)).toThrow('already serves');
      });
    });
  });
});
