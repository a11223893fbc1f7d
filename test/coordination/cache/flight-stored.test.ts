/** What one search for a key does with a store: leases, fills, records, and the changes of other processes. */
import { describe, expect, it } from 'vitest';
import { decodeRecord } from '../../../src/coordination/cache/record.js';
import { StoreError, TimeoutError } from '../../../src/index.js';
import { deferred } from '../../support/deferred.ts';
import { forbidUnhandledRejections } from '../../support/unhandled-rejections.ts';
import { type Changes, setUp, setUpSeen } from './support.ts';

const keyIn = 'cache|cache|key|42';

forbidUnhandledRejections();

describe('flight before a store', () => {
  it('takes a value that another process has stored, and watches only what is held', async () => {
    const { caches, users, sources, control } = setUpSeen({}, 2);
    await caches[1]!.get('42');
    control.calls.length = 0;
    expect(await users.get('42')).toBe(1);
    expect(sources().at(-1)).toBe('l2');
    // A cold key is leased by the same trip that finds it.
    expect(control.calls).toEqual([`write ${keyIn}`]);
    await users.close();
    await caches[1]!.close();
    expect(control.watches.size).toBe(0);
  });

  it.each([
    ['fails', (source: { error: unknown }) => (source.error = new Error('down'))],
    ['is not kept', (source: { value: unknown }) => (source.value = undefined)],
  ])('leaves no watch, no timer and no lease when its load %s', async (_, change) => {
    const { users, source, control, clock, inner } = setUpSeen({ tags: () => ['a'], failBackoff: () => 0 });
    change(source as never);
    await users.get('42').catch(() => {});
    await clock.flush();
    expect([control.watches.size, clock.pendingTimers]).toEqual([0, 0]);
    const entry = await inner.read(keyIn);
    expect(entry && decodeRecord(entry.value)!.claim).toBeUndefined();
  });

  it('checks a loaded value again when another process has invalidated its tag before it was in memory', async () => {
    const { caches, users, source, control, clock } = setUpSeen({ early: 'off', tags: () => ['t'] }, 2);
    let writes = 0;
    const { promise: replied, resolve: reply } = deferred();
    // The first write takes the lease, and the second stores the value.
    control.after = (verb, key) => (verb === 'write' && key.includes('|key|') && ++writes === 2 ? replied : undefined);
    const first = users.get('42');
    await clock.flush();
    expect(writes).toBe(2);
    await caches[1]!.invalidateTag('t');
    reply();
    expect(await first).toBe(1);
    source.value = 2;
    expect(await users.get('42')).toBe(2);
  });

  it('shares undefined as a value with other processes', async () => {
    const { caches, source, sources } = setUpSeen({ early: 'off', negativeTtl: '1m' }, 2);
    source.value = undefined;
    for (const one of caches) expect(await one.get('42')).toBeUndefined();
    expect([source.loads, sources()]).toEqual([1, ['load', 'l2']]);
  });

  it('renews its lease for as long as it loads, so that the others wait', async () => {
    const { caches, source, clock } = setUp({ ttl: '1h', hardTimeout: '1m' }, 2);
    source.delayMs = 20_000;
    const answers = Promise.all(caches.map((one) => one.get('42')));
    await clock.advance(21_000);
    expect([await answers, source.loads]).toEqual([[1, 1], 1]);
  });

  it.each([
    ['it was tried again', 1_500],
    ['it could be tried again', 1_010],
  ])('stores what it has loaded also when the reply to a renewal was lost, be that before %s', async (_, delayMs) => {
    const { caches, users, source, control, clock, warnings } = setUpSeen({ ttl: '1h' }, 2);
    source.delayMs = delayMs;
    let writes = 0;
    control.after = (verb) => {
      if (verb === 'write' && ++writes === 2) throw new Error('reply lost');
    };
    const answer = users.get('42');
    await clock.advance(2_000);
    expect(await answer).toBe(1);
    expect([await caches[1]!.get('42'), source.loads, warnings()]).toEqual([1, 1, []]);
  });

  it('keeps what it loaded when its lease had ended but was not taken', async () => {
    const { users, source, control, clock } = setUpSeen({
      ...{ early: 'off', staleIfError: '1h', isTelling: false },
    });
    await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 4_500;
    source.value = 2;
    const answer = users.get('42');
    await clock.flush();
    control.before = (verb) => {
      const detail = 'no room';
      if (verb !== 'write' || clock.now() > 14_400) return;
      throw new StoreError({ store: 'test', operation: verb, reason: 'full', applied: 'no', detail });
    };
    await clock.advance(4_500);
    expect([await answer, users.peek('42')]).toEqual([2, 2]);
  });

  it('leaves no watch of a tagged value that was refreshed, once it is gone', async () => {
    const { users, source, control, clock } = setUpSeen({
      early: 'off',
      staleWhileRevalidate: '1m',
      tags: () => ['a'],
    });
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    await clock.advance(10_000);
    source.value = 2;
    await users.get('42');
    await clock.flush();
    expect([await users.get('42'), users.peek('42')]).toEqual([2, 2]);
    await users.delete('42');
    expect(control.watches.size).toBe(0);
  });

  it('gives its lease back when all callers have gone, so that the next one loads at once', async () => {
    const { caches, source, clock } = setUp({}, 2);
    source.delayMs = 1_000;
    const controller = new AbortController();
    const first = caches[0]!.get('42', { signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    await expect(first).rejects.toBe('gone');
    source.delayMs = 0;
    expect(await caches[1]!.get('42')).toBe(1);
  });

  it('leaves the stale value in the store when it gives its lease back', async () => {
    const { caches, source, clock, sources } = setUp({ early: 'off', staleIfError: '1m', staleWhileRevalidate: 0 }, 2);
    await caches[0]!.get('42');
    await clock.advance(10_000);
    source.delayMs = 1_000;
    const controller = new AbortController();
    const first = caches[0]!.get('42', { signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    await first.catch(() => {});
    await clock.flush();
    source.delayMs = 0;
    source.error = new Error('down');
    expect(await caches[1]!.get('42')).toBe(1);
    expect(sources().at(-1)).toBe('stale');
  });

  it('leaves nothing in the store when it gives its lease back and the old value is no longer useful', async () => {
    const { users, source, clock, inner } = setUpSeen({ early: 'off', staleIfError: '1s' });
    await users.get('42');
    await clock.advance(10_500);
    source.delayMs = 5_000;
    const controller = new AbortController();
    const first = users.get('42', { signal: controller.signal });
    await clock.advance(700);
    controller.abort('gone');
    await first.catch(() => {});
    await clock.flush();
    expect(await inner.read(keyIn)).toBeUndefined();
  });

  it('lets a caller leave whose signal aborts during a request to the store', async () => {
    const controller = new AbortController();
    const { users, control, clock } = setUpSeen();
    control.before = () => controller.abort('gone');
    await expect(users.get('42', { signal: controller.signal })).rejects.toBe('gone');
    void users.close();
    await clock.flush();
  });

  it('sends nothing more to the store once all callers have gone', async () => {
    const { users, control, clock } = setUpSeen({ ttl: '1h', early: 'off', isTelling: false, tags: () => ['a'] });
    await users.get('42');
    for (const at of ['|key|', '|tag|']) {
      await clock.advance(6_000);
      const controller = new AbortController();
      control.calls.length = 0;
      control.after = (_, key) => (key.includes(at) ? clock.sleep(50) : undefined);
      const given = users.get('42', { signal: controller.signal });
      await clock.advance(10);
      controller.abort('gone');
      await expect(given).rejects.toBe('gone');
      await clock.advance(100);
      expect(control.calls.length).toBe(at === '|key|' ? 1 : 2);
    }
  });

  it('loads for itself when the store fails between the read and the lease', async () => {
    const { users, source, control, clock } = setUpSeen({ early: 'off', staleIfError: '1m' });
    await users.get('42');
    await clock.advance(10_000);
    control.before = (verb) => {
      if (verb === 'write') throw new Error('down');
    };
    source.value = 2;
    expect(await users.get('42')).toBe(2);
  });

  it('serves nothing from the store while a deletion is owed', async () => {
    const { users, source, control } = setUpSeen({ early: 'off', onStoreDown: 'replay' });
    await users.get('42');
    control.before = (verb) => {
      if (verb === 'remove') throw new Error('down');
    };
    await users.delete('42');
    source.value = 2;
    expect(await users.get('42')).toBe(2);
  });

  it('refreshes nothing that another process has reloaded in the meantime', async () => {
    const { caches, users, source, clock } = setUpSeen({ ttl: '4s', isTelling: false, random: () => 0 }, 2);
    source.delayMs = 1_000;
    const first = users.get('42');
    await clock.advance(1_000);
    await first;
    await caches[1]!.get('42');
    // Within the last 1.2 s both would refresh it.
    await clock.advance(2_900);
    await caches[1]!.get('42');
    await clock.advance(1_000);
    expect(source.loads).toBe(2);
    await users.get('42');
    await clock.advance(1_000);
    expect([users.peek('42'), source.loads]).toEqual([1, 2]);
  });

  it('keeps a stale value during its refresh, but not one that the store has lost', async () => {
    const { users, source, clock, inner } = setUpSeen({ early: 'off', staleWhileRevalidate: '1h', isTelling: false });
    await users.get('42');
    await clock.advance(12_000);
    source.delayMs = 1_000;
    await users.get('42').catch(() => {});
    await clock.advance(100);
    expect(users.size).toBe(1);
    await clock.advance(1_000);
    await inner.remove(keyIn);
    await clock.advance(6_000);
    const anew = users.get('42');
    await clock.flush();
    expect(users.size).toBe(0);
    await clock.advance(1_000);
    await anew;
  });

  it('suspects a value when a change of a tag was reported while it was read', async () => {
    const { users, control, clock } = setUpSeen({ ttl: '1h', early: 'off', tags: () => ['a'] });
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    expect(users.peek('42')).toBe(1);
    const tellOf = (place: string) => {
      for (const watch of control.watches) if (watch.key.includes(place)) watch.tell({ kind: 'changed' });
    };
    tellOf('|key|');
    control.after = (_, key) => {
      if (key.includes('|tag|')) tellOf('|tag|');
    };
    await users.get('42');
    expect([users.size, users.peek('42')]).toEqual([1, undefined]);
    control.after = () => undefined;
    await users.get('42');
    await clock.flush();
    expect(users.peek('42')).toBe(1);
  });

  it('serves new callers no stale value that was served before, once a change was reported', async () => {
    const { users, source, control, clock } = setUpSeen({ early: 'off', staleIfError: '1m', softTimeout: 200 });
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 2_000;
    const stale = users.get('42');
    await clock.advance(200);
    expect(await stale).toBe(1);
    control.tell('changed');
    let isAnswered = false;
    const newer = users.get('42').then(() => {
      isAnswered = true;
    });
    await clock.advance(199);
    expect(isAnswered).toBe(false);
    await clock.advance(5_000);
    await newer;
  });

  it('takes no lease if all callers have gone before the reply', async () => {
    const { users, source, control, clock, inner } = setUpSeen();
    control.after = () => clock.sleep(50);
    const controller = new AbortController();
    const first = users.get('42', { signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    await first.catch(() => {});
    await clock.advance(200);
    expect([source.loads, await inner.read(keyIn)]).toEqual([0, undefined]);
  });

  it.each([
    ['without tags', {}],
    ['with a tag', { tags: () => ['a'] }],
  ])(
    '%s, answers what it loaded and keeps it nowhere when the key was deleted meanwhile by another process',
    async (_, options) => {
      const { caches, users, source, clock, warnings } = setUpSeen({ ...options, isTelling: false }, 2);
      source.delayMs = 500;
      const answer = users.get('42');
      await clock.advance(100);
      await caches[1]!.delete('42');
      await clock.advance(500);
      expect([await answer, users.size, warnings()]).toEqual([1, 0, ['fill-refused']]);
    },
  );

  it('answers with the newer value if another process has set one during the load', async () => {
    const { caches, users, source, clock, sources } = setUpSeen({ isTelling: false }, 2);
    source.delayMs = 500;
    const answer = users.get('42');
    await clock.advance(100);
    await caches[1]!.set('42', 2);
    await clock.advance(500);
    expect([await answer, sources()]).toEqual([2, ['wait']]);
  });

  it('answers with its own value if the newer one of another process has expired by then', async () => {
    const lifetimes = (value: unknown) => ({ ttl: value === 2 ? 200 : 10_000, staleIfError: 3_600_000 });
    const { caches, users, source, clock, sources } = setUpSeen({ ttl: lifetimes, isTelling: false }, 2);
    source.delayMs = 500;
    const answer = users.get('42');
    await clock.advance(100);
    await caches[1]!.set('42', 2);
    await clock.advance(500);
    expect([await answer, sources()]).toEqual([1, ['load']]);
  });

  it('tries twice to store a value whose entry is its own but changes, and no more', async () => {
    const { users, source, control, clock, inner } = setUpSeen({ isTelling: false });
    source.delayMs = 500;
    const answer = users.get('42');
    await clock.advance(100);
    let tries = 0;
    control.before = async (verb) => {
      if (verb !== 'write') return;
      tries++;
      const { value, ttlMs } = (await inner.read(keyIn))!;
      await inner.write(keyIn, value, { ttlMs });
    };
    await clock.advance(500);
    expect([await answer, tries, users.size]).toEqual([1, 2, 0]);
  });

  it('lets new callers start another flight as soon as another process has changed the key', async () => {
    const { caches, users, source, clock } = setUpSeen({}, 2);
    source.delayMs = 1_000;
    const older = users.get('42');
    await clock.advance(100);
    source.value = 2;
    await caches[1]!.delete('42');
    await clock.flush();
    const newer = users.get('42');
    await clock.advance(5_000);
    expect([await older, await newer, source.loads]).toEqual([1, 2, 2]);
  });

  it('lets new callers start another flight as soon as another process has set the key', async () => {
    const { caches, users, source, clock } = setUpSeen({}, 2);
    source.delayMs = 1_000;
    const older = users.get('42');
    await clock.advance(100);
    await caches[1]!.set('42', 2);
    await clock.flush();
    expect([await users.get('42'), source.loads]).toEqual([2, 1]);
    await clock.advance(1_000);
    expect(await older).toBe(2);
  });

  it('misses no change that is reported while it checks the previous one', async () => {
    const { caches, users, source, control, clock } = setUpSeen({}, 2);
    source.delayMs = 1_000;
    const older = users.get('42');
    await clock.advance(100);
    control.after = (verb) => (verb === 'read' ? clock.sleep(50) : undefined);
    control.tell('changed');
    await clock.advance(10);
    await caches[1]!.delete('42');
    await clock.advance(100);
    source.value = 2;
    const newer = users.get('42');
    await clock.advance(3_000);
    expect([await older, await newer]).toEqual([1, 2]);
  });

  it('notices at its next renewal that the lease was taken, if no changes are reported', async () => {
    const { caches, users, source, clock } = setUpSeen({ isTelling: false }, 2);
    source.delayMs = 2_500;
    const older = users.get('42');
    await clock.advance(100);
    source.value = 2;
    await caches[1]!.delete('42');
    await clock.advance(1_000);
    const newer = users.get('42');
    await clock.advance(5_000);
    expect([await older, await newer, source.loads]).toEqual([1, 2, 2]);
  });

  it('keeps its own copy when the store shows that it is the newest', async () => {
    const { users, source, control, clock } = setUpSeen({ ttl: '1h', early: 'off', isTelling: false });
    source.value = { some: 'object' };
    const first = await users.get('42');
    await clock.advance(6_000);
    control.calls.length = 0;
    expect(await users.get('42')).toBe(first);
    expect(control.calls).toEqual([`read ${keyIn}`]);
  });

  it('treats a change reported during a read as a reason to read again', async () => {
    const { users, control, clock } = setUpSeen({ ttl: '1h', early: 'off' });
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    control.tell('changed');
    control.after = (verb) => {
      if (verb === 'read') control.tell('changed');
    };
    await users.get('42');
    expect(users.peek('42')).toBeUndefined();
    control.after = () => undefined;
    await users.get('42');
    await clock.flush();
    expect(users.peek('42')).toBe(1);
  });
});

describe('record that a flight leaves in the store', () => {
  it('contains the old value during the load, with its true age, for as long as it is useful', async () => {
    const { users, source, clock, inner } = setUpSeen({ early: 'off', ttl: '10s', staleWhileRevalidate: '20s' });
    await users.get('42');
    await clock.advance(15_000);
    source.delayMs = 5_000;
    await users.get('42');
    await clock.flush();
    for (const afterMs of [0, 1_000, 1_500]) {
      await clock.advance(afterMs);
      const entry = (await inner.read(keyIn))!;
      const { filled, claim } = decodeRecord(entry.value)!;
      expect(claim!.forMs).toBe(3_000);
      expect(entry.ageMs).toBeLessThan(1_000);
      expect(filled!.ageMs + entry.ageMs).toBeGreaterThanOrEqual(clock.now() - 1);
      expect(filled!.ageMs + entry.ageMs).toBeLessThanOrEqual(clock.now() + 2);
      expect(entry.ttlMs).toBeGreaterThan(30_000 - clock.now() - 10);
      expect(entry.ttlMs).toBeLessThanOrEqual(15_000);
    }
    await clock.advance(5_000);
  });

  it('contains only a lease once the old value is no longer useful', async () => {
    const { users, source, clock, inner } = setUpSeen({ early: 'off', ttl: '10s', staleWhileRevalidate: '1s' });
    await users.get('42');
    await clock.advance(10_500);
    source.delayMs = 2_500;
    await users.get('42');
    await clock.advance(2_000);
    const entry = (await inner.read(keyIn))!;
    expect(decodeRecord(entry.value)!.filled).toBeUndefined();
    expect(entry.ttlMs + entry.ageMs).toBeCloseTo(3_000, -1);
    await clock.advance(5_000);
  });

  it('contains the failure, the number in a row, and the old value, and outlives the backoff', async () => {
    const { users, source, clock, inner } = setUpSeen({ early: 'off', staleIfError: '1h', failBackoff: () => 2_000 });
    source.error = new Error('down');
    await users.get('42').catch(() => {});
    let entry = (await inner.read(keyIn))!;
    expect(decodeRecord(entry.value)).toMatchObject({ failure: { message: 'down', count: 1, retryInMs: 2_000 } });
    expect(entry.ttlMs).toBe(5_000);
    await clock.advance(2_000);
    await users.get('42').catch(() => {});
    entry = (await inner.read(keyIn))!;
    expect(decodeRecord(entry.value)!.failure!.count).toBe(2);
    await clock.advance(2_000);
    source.error = undefined;
    await users.get('42');
    await clock.advance(10_000);
    source.error = new Error('down again');
    source.delayMs = 500;
    const stale = users.get('42');
    await clock.advance(500);
    expect(await stale).toBe(1);
    entry = (await inner.read(keyIn))!;
    const { failure, filled } = decodeRecord(entry.value)!;
    expect(failure).toEqual({ message: 'down again', count: 1, retryInMs: 2_000 });
    expect(filled!.ageMs).toBeCloseTo(10_500, -1);
    expect(entry.ttlMs).toBeCloseTo(3_610_000 - 10_500, -2);
  });

  it('contains only the failure once the old value is no longer useful', async () => {
    const { users, source, clock, inner } = setUpSeen({ early: 'off', staleIfError: '1s', failBackoff: () => 5_000 });
    await users.get('42');
    await clock.advance(10_500);
    source.error = new Error('down');
    source.delayMs = 900;
    const failing = users.get('42').catch((error) => error);
    await clock.advance(900);
    expect(await failing).toBe(source.error);
    const { filled, failure } = decodeRecord((await inner.read(keyIn))!.value)!;
    expect([filled, failure!.count]).toEqual([undefined, 1]);
  });

  it('does not mention a load that all callers have given up, or a get without a loader', async () => {
    const { users, source, clock, inner } = setUpSeen({ load: undefined });
    await expect(users.get('42')).rejects.toThrow('has no "load"');
    expect(await inner.read(keyIn)).toBeUndefined();
    source.delayMs = 100;
    const controller = new AbortController();
    const given = users.get('42', { load: source.load, signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    await given.catch(() => {});
    await clock.flush();
    expect(await inner.read(keyIn)).toBeUndefined();
  });

  it('mentions a load that took longer than hardTimeout', async () => {
    const { users, source, clock, inner } = setUpSeen({ hardTimeout: '1s', failBackoff: () => 2_000 });
    source.delayMs = 5_000;
    const failure = users.get('42').catch((error) => error);
    await clock.advance(1_000);
    expect(await failure).toBeInstanceOf(TimeoutError);
    expect(decodeRecord((await inner.read(keyIn))!.value)!.failure!.count).toBe(1);
    await clock.advance(5_000);
  });
});

describe('flight that heard of changes', () => {
  it('asks the store nothing more once the cache is closed', async () => {
    const { users, source, control, clock } = setUpSeen();
    source.delayMs = 1_000;
    const answer = users.get('42').catch(() => {});
    await clock.flush();
    let goOn = () => {};
    control.before = (verb) => (verb === 'read' ? new Promise<void>((resolve) => (goOn = resolve)) : undefined);
    for (let changes = 0; changes < 2; changes++) control.tell('changed');
    await clock.flush();
    await users.close();
    await answer;
    control.calls.length = 0;
    goOn();
    await clock.flush();
    expect(control.calls).toEqual([]);
  });

  it.each([{}, { softTimeout: '1s' }])(
    'shows no stale value of a key that was deleted while it waited (%j)',
    async (options) => {
      const { caches, source, clock } = setUpSeen({ staleIfError: '1m', early: 'off', ...options } as Changes, 3);
      await caches[0]!.get('42');
      await clock.advance(12_000);
      source.delayMs = 5_000;
      const loads = caches.slice(0, 2).map((one) => one.get('42').catch((error: Error) => error.message));
      await clock.advance(500);
      source.error = new Error('down');
      await caches[2]!.delete('42');
      await clock.flush();
      expect(source.loads).toBe(3);
      const newcomer = caches[1]!.get('42').catch((error: Error) => error.message);
      await clock.advance(6_000);
      expect([await loads[1], await newcomer]).toEqual(['down', 'down']);
    },
  );

  it('gives newcomers no load that it began without a lease before the change, and lets them join it until then', async () => {
    const { caches, source, clock } = setUpSeen({ waitTimeout: 100, lease: '3s' }, 3);
    const [holder, impatient, writer] = caches as [(typeof caches)[0], (typeof caches)[0], (typeof caches)[0]];
    source.delayMs = 5_000;
    const all = [holder.get('42'), impatient.get('42')];
    await clock.advance(200);
    expect(source.loads).toBe(2);
    // This is long enough for the holder to renew its lease, which is also reported.
    await clock.advance(2_000);
    const joined = impatient.get('42');
    await clock.flush();
    expect(source.loads).toBe(2);
    await writer.set('42', 7);
    await clock.flush();
    const newcomer = impatient.get('42');
    await clock.advance(5_000);
    expect([await newcomer, await joined, ...(await Promise.all(all)), source.loads]).toEqual([7, 1, 7, 1, 2]);
  });
});

describe('flight before a store that reports no changes', () => {
  it('serves new callers no stale value that was served before, once its key may have changed unnoticed', async () => {
    const { caches, source, clock } = setUpSeen(
      { isTelling: false, early: 'off', staleIfError: '1m', softTimeout: 200 },
      2,
    );
    const [one, other] = [caches[0]!, caches[1]!];
    expect(await one.get('42')).toBe(1);
    await clock.advance(12_000);
    source.delayMs = 20_000;
    const stale = one.get('42');
    await clock.advance(200);
    expect(await stale).toBe(1);
    await other.set('42', 7);
    const newcomer = one.get('42');
    await clock.advance(200);
    expect(await newcomer).toBe(7);
  });
});
