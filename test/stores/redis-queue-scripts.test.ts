/** What the scripts of the queue do in a real Redis, state by state. Each state is set up, and read back, by separate commands. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import * as scripts from '../../src/stores/redis-queue-scripts.js';
import type { QueueTurn } from '../../src/stores/store.js';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';
import { bytes, failure, text } from './support.ts';

const program = await redisProgram();
const patience = { interval: 5 };
// These times are long and are checked with much tolerance, because the machine may stand still for seconds.
const ttlMs = 60_000;
const placeMs = 50_000;
const place = { ttlMs, placeMs };
const quietMs = 600_000;

describe.skipIf(program === undefined)('the scripts of the queue', () => {
  let server: ServerProcess;
  let admin: RedisConnection;
  /** The last version of the key's bucket, the record, the queue and the places. */
  let names: { readonly bucket: string; readonly record: string; readonly line: string; readonly places: string };
  let closing: (() => unknown)[] = [];
  const guard = 'holdfast@guard';

  beforeAll(async () => {
    server = await startRedis(program!);
    admin = drivers[0]!.connect(server.port);
    const { store } = process();
    await store.write('key', bytes(''), { ttlMs });
    const bucket = `${(await command<string[]>('KEYS', '*{*}'))[0]}`;
    names = { bucket, record: `${bucket}:key`, line: `${bucket}<key`, places: `${bucket}>key` };
  });
  afterAll(async () => {
    admin?.close();
    await server?.dispose();
  });
  beforeEach(() => command('FLUSHALL'));
  afterEach(async () => {
    for (const close of closing.reverse()) await close();
    closing = [];
  });

  const command = async <Answer = unknown>(...words: readonly (string | number)[]) =>
    (await admin.command(...words.map(String))) as Answer;
  const textOf = async (...words: readonly (string | number)[]) => `${await command(...words)}`;
  const leftMs = (key: string) => command<number>('PTTL', key);
  /** Who waits, according to the queue and according to the places. */
  const waiting = async () => [
    await command<string[]>('ZRANGE', names.line, 0, -1),
    (await command<string[]>('HKEYS', names.places)).sort(),
  ];
  /** The server's time. */
  const nowMs = async () => {
    const [seconds, microseconds] = await command<[string, string]>('TIME');
    return Number(seconds) * 1_000 + Number(microseconds) / 1_000;
  };
  /** A process of its own. */
  function process() {
    const [client, subscriber] = [drivers[0]!.connect(server.port), drivers[0]!.connect(server.port)];
    closing.push(client.close, subscriber.close);
    const store = redisStore(client.client, { timeout: '20s', subscriber: subscriber.client });
    return { store, queue: store.native.queue!, ...store.native };
  }
  type Process = ReturnType<typeof process>;
  const held = async ({ store }: Process) => text((await store.read('key'))?.value);
  const enter = ({ queue }: Process, ticket: string, more: Partial<Parameters<Process['queue']['enter']>[3]> = {}) =>
    queue.enter('key', ticket, bytes(ticket), { ...place, ...more });
  /** Enters the queue and listens. */
  const hearing = async (
    one: Process,
    ticket: string,
    more: Partial<Parameters<Process['queue']['enter']>[3]> = {},
  ) => {
    const turns: QueueTurn[] = [];
    const answer = await enter(one, ticket, { onTurn: (turn) => turns.push(turn), ...more });
    expect(answer.ok).toBe(false);
    if (!answer.ok && !answer.isTold) await expect.poll(() => turns.includes('gap'), patience).toBe(true);
    turns.length = 0;
    return turns;
  };
  /**
   * Gives the key back and reads at once, because a handed-over key is claimed for one second only. Returns the answer, the record, and the time that is left.
   */
  const passAndLook = async (): Promise<[answer: number, version: string, record: string | null, leftMs: number]> => {
    const { bucket, record, line, places } = names;
    await command('MULTI');
    const given = ['PUBLISH', bucket, 'hash', 0, ''];
    await command('EVAL', scripts.passScript.text, 5, record, bucket, line, places, guard, ...given);
    for (const words of [
      ['GET', bucket],
      ['GET', record],
      ['PTTL', record],
    ])
      await command(...words);
    return command('EXEC');
  };
  /** The channel of a waiting process, which is the second word of its place. */
  const channelOf = async (ticket: string) => (await textOf('HGET', names.places, ticket)).split(' ')[1]!;

  describe('enter', () => {
    it('writes a record with the time in microseconds, or one more than the last version if the clock is behind', async () => {
      const one = process();
      for (let time = 0; time < 2; time++) {
        const beforeMs = await nowMs();
        const answer = await enter(one, 'a');
        const version = answer.ok ? answer.version : 0;
        expect(version).toBeGreaterThanOrEqual(beforeMs * 1_000);
        expect(version).toBeLessThanOrEqual((await nowMs()) * 1_000);
        expect(await textOf('GET', names.bucket)).toBe(`${version}`);
        expect(await textOf('GET', names.record)).toBe(`${version}000000060000a`);
        expect(await leftMs(names.record)).toBeGreaterThan(ttlMs - 30_000);
      }
      const ahead = 9_000_000_000_000_000;
      await command('SET', names.bucket, ahead);
      for (const step of [1, 2]) {
        expect(await enter(one, 'a')).toEqual({ ok: true, version: ahead + step });
        expect(await textOf('GET', names.bucket)).toBe(`${ahead + step}`);
        expect(await textOf('GET', names.record)).toBe(`${ahead + step}000000060000a`);
      }
    });

    it('returns the entry in the way, and keeps no place for a caller that does not wait', async () => {
      const [one, other] = [process(), process()];
      const first = await enter(one, 'a');
      const { ok, entry, quietForMs, isTold } = (await enter(other, 'b', { placeMs: 0 })) as never;
      expect({ ok, quietForMs, isTold }).toEqual({ ok: false, quietForMs: 0, isTold: false });
      expect(entry).toMatchObject({ value: bytes('a'), version: first.ok && first.version });
      const { ttlMs: left, ageMs } = entry as { ttlMs: number; ageMs: number };
      expect(left).toBeGreaterThan(ttlMs - 30_000);
      expect(left + ageMs).toBe(ttlMs);
      expect(await command('DBSIZE')).toBe(2);
    });

    it('keeps a place for as long as requested, counted anew from each request', async () => {
      const one = process();
      await enter(one, 'a');
      const beforeMs = await nowMs();
      for (let time = 0; time < 2; time++) {
        await enter(one, 'b');
        const [endsMs, channel, record] = (await textOf('HGET', names.places, 'b')).split(' ');
        expect(Number(endsMs)).toBeGreaterThanOrEqual(Math.floor(beforeMs) + placeMs);
        expect(Number(endsMs)).toBeLessThanOrEqual((await nowMs()) + placeMs);
        expect([channel, record]).toEqual([expect.stringMatching(/^holdfast![0-9a-f-]{36}$/), '000000060000b']);
        for (const key of [names.line, names.places]) {
          const left = await leftMs(key);
          expect(left).toBeGreaterThan(placeMs - 30_000);
          expect(left).toBeLessThanOrEqual(placeMs);
          await command('PEXPIRE', key, 15_000);
        }
        await command('HSET', names.places, 'b', `1 ${channel} ${record}`);
      }
    });

    it('does not shorten a place because another one is kept for less', async () => {
      const one = process();
      await enter(one, 'a');
      await enter(one, 'b');
      await enter(one, 'c', { placeMs: 1_000 });
      expect(await waiting()).toEqual([
        ['b', 'c'],
        ['b', 'c'],
      ]);
      for (const key of [names.line, names.places]) expect(await leftMs(key)).toBeGreaterThan(placeMs - 30_000);
    });

    it('queues tickets in order of arrival, whatever their names, and whoever left or asked again', async () => {
      const one = process();
      await enter(one, 'holder');
      for (const ticket of ['z', 'm', 'a', 'z', 'm']) await enter(one, ticket);
      expect(await waiting()).toEqual([
        ['z', 'm', 'a'],
        ['a', 'm', 'z'],
      ]);
      await one.queue.leave('key', ['m']);
      for (const ticket of ['b', 'm', 'A']) await enter(one, ticket);
      expect((await waiting())[0]).toEqual(['z', 'a', 'b', 'm', 'A']);
    });

    it('grants a free key to the first ticket in the queue, and removes that one only', async () => {
      const one = process();
      await enter(one, 'a');
      for (const ticket of ['c', 'b']) await enter(one, ticket);
      await command('DEL', names.record);
      expect(await enter(one, 'c')).toMatchObject({ ok: true });
      expect([await held(one), await waiting()]).toEqual(['c', [['b'], ['b']]]);
    });

    it('grants a held key to its holder again, even while others wait, but not to a ticket whose record merely ends alike', async () => {
      const one = process();
      const first = await enter(one, 'a');
      await hearing(process(), 'b');
      const again = await enter(one, 'a');
      expect(again).toMatchObject({ ok: true });
      expect(again.ok && first.ok && again.version > first.version).toBe(true);
      expect([await held(one), await waiting()]).toEqual(['a', [['b'], ['b']]]);
      expect(await one.queue.enter('key', 'x', bytes('xa'), { ...place, placeMs: 0 })).toMatchObject({ ok: false });
      await one.queue.pass('key');
      await command('DEL', names.line, names.places);
      await one.store.write('key', bytes('xa'), { ttlMs });
      expect(await enter(one, 'a', { placeMs: 0 })).toMatchObject({ ok: false });
    });

    it('hands a free key to the first in the queue, and returns its claim to the one that asked', async () => {
      const [one, other, asking] = [process(), process(), process()];
      await enter(one, 'a');
      const turns = await hearing(other, 'b');
      await command('DEL', names.record);
      const answer = await enter(asking, 'c');
      expect(answer).toMatchObject({ ok: false, entry: { value: bytes('b') } });
      await expect.poll(() => turns, patience).toEqual(['granted']);
      expect(await waiting()).toEqual([['c'], ['c']]);
    });
  });

  describe('a hand-over', () => {
    it.each([
      [10_000, 1_000],
      [400, 400],
    ])('of a lease of %i ms is a claim of %i ms, until its owner asks for all of it', async (leaseMs, claimMs) => {
      const [one, other] = [process(), process()];
      await enter(one, 'a');
      await hearing(other, 'b', { ttlMs: leaseMs });
      const [answer, version, record, left] = await passAndLook();
      expect([answer, record]).toEqual([1, `${version}${`${claimMs}`.padStart(12, '0')}b`]);
      expect(left).toBeGreaterThan(0);
      expect(left).toBeLessThanOrEqual(claimMs);
      expect(await waiting()).toEqual([[], []]);
      expect(await enter(other, 'b')).toMatchObject({ ok: true });
      expect(await leftMs(names.record)).toBeGreaterThan(ttlMs - 30_000);
    });

    it.each([
      [
        'whose time in line is over',
        async () => command('HSET', names.places, 'b', `1 ${await channelOf('b')} 000000060000b`),
      ],
      ['of whom nothing is known but his ticket', () => command('HDEL', names.places, 'b')],
      ['whose process is gone', () => command('HSET', names.places, 'b', '9999999999999 nobody 000000060000b')],
    ])('passes over one %s, and forgets him', async (_, end) => {
      const [one, other, third] = [process(), process(), process()];
      await enter(one, 'a');
      const passedOver = await hearing(other, 'b');
      const turns = await hearing(third, 'c');
      await end();
      expect((await passAndLook())[2]).toMatch(/c$/);
      expect(await waiting()).toEqual([[], []]);
      await expect.poll(() => turns, patience).toEqual(['granted']);
      expect(passedOver).toEqual([]);
    });

    it('tells the next ticket that its turn is next, and none behind it', async () => {
      const processes = [process(), process(), process(), process()] as const;
      await enter(processes[0], 'a');
      const turns = [
        await hearing(processes[1], 'b'),
        await hearing(processes[2], 'c'),
        await hearing(processes[3], 'd'),
      ];
      await processes[0].queue.pass('key');
      await expect.poll(() => turns, patience).toEqual([['granted'], ['next'], []]);
      expect(await waiting()).toEqual([
        ['c', 'd'],
        ['c', 'd'],
      ]);
    });

    it.each([
      [999, expect.stringMatching(/b$/), []],
      [1_000, null, ['b']],
    ])('works off %i who are gone; a verb looks at a thousand', async (gone, record, line) => {
      const [one, other] = [process(), process()];
      await enter(one, 'a');
      await hearing(other, 'b');
      const before = 'for i = 1, tonumber(ARGV[1]) do redis.call("ZADD", KEYS[1], -i, "gone " .. i) end';
      await command('EVAL', before, 1, names.line, gone);
      expect((await passAndLook())[2]).toEqual(record);
      expect((await waiting())[0]).toEqual(line);
    });

    it('does not happen if the server refuses to publish: the key is free, and only the first in the queue gets it', async () => {
      const [one, other, asking] = [process(), process(), process()];
      await enter(one, 'a');
      await enter(other, 'b');
      await command('ACL', 'SETUSER', 'default', '-publish');
      try {
        expect(await one.queue.pass('key')).toBe(true);
        expect([await command('EXISTS', names.record), (await waiting())[0]]).toEqual([0, ['b']]);
        expect(await enter(asking, 'c')).toMatchObject({ ok: false, entry: undefined });
        expect(await enter(other, 'b')).toMatchObject({ ok: true });
        expect(await one.queue.pass('key')).toBe(true);
      } finally {
        await command('ACL', 'SETUSER', 'default', '+publish');
      }
    });

    it('does not fail because the ticket behind cannot be told', async () => {
      const [one, other] = [process(), process()];
      await enter(one, 'a');
      await hearing(other, 'b');
      await enter(one, 'c');
      await command('HSET', names.places, 'c', '9999999999999 elsewhere 000000060000c');
      await command('ACL', 'SETUSER', 'default', 'resetchannels', '&holdfast*');
      try {
        expect((await passAndLook())[2]).toMatch(/b$/);
        expect(await waiting()).toEqual([['c'], ['c']]);
      } finally {
        await command('ACL', 'SETUSER', 'default', 'allchannels');
      }
    });
  });

  describe('pass', () => {
    it('frees nothing if nothing is held, or another version', async () => {
      const [one, other] = [process(), process()];
      expect(await one.queue.pass('key')).toBe(false);
      await enter(one, 'a');
      await hearing(other, 'b');
      const { version } = (await one.store.read('key'))!;
      for (const ifVersion of [version - 1, version + 1, 1]) {
        expect(await one.queue.pass('key', { ifVersion })).toBe(false);
        expect([await held(one), await waiting()]).toEqual(['a', [['b'], ['b']]]);
      }
      await command('DEL', names.record);
      expect(await one.queue.pass('key')).toBe(false);
      expect([await held(one), await waiting()]).toEqual([undefined, [['b'], ['b']]]);
    });

    it('frees the version that it names, and then nothing is held or waited for', async () => {
      const one = process();
      const first = await enter(one, 'a');
      expect(await one.queue.pass('key', { ifVersion: first.ok ? first.version : 0 })).toBe(true);
      expect(await command('KEYS', '*')).toEqual([names.bucket]);
    });
  });

  it('leave removes the named tickets, and returns what is held', async () => {
    const one = process();
    await enter(one, 'a');
    for (const ticket of ['b', 'c', 'd']) await enter(one, ticket);
    const left = await one.queue.leave('key', ['b', 'd', 'unknown']);
    expect(left).toMatchObject({ value: bytes('a') });
    expect(left!.ttlMs).toBeGreaterThan(ttlMs - 30_000);
    expect(left!.ttlMs).toBeLessThanOrEqual(ttlMs);
    expect(await waiting()).toEqual([['c'], ['c']]);
    expect(await one.queue.size('key')).toBe(1);
    await command('DEL', names.record);
    expect(await one.queue.leave('key', ['c'])).toBeUndefined();
    expect(await waiting()).toEqual([[], []]);
  });

  it('tells the watchers of the key about each change, and nothing else', async () => {
    const [one, other] = [process(), process()];
    let changes = 0;
    const watch = process().store.native.watch!('key', () => changes++);
    await watch.ready;
    const changed = (by: number) => expect.poll(() => changes, patience).toBe(by);
    await enter(one, 'a');
    await changed(1);
    await hearing(other, 'b');
    await one.queue.pass('key');
    await changed(2);
    await enter(other, 'b');
    await changed(3);
    await other.queue.pass('key');
    await changed(4);
    await one.guardedWrite('key', bytes('w'), { ttlMs });
    await changed(5);
    await one.guardedWrite('key', bytes('w'), { ttlMs, ifVersion: 0 });
    await one.queue.pass('key', { ifVersion: 1 });
    await one.queue.leave('key', ['b']);
    await one.queue.pass('key');
    await changed(6);
    watch.close();
  });

  describe('guardedWrite', () => {
    it('writes whatever the version is, without a condition', async () => {
      const one = process();
      for (let time = 0; time < 2; time++) {
        const written = await one.guardedWrite('key', bytes('w'), { ttlMs });
        expect(await one.store.read('key')).toMatchObject({
          value: bytes('w'),
          version: written.ok && written.version,
        });
        expect(await leftMs(names.record)).toBeGreaterThan(ttlMs - 30_000);
      }
    });

    it('writes only if the key has the requested version, and returns what it has otherwise', async () => {
      const one = process();
      expect(await one.guardedWrite('key', bytes('w'), { ttlMs, ifVersion: 7 })).toEqual({
        ...{ ok: false, entry: undefined, quietForMs: 0 },
      });
      const first = await one.guardedWrite('key', bytes('first'), { ttlMs, ifVersion: 0 });
      const version = first.ok ? first.version : 0;
      expect(first).toEqual({ ok: true, version: expect.any(Number) });
      for (const ifVersion of [0, version - 1, version + 1]) {
        const refused = await one.guardedWrite('key', bytes('second'), { ttlMs, ifVersion });
        expect(refused).toMatchObject({ ok: false, quietForMs: 0, entry: { value: bytes('first'), version } });
        expect(!refused.ok && refused.entry!.ttlMs).toBeGreaterThan(ttlMs - 30_000);
      }
      expect(await one.guardedWrite('key', bytes('second'), { ttlMs, ifVersion: version })).toMatchObject({ ok: true });
      expect(await held(one)).toBe('second');
    });
  });

  describe('the guard', () => {
    /** What the guard holds: two identifiers of the server's life, and since when. */
    const guarded = async () => {
      const [run, replication, sinceMs] = (await textOf('GET', guard)).split(' ');
      return { run: run!, replication: replication!, sinceMs: Number(sinceMs) };
    };
    const setGuard = (run: string, replication: string, sinceMs: number | string) =>
      command('SET', guard, `${run} ${replication} ${sinceMs}`);

    it('is not asked unless it is wanted', async () => {
      const one = process();
      await enter(one, 'a');
      await one.queue.pass('key');
      await one.guardedWrite('key', bytes('w'), { ttlMs });
      expect(await command('EXISTS', guard)).toBe(0);
    });

    it('starts with this server, and grants nothing for the requested time', async () => {
      const one = process();
      const beforeMs = Math.floor(await nowMs());
      const refusals = [
        await enter(one, 'a', { quietMs, placeMs: 0 }),
        await one.guardedWrite('key', bytes('w'), { ttlMs, quietMs }),
      ];
      const { run, replication, sinceMs } = await guarded();
      expect(await textOf('INFO', 'server')).toContain(`run_id:${run}\r`);
      expect(await textOf('INFO', 'replication')).toContain(`master_replid:${replication}\r`);
      expect(sinceMs).toBeGreaterThanOrEqual(beforeMs);
      expect(sinceMs).toBeLessThanOrEqual(await nowMs());
      for (const refusal of refusals) {
        expect(refusal).toMatchObject({ ok: false, entry: undefined });
        expect(!refusal.ok && refusal.quietForMs).toBeGreaterThan(quietMs - 300_000);
        expect(!refusal.ok && refusal.quietForMs).toBeLessThanOrEqual(quietMs);
      }
      expect(await command('KEYS', '*')).toEqual([guard]);
      // The time counts from the first request, and later requests do not start it again.
      await setGuard(run, replication, sinceMs - quietMs + 300_000);
      const later = await enter(one, 'a', { quietMs, placeMs: 0 });
      expect(!later.ok && later.quietForMs).toBeLessThanOrEqual(300_000);
      expect(!later.ok && later.quietForMs).toBeGreaterThan(0);
      expect((await guarded()).sinceMs).toBe(sinceMs - quietMs + 300_000);
      await setGuard(run, replication, sinceMs - quietMs);
      expect(await enter(one, 'a', { quietMs })).toMatchObject({ ok: true });
      expect(await one.queue.pass('key', { quietMs })).toBe(true);
      expect(await one.guardedWrite('key', bytes('w'), { ttlMs, quietMs })).toMatchObject({ ok: true });
      expect((await guarded()).sinceMs).toBe(sinceMs - quietMs);
    });

    it.each([
      ['after a restart', ({ replication }: { replication: string }) => setGuard('abc', replication, 1)],
      ['after a promotion', ({ run }: { run: string }) => setGuard(run, 'abc', 1)],
      [
        'after a clock went back',
        ({ run, replication }: { run: string; replication: string }) => setGuard(run, replication, '99999999999999'),
      ],
      ['where it cannot be read', () => command('SET', guard, 'what is this')],
    ])('begins anew %s', async (_, happen) => {
      const one = process();
      await enter(one, 'a', { quietMs });
      const before = await guarded();
      await happen(before);
      const refused = await enter(one, 'a', { quietMs });
      expect(!refused.ok && refused.quietForMs).toBeGreaterThan(quietMs - 300_000);
      expect(!refused.ok && refused.quietForMs).toBeLessThanOrEqual(quietMs);
      const after = await guarded();
      expect(after).toEqual({ ...before, sinceMs: after.sinceMs });
      expect(after.sinceMs).toBeGreaterThanOrEqual(before.sinceMs);
      expect(after.sinceMs).toBeLessThanOrEqual(await nowMs());
    });

    it('grants nothing while it is quiet, not even to the former holder or by a release; a taken key stays taken', async () => {
      const [one, other] = [process(), process()];
      await enter(one, 'a');
      const turns = await hearing(other, 'b', { quietMs });
      // A ticket that the holder kept out was not kept out by the guard, which was never asked.
      expect(await enter(other, 'b', { quietMs })).toMatchObject({ ok: false, quietForMs: 0 });
      expect(await command('EXISTS', guard)).toBe(0);
      const again = await enter(one, 'a', { quietMs, placeMs: 0 });
      expect(again).toMatchObject({ ok: false, entry: { value: bytes('a') } });
      expect(!again.ok && again.quietForMs).toBeGreaterThan(quietMs - 300_000);
      const write = await one.guardedWrite('key', bytes('w'), { ttlMs, quietMs });
      expect(write).toMatchObject({ ok: false, entry: { value: bytes('a') } });
      expect(!write.ok && write.entry!.ttlMs).toBeGreaterThan(ttlMs - 30_000);
      expect(await one.queue.pass('key', { quietMs })).toBe(true);
      expect([await held(one), await waiting(), turns]).toEqual([undefined, [['b'], ['b']], []]);
    });
  });

  it('grant nothing, and lose no ticket, on a full server', async () => {
    const [one, other] = [process(), process()];
    await enter(one, 'a');
    await hearing(other, 'b');
    const before = await textOf('GET', names.record);
    const size = await command('DBSIZE');
    await command('CONFIG', 'SET', 'maxmemory', '1');
    try {
      const full = { reason: 'full', applied: 'no' };
      for (const verb of [
        () => enter(one, 'a'),
        () => enter(other, 'b'),
        () => enter(one, 'c'),
        () => enter(one, 'a', { quietMs }),
        () => one.queue.pass('key'),
        () => one.guardedWrite('key', bytes('w'), { ttlMs }),
        () => one.guardedWrite('key', bytes('w'), { ttlMs, quietMs }),
      ]) {
        expect(await failure(verb())).toMatchObject(full);
        expect([await textOf('GET', names.record), await waiting(), await command('DBSIZE')]).toEqual([
          before,
          [['b'], ['b']],
          size,
        ]);
      }
      await command('DEL', names.record);
      expect(await failure(enter(other, 'b'))).toMatchObject(full);
      expect(await waiting()).toEqual([['b'], ['b']]);
    } finally {
      await command('CONFIG', 'SET', 'maxmemory', '0');
    }
  });

  it.each([
    ['somebody waits', ['b']],
    ['nobody waits', []],
  ])('say that they did nothing on a replica, which takes no writes: %s', async (_, line) => {
    const one = process();
    await enter(one, 'a');
    for (const ticket of line) await enter(one, ticket);
    await command('REPLICAOF', '127.0.0.1', 1);
    try {
      for (const verb of [
        () => enter(one, 'a'),
        () => enter(one, 'c'),
        () => one.queue.pass('key'),
        () => one.queue.pass('key', { quietMs }),
        () => one.queue.leave('key', ['b']),
        () => one.guardedWrite('key', bytes('w'), { ttlMs }),
      ]) {
        expect(await failure(verb())).toMatchObject({ reason: 'failed', applied: 'no' });
      }
      expect([await held(one), await one.queue.size('key')]).toEqual(['a', line.length]);
    } finally {
      await command('REPLICAOF', 'NO', 'ONE');
    }
  });

  it('grant nothing, or everything, whichever of their calls fails', async () => {
    const [one, other] = [process(), process()];
    const call = 'redis.call(';
    const record = '000000060000c';
    const keys = [names.record, names.bucket, names.line, names.places, guard];
    let struck = 0;
    for (const { script, given } of [
      { script: scripts.enterScript, given: ['c', record, `${ttlMs}`, `${placeMs}`, 'holdfast!c'] },
      { script: scripts.passScript, given: [''] },
      { script: scripts.guardedWriteScript, given: [record, `${ttlMs}`, ''] },
    ]) {
      const parts = script.text.split(call);
      for (const [isHeld, quiet] of [
        [true, '0'],
        [false, '0'],
        [false, `${quietMs}`],
      ] as const) {
        const common = ['PUBLISH', 'channel', 'hash', quiet];
        for (let nth = 1; nth < parts.length; nth++) {
          await command('FLUSHALL');
          await enter(one, 'a');
          await hearing(other, 'b');
          if (!isHeld) await command('DEL', names.record);
          const before = await command('GET', names.record);
          const broken = `${parts.slice(0, nth).join(call)}struck(${parts.slice(nth).join(call)}`;
          const outcome = await command('EVAL', broken, keys.length, ...keys, ...common, ...given).catch(
            (error: Error) => error,
          );
          const after = await command<string | null>('GET', names.record);
          if (outcome instanceof Error) struck++;
          // A call that fails has granted either nothing or everything: to the first in the queue, or to its writer.
          if (outcome instanceof Error && after !== before)
            expect(after).toMatch(/^\d{16}(000000001000b|000000060000c)$/);
          await other.queue.leave('key', ['b']);
        }
      }
    }
    expect(struck).toBeGreaterThan(20);
  });
});
