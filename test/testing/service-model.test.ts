import { ServiceBusyError, seededRandom, serviceModel, simulate, virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';

describe('serviceModel', () => {
  it('serves as many at once as it has workers, the others first come first served', async () => {
    const clock = virtualClock();
    const server = serviceModel({ workers: 2, serviceTime: 10, random: seededRandom(1), clock });
    const finished: number[] = [];
    for (let index = 0; index < 5; index++) void server.serve().then(() => finished.push(index));
    expect(server.busy).toBe(2);
    expect(server.queued).toBe(3);
    await clock.advance(10);
    expect(finished).toEqual([0, 1]);
    await clock.advance(20);
    expect(finished).toEqual([0, 1, 2, 3, 4]);
    expect(server).toMatchObject({ busy: 0, queued: 0, completed: 5 });
    expect(clock.pendingTimers).toBe(0);
  });

  it('tells how long a request waited and was served', async () => {
    const clock = virtualClock();
    const server = serviceModel({ workers: 1, serviceTime: 10, random: seededRandom(1), clock });
    void server.serve();
    await clock.advance(4);
    const second = server.serve();
    await clock.advance(20);
    expect(await second).toEqual({ waitedMs: 6, servedMs: 10 });
  });

  it('turns a request away at once when the queue is full', async () => {
    const clock = virtualClock();
    const server = serviceModel({ workers: 1, serviceTime: 10, queue: 1, random: seededRandom(1), clock });
    void server.serve();
    void server.serve();
    await expect(server.serve()).rejects.toBeInstanceOf(ServiceBusyError);
    expect(server.refused).toBe(1);
  });

  it('keeps working on requests whose caller has given up, and counts them as wasted', async () => {
    const clock = virtualClock();
    const server = serviceModel({ workers: 1, serviceTime: 10, random: seededRandom(1), clock });
    const controller = new AbortController();
    void server.serve(controller.signal);
    void server.serve();
    controller.abort();
    await clock.advance(15);
    expect(server).toMatchObject({ busy: 1, completed: 1, wasted: 1 });
    await clock.advance(5);
    expect(server).toMatchObject({ busy: 0, completed: 2, wasted: 1 });
  });

  it('takes a new service time for requests that begin afterwards', async () => {
    const clock = virtualClock();
    const server = serviceModel({ workers: 1, serviceTime: 10, random: seededRandom(1), clock });
    void server.serve();
    const second = server.serve();
    server.setServiceTime('50ms');
    await clock.advance(60);
    expect(await second).toEqual({ waitedMs: 10, servedMs: 50 });
  });

  it('waits as long on average as queueing theory says for M/M/1', async () => {
    const { result: meanMs } = await simulate({ seed: 3 }, async (world) => {
      const node = world.node('server');
      const server = serviceModel({ workers: 1, serviceTime: { mean: 8 }, random: node.random, clock: node.clock });
      let waitedMs = 0;
      const requests = 40_000;
      for (let count = 0; count < requests; count++) {
        void server.serve().then((times) => {
          waitedMs += times.waitedMs;
        });
        await world.sleep(world.random.exponential(16));
      }
      return waitedMs / requests;
    });
    // Utilisation 1/2: the mean wait equals the mean service time.
    expect(Math.abs(meanMs / 8 - 1)).toBeLessThan(0.1);
  });

  it('fails a request whose service time cannot be drawn, and goes on with the next one', async () => {
    const clock = virtualClock();
    let draws = 0;
    const serviceTime = () => (++draws % 2 === 0 ? -1 : 10);
    const server = serviceModel({ workers: 1, serviceTime, random: seededRandom(1), clock });
    const ends: string[] = [];
    for (const name of ['a', 'b', 'c', 'd']) {
      void server.serve().then(
        () => ends.push(name),
        (error) => ends.push(`${name}: ${error.name}`),
      );
    }
    await clock.advance(10);
    expect(ends.sort()).toEqual(['a', 'b: RangeError']);
    await clock.advance(10);
    expect(ends.sort()).toEqual(['a', 'b: RangeError', 'c', 'd: RangeError']);
    expect(server).toMatchObject({ busy: 0, queued: 0, completed: 2 });
    void server.serve();
    await clock.advance(10);
    await expect(server.serve()).rejects.toThrow('a distribution drew -1');
    expect(server).toMatchObject({ busy: 0, queued: 0, completed: 3 });
  });

  it('refuses wrong options', () => {
    const random = seededRandom(1);
    expect(() => serviceModel({ workers: 0, serviceTime: 1, random })).toThrow(
      'option "workers" must be an integer of at least 1',
    );
    expect(() => serviceModel({ workers: 1, serviceTime: '1 s' as never, random })).toThrow('option "serviceTime"');
    expect(() => serviceModel({ workers: 1, serviceTime: 1, random: Math.random as never })).toThrow(
      'option "random" must be a source of chance',
    );
  });
});
