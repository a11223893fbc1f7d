/** What the scripts of the verbs do in a real Redis, state by state. Each state is set up, and read back, by separate commands. */
import { virtualClock } from 'holdfast/testing';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type RedisStore, redisStore } from '../../src/stores/redis.js';
import { guardedWriteScript } from '../../src/stores/redis-queue-scripts.js';
import { writeScript } from '../../src/stores/redis-scripts.js';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';
import { bytes } from './support.ts';

const program = await redisProgram();

describe.skipIf(program === undefined)('the scripts of the verbs', () => {
  let server: ServerProcess;
  let admin: RedisConnection;
  let subscriber: RedisConnection;
  let store: RedisStore;
  const command = async <Answer = unknown>(...words: readonly (string | number)[]) =>
    (await admin.command(...words.map(String))) as Answer;
  beforeAll(async () => {
    server = await startRedis(program!);
    [admin, subscriber] = [drivers[0]!.connect(server.port), drivers[0]!.connect(server.port)];
    store = redisStore(admin.client, { timeout: '20s', subscriber: subscriber.client });
  });
  beforeEach(() => command('FLUSHALL'));
  afterAll(async () => {
    admin?.close();
    subscriber?.close();
    await server?.dispose();
  });

  describe('consume', () => {
    /** A unit is a thousand seconds, so that it does not matter how long a test takes. */
    const unitMs = 1_000_000;
    const rate = { limit: 10, periodMs: 10 * unitMs, burst: 5 };
    /** The key, and the server's time in microseconds as it is counted there. */
    const nowUs = async () => {
      const [seconds, microseconds] = await command<[string, string]>('TIME');
      return (Number(seconds) - 1_700_000_000) * 1_000_000 + Number(microseconds);
    };
    let key: string;
    beforeAll(async () => {
      await store.native.consume('limit', rate);
      key = (await command<string[]>('KEYS', '*|limit'))[0]!;
    });
    /** What is kept of a debt in units, as if the clock had been put back by some units since. */
    const owing = async (debt: number, ahead = 0) => {
      const now = await nowUs();
      return `${now + debt * unitMs * 1_000} ${now + ahead * unitMs * 1_000}`;
    };
    const workedOff = async () => Number((await command<string>('GET', key)).split(' ')[0]);
    /** When everything that was granted has been worked off, and when the key expires, in units from now. */
    const kept = async () => {
      const [worked, endsMs] = [await workedOff(), await command<number>('PEXPIRETIME', key)];
      // The key is kept until then. A server that is delayed within the script may read two different times.
      expect(Math.abs(endsMs - (worked / 1_000 + 1_700_000_000_000))).toBeLessThan(unitMs / 20);
      return (worked - (await nowUs())) / 1_000 / unitMs;
    };
    /** Compares to a twentieth of a unit, which is 50 s. */
    const about = (units: number) => expect.closeTo(units, 1);

    it.each([
      ['nothing', undefined, 1],
      ['what was worked off long ago', -100, 1],
      ['half of the burst', 2.5, 3.5],
      ['all but one', 3.9, 4.9],
    ])('grants one after %s, and keeps that for as long as it is worked off', async (_, debt, after) => {
      if (debt !== undefined) await command('SET', key, await owing(debt));
      const answer = await store.native.consume('limit', rate);
      expect(answer).toEqual({
        ok: true,
        remaining: Math.floor(5 - after),
        retryAfterMs: 0,
        resetMs: expect.any(Number),
      });
      expect(answer.resetMs / unitMs).toEqual(about(after));
      expect(await kept()).toEqual(about(after));
    });

    it("stores the server's time, in microseconds since a day in 2023", async () => {
      const beforeUs = await nowUs();
      await store.native.consume('limit', rate);
      const worked = (await workedOff()) - unitMs * 1_000;
      expect(worked).toBeGreaterThanOrEqual(beforeUs);
      expect(worked).toBeLessThanOrEqual(await nowUs());
    });

    it.each([
      ['more than is left', 4.5, 1, 4.5],
      ['as much as a tighter limit allows at most', 100, 1, 5],
      ['several at once, of which one would be there', 3.5, 2, 3.5],
    ])('refuses %s, and changes nothing', async (_, debt, cost, counted) => {
      const value = await owing(debt);
      await command('SET', key, value);
      const { ok, retryAfterMs, resetMs } = await store.native.consume('limit', { ...rate, cost });
      expect([ok, retryAfterMs / unitMs, resetMs / unitMs]).toEqual([false, about(counted + cost - 5), about(counted)]);
      expect([await command('GET', key), await command('PTTL', key)]).toEqual([value, -1]);
    });

    it.each<[string, number, number, number, number, [boolean, number, number | undefined]]>([
      ['refuses, and keeps what was owed', 10.5, 8, 3, 1, [false, 2.5, 2.5]],
      ['grants what is left, and keeps both', 10.5, 8, 5, 2, [true, 4.5, 4.5]],
      ['owes nothing more', 7, 8, 5, 0, [true, 0, undefined]],
      ['refuses by a tighter limit, and keeps what was owed by the other', 20, 8, 5, 1, [false, 5, 12]],
    ])('when the clock was put back since: %s', async (_, debt, ahead, burst, cost, [ok, counted, left]) => {
      await command('SET', key, await owing(debt, ahead), 'PX', 1_000);
      const answer = await store.native.consume('limit', { ...rate, burst, cost });
      expect([answer.ok, answer.resetMs / unitMs]).toEqual([ok, about(counted)]);
      if (left !== undefined) expect(await kept()).toEqual(about(left));
    });

    it('counts a value that it cannot read as none', async () => {
      await command('SET', key, 'what is this');
      expect(await store.native.consume('limit', { ...rate, cost: 2 })).toMatchObject({ ok: true, remaining: 3 });
      expect(await kept()).toEqual(about(2));
    });

    it('grants the whole burst at once, and only checks for a cost of 0', async () => {
      expect(await store.native.consume('limit', { ...rate, cost: 0 })).toMatchObject({ ok: true, remaining: 5 });
      expect(await command('EXISTS', key)).toBe(0);
      expect(await store.native.consume('limit', { ...rate, cost: 5 })).toMatchObject({ ok: true, remaining: 0 });
      const value = await command('GET', key);
      expect(await store.native.consume('limit', { ...rate, cost: 0 })).toMatchObject({ ok: true, remaining: 0 });
      expect(await command('GET', key)).toBe(value);
    });

    it('keeps an entry for a whole millisecond if a fraction is left', async () => {
      await store.native.consume('limit', { limit: 10_000, periodMs: 1_000, cost: 0.5 });
      expect(await command<number>('PTTL', key)).toBeLessThanOrEqual(1);
    });
  });

  it.each([
    ['write', writeScript, ['000000060000v', 'PUBLISH', 'hash']],
    ['guardedWrite', guardedWriteScript, ['PUBLISH', 'channel', 'hash', '0', '000000060000v', '60000', '']],
  ] as const)('give no version twice within one microsecond: %s', async (_, { text }, given) => {
    const begin = (soonUs: number) =>
      `local time = redis.call('TIME')\nlocal last = string.format('%016.0f', time[1] * 1000000 + time[2] + ${soonUs})`;
    const answer = 'return tonumber(version)';
    expect(text).toContain(answer);
    // Nobody can know the microsecond at which the script reads the time, but some of these attempts hit it.
    for (let time = 0; time < 1_000; time++) {
      const script = `${begin(time % 10)}\nredis.call('SET', KEYS[2], last)\n${text.replace(answer, 'return { version, last }')}`;
      const [version, last] = await command<[string, string]>('EVAL', script, 2, 'record', 'bucket', ...given);
      expect(Number(version)).toBeGreaterThan(Number(last));
    }
  });

  it('tell the watchers of the key about each write and removal, and nothing that did not happen', async () => {
    let changes = 0;
    let others = 0;
    const watches = [store.native.watch!('key', () => changes++), store.native.watch!('other', () => others++)];
    for (const { ready } of watches) await ready;
    const changed = (by: number) => expect.poll(() => changes, { interval: 5 }).toBe(by);
    const value = bytes('v');
    const { version } = (await store.write('key', value, { ttlMs: 60_000 })) as { version: number };
    await changed(1);
    expect(await store.write('key', value, { ttlMs: 60_000, ifVersion: 0 })).toMatchObject({ ok: false });
    expect(await store.remove('key', { ifVersion: version + 1 })).toBe(false);
    expect(await store.write('key', value, { ttlMs: 60_000, ifVersion: version })).toMatchObject({ ok: true });
    await changed(2);
    expect(await store.remove('key')).toBe(true);
    await changed(3);
    expect(await store.remove('key')).toBe(false);
    await store.write('key', value, { ttlMs: 60_000 });
    await changed(4);
    expect(others).toBe(0);
    for (const watch of watches) watch.close();
  });

  it('test the channel of a watch that has heard nothing for a round, with a message for no key', async () => {
    const clock = virtualClock();
    const watching = redisStore(admin.client, { timeout: '20s', subscriber: subscriber.client, clock });
    const listener = new Redis(server.port, '127.0.0.1');
    const messages: [channel: string, message: string][] = [];
    listener.on('pmessage', (_, channel, message) => messages.push([channel, message]));
    try {
      await listener.psubscribe('*');
      const watch = watching.native.watch!('key', () => {});
      await watch.ready;
      await clock.advance(5_000);
      await expect.poll(() => messages, { interval: 5 }).toEqual([[expect.stringMatching(/^holdfast\{\d+\}$/), '']]);
      watch.close();
    } finally {
      listener.disconnect();
    }
  });

  it('return the entry in the way with its remaining time, or nothing if there is none', async () => {
    const value = bytes('v');
    expect(await store.write('key', value, { ttlMs: 60_000, ifVersion: 7 })).toEqual({ ok: false, entry: undefined });
    await store.write('key', value, { ttlMs: 60_000 });
    const refused = await store.write('key', value, { ttlMs: 5_000, ifVersion: 7 });
    const entries = [
      !refused.ok && refused.entry,
      await store.read('key'),
      ...(await store.native.readMany(['nothing', 'key'])).slice(1),
    ];
    for (const entry of entries) {
      const { ttlMs, ageMs } = entry as { ttlMs: number; ageMs: number };
      expect(ttlMs).toBeGreaterThan(30_000);
      expect(ttlMs + ageMs).toBe(60_000);
    }
    expect((await store.native.readMany(['nothing', 'key']))[0]).toBeUndefined();
    expect(await store.read('nothing')).toBeUndefined();
  });
});
