import {
  ConnectionRefusedError,
  ConnectionResetError,
  checkSeeds,
  type LinkOptions,
  RemoteError,
  type Scenario,
  type SimulatedNode,
  simulate,
  type World,
} from 'holdfast/testing';
import { describe, expect, it } from 'vitest';

/** A server that records what it carries out, and a client. */
function pair(world: World): { server: SimulatedNode; client: SimulatedNode; applied: unknown[] } {
  const applied: unknown[] = [];
  const server = world.node('server', {
    start: (process) =>
      process.serve((message) => {
        applied.push(message);
        return { applied: applied.length };
      }),
  });
  return { server, client: world.node('client'), applied };
}

/** Sends one message and gives up after a while; then it answers 'silence'. */
function ask(client: SimulatedNode, server: SimulatedNode, message: unknown, limitMs = 100): Promise<unknown> {
  return client.run('ask', async (process) => {
    const controller = new AbortController();
    void process.sleep(limitMs).then(() => controller.abort('silence'));
    return process.request(server, message, { signal: controller.signal }).catch((error: unknown) => error);
  });
}

async function play<T>(network: LinkOptions, scenario: Scenario<T>): Promise<T> {
  const { result } = await simulate({ seed: 1, network }, scenario);
  return result;
}

describe('the network of simulate', () => {
  it('delays each message as the distribution says, each way', async () => {
    await play({ delay: '10ms' }, async (world) => {
      const { server, client } = pair(world);
      await ask(client, server, 1);
      expect(world.now()).toBe(20);
    });
  });

  it('draws delays within their bounds', async () => {
    await checkSeeds({ seeds: 50, network: { delay: { min: 3, max: 4 } } }, async (world) => {
      const { server, client } = pair(world);
      await ask(client, server, 1);
      expect(world.now()).toBeGreaterThanOrEqual(6);
      expect(world.now()).toBeLessThanOrEqual(8);
    });
  });

  it('does not carry out a request that is lost, and never answers it', async () => {
    await play({ loss: 1 }, async (world) => {
      const { server, client, applied } = pair(world);
      expect(await ask(client, server, 'x')).toBe('silence');
      expect(applied).toEqual([]);
    });
  });

  it('carries a request out once when its reply is lost', async () => {
    await play({ replyLoss: 1 }, async (world) => {
      const { server, client, applied } = pair(world);
      expect(await ask(client, server, 'x')).toBe('silence');
      expect(applied).toEqual(['x']);
    });
  });

  it('carries a doubled request out twice and answers it once', async () => {
    await play({ duplicate: 1 }, async (world) => {
      const { server, client, applied } = pair(world);
      expect(await ask(client, server, 'x')).toEqual({ applied: 1 });
      await world.sleep(100);
      expect(applied).toEqual(['x', 'x']);
    });
  });

  it('loses about the share that was asked for', async () => {
    await play({ loss: 0.3 }, async (world) => {
      const { server, client, applied } = pair(world);
      for (let count = 0; count < 1000; count++) await ask(client, server, count, 20);
      expect(Math.abs(applied.length - 700)).toBeLessThan(50);
    });
  });

  it('changes one link and leaves the others alone', async () => {
    await play({}, async (world) => {
      const { server, client } = pair(world);
      const other = world.node('other');
      world.network.link(client, server, { loss: 1 });
      expect(await ask(client, server, 1)).toBe('silence');
      expect(await ask(other, server, 1)).toEqual({ applied: 1 });
      world.network.link('client', 'server', { loss: 0 });
      expect(await ask(client, server, 1)).toEqual({ applied: 2 });
    });
  });

  it('draws the luck of a link from a stream of its own', async () => {
    const arrivals = (withOthers: boolean) =>
      play({ loss: 0.5 }, async (world) => {
        const { server, client, applied } = pair(world);
        const other = world.node('other');
        const idle = world.node('idle', { start: (process) => process.serve(() => 1) });
        for (let count = 0; count < 50; count++) {
          if (withOthers) await ask(other, idle, count);
          await ask(client, server, count);
        }
        return applied;
      });
    expect(await arrivals(true)).toEqual(await arrivals(false));
  });

  it('cuts one direction only: the request passes, the reply does not', async () => {
    await play({}, async (world) => {
      const { server, client, applied } = pair(world);
      world.network.cut(server, client);
      expect(await ask(client, server, 'x')).toBe('silence');
      expect(applied).toEqual(['x']);
      world.network.heal(server, client);
      world.network.cut(client, server);
      expect(await ask(client, server, 'y')).toBe('silence');
      expect(applied).toEqual(['x']);
    });
  });

  it('partitions two sides until it heals, also for messages on their way', async () => {
    await play({ delay: 10 }, async (world) => {
      const { server, client, applied } = pair(world);
      const late = ask(client, server, 'late', 500);
      await world.sleep(5);
      world.network.partition([client], [server]);
      await world.sleep(50);
      expect(await ask(client, server, 'during')).toBe('silence');
      expect(applied).toEqual([]);
      world.network.heal();
      expect(await ask(client, server, 'after')).toEqual({ applied: 1 });
      expect(await late).toBe('silence');
    });
  });

  it('drops a reply that is sent into a cut, even if it heals before the reply would arrive', async () => {
    await play({ delay: 10 }, async (world) => {
      const { server, client, applied } = pair(world);
      const answer = ask(client, server, 'x');
      world.network.cut(server, client);
      await world.sleep(15);
      world.network.heal();
      expect(await answer).toBe('silence');
      expect(applied).toEqual(['x']);
    });
  });

  it('drops a reply that is on its way when the cut comes', async () => {
    await play({ delay: 10 }, async (world) => {
      const { server, client, applied } = pair(world);
      const answer = ask(client, server, 'x');
      await world.sleep(15);
      expect(applied).toEqual(['x']);
      world.network.cut(server, client);
      expect(await answer).toBe('silence');
    });
  });

  it('keeps nodes of one side together in a partition', async () => {
    await play({}, async (world) => {
      const { server, client } = pair(world);
      const outsider = world.node('outsider');
      world.network.partition([outsider], [server, client]);
      expect(await ask(client, server, 1)).toEqual({ applied: 1 });
      expect(await ask(outsider, server, 1)).toBe('silence');
      world.network.heal(outsider);
      expect(await ask(outsider, server, 1)).toEqual({ applied: 2 });
    });
  });

  it('refuses a connection to a node that is down', async () => {
    await play({}, async (world) => {
      const { server, client, applied } = pair(world);
      server.crash();
      const refusal = await ask(client, server, 1);
      expect(refusal).toBeInstanceOf(ConnectionRefusedError);
      expect(refusal).toMatchObject({ code: 'ECONNREFUSED', message: expect.stringContaining('"server" refused') });
      expect(applied).toEqual([]);
    });
  });

  it('refuses a connection to a node that does not serve', async () => {
    await play({}, async (world) => {
      const { server, client } = pair(world);
      expect(await ask(server, client, 1)).toBeInstanceOf(ConnectionRefusedError);
    });
  });

  it('carries out a request that was sent while the node was down, if it is up when that arrives', async () => {
    await play({ delay: 10 }, async (world) => {
      const { server, client, applied } = pair(world);
      server.crash();
      const answer = ask(client, server, 'x');
      await world.sleep(5);
      server.restart();
      expect(await answer).toEqual({ applied: 1 });
      expect(applied).toEqual(['x']);
    });
  });

  it('breaks requests that were on their way to a node when it crashed, even if it is up again', async () => {
    await play({ delay: 10 }, async (world) => {
      const { server, client, applied } = pair(world);
      const answer = ask(client, server, 1);
      await world.sleep(5);
      server.restart();
      expect(await answer).toBeInstanceOf(ConnectionResetError);
      expect(applied).toEqual([]);
    });
  });

  it('hands over what a handler throws by name, message and code', async () => {
    await play({}, async (world) => {
      const server = world.node('server', {
        start: (process) =>
          process.serve(() => {
            throw Object.assign(new RangeError('too many'), { code: 'ERR_MANY' });
          }),
      });
      const error = await ask(world.node('client'), server, 1);
      expect(error).toBeInstanceOf(RemoteError);
      expect((error as RemoteError).remote).toEqual({ name: 'RangeError', message: 'too many', code: 'ERR_MANY' });
    });
  });

  it('tells a handler, and nobody else, that its caller has given up', async () => {
    await play({ delay: 10 }, async (world) => {
      const abortedAt: Record<string, number> = {};
      const server = world.node('server', {
        start: (process) =>
          process.serve(async (name: string, request) => {
            request.signal.addEventListener('abort', () => {
              abortedAt[name] = world.now();
            });
            await process.sleep(200);
            return request.signal.aborted;
          }),
      });
      const client = world.node('client');
      const patient = ask(client, server, 'patient', 500);
      await ask(client, server, 'hasty', 50);
      expect(await patient).toBe(false);
      await world.sleep(100);
      expect(abortedAt).toEqual({ hasty: 60 });
    });
  });

  it('does not send anything for a signal that has aborted before', async () => {
    await play({}, async (world) => {
      const { server, client, applied } = pair(world);
      await client.run('ask', async (process) => {
        await expect(process.request(server, 1, { signal: AbortSignal.abort(new Error('no')) })).rejects.toThrow('no');
      });
      await world.sleep(100);
      expect(applied).toEqual([]);
    });
  });

  it('copies messages both ways, so that nodes share no memory', async () => {
    await play({ duplicate: 1 }, async (world) => {
      const kept = { list: [1], map: new Map([['a', new Set([1])]]), when: new Date(5), bytes: new Uint8Array([7]) };
      const received: (typeof kept)[] = [];
      const server = world.node('server', {
        start: (process) =>
          process.serve((message: typeof kept) => {
            received.push(message);
            message.list.push(2);
            return kept;
          }),
      });
      const answer = await world.node('client').run('ask', async (process) => {
        const sent = structuredClone(kept);
        const reply = process.request<typeof kept>(server, sent);
        sent.list.push(99);
        return reply;
      });
      await world.sleep(100);
      expect(received[0]).toEqual({ ...kept, list: [1, 2] });
      expect(received[1]).toEqual({ ...kept, list: [1, 2] });
      expect(answer).toEqual(kept);
      expect(answer.map).not.toBe(kept.map);
      expect(answer.list).not.toBe(kept.list);
    });
  });

  it('refuses to send a function, or a value that contains itself', async () => {
    await play({}, async (world) => {
      const { server, client } = pair(world);
      const cycle: { self?: unknown } = {};
      cycle.self = cycle;
      await client.run('ask', async (process) => {
        await expect(process.request(server, () => 1)).rejects.toThrow('a function cannot be sent');
        await expect(process.request(server, cycle)).rejects.toThrow('holds no cycle');
      });
    });
  });

  it('forgets a message that cannot be sent', async () => {
    const heard: string[] = [];
    const { trace } = await simulate({ seed: 1, onEvent: (line) => heard.push(line) }, async (world) => {
      const { server, client } = pair(world);
      const stop = new AbortController();
      await client.run('ask', (process) =>
        process.request(server, () => 1, { signal: stop.signal }).catch(() => undefined),
      );
      stop.abort();
      client.crash();
      await world.sleep(10);
    });
    expect(trace).toEqual(heard);
    expect(heard.filter((line) => line.includes('client -> server'))).toEqual([]);
  });

  it.each([
    ['a request', 1],
    ['a reply', 2],
  ])('ends the simulation when the delay of %s cannot be drawn, whoever would catch it', async (_, failingDraw) => {
    let draws = 0;
    const delay = () => (++draws === failingDraw ? -1 : 1);
    const failure = await simulate({ seed: 3, network: { delay } }, async (world) => {
      const { server, client } = pair(world);
      await client.run('ask', (process) => process.request(server, 1).catch(() => 'retried'));
      await world.sleep(10);
    }).catch((error) => error);
    expect(failure).toMatchObject({ name: 'SimulationError', reason: 'error', seed: 3 });
    expect(failure.message).toContain('the delay of the link from "client" to "server" cannot be drawn');
    expect(failure.cause).toMatchObject({ message: 'a distribution drew -1, it must draw milliseconds from 0' });
  });

  it('ends the simulation when the delay of an abort cannot be drawn', async () => {
    let draws = 0;
    const delay = () => (++draws === 2 ? Number.NaN : 1);
    const scenario: Scenario = async (world) => {
      const silent = world.node('silent', { start: (process) => process.serve(() => new Promise(() => {})) });
      await ask(world.node('client'), silent, 1, 5);
      await world.sleep(10);
    };
    await expect(simulate({ seed: 3, network: { delay } }, scenario)).rejects.toMatchObject({
      reason: 'error',
      cause: { message: 'a distribution drew NaN, it must draw milliseconds from 0' },
    });
  });

  it('names the nodes there are when there is none of a name', async () => {
    await play({}, async (world) => {
      const { client } = pair(world);
      expect(() => world.network.cut('sever', client)).toThrow(
        'there is no node "sever"; there are "server", "client"',
      );
      expect(() => world.network.link('client', 'server', { lost: 1 } as never)).toThrow('unknown option "lost"');
    });
  });
});
