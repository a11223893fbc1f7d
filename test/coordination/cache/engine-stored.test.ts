/** What one process does with its memory and its flights when there is a store behind them. */
import { describe, expect, it } from 'vitest';
import { deferred } from '../../support/deferred.ts';
import { setUp, setUpSeen } from './support.ts';

describe('cache before a store, with concurrent operations,', () => {
  it('serves no copy of its own after two concurrent sets: it cannot know which came last', async () => {
    const { users, control, inner, clock } = setUpSeen();
    const replies = [deferred(), deferred()];
    let writes = 0;
    control.after = (verb) => (verb === 'write' ? replies[writes++]?.promise : undefined);
    const sets = [users.set('42', 1), users.set('42', 2)];
    await clock.flush();
    // The reply to the first one arrives last.
    replies[1]!.resolve();
    await clock.flush();
    replies[0]!.resolve();
    await Promise.all(sets);
    expect(users.size).toBe(0);
    expect(await users.get('42')).toBe(2);
    expect((await inner.read('cache|cache|key|42'))!.version).toBe(2);
  });

  it('keeps no copy of a value that was set while a tag was invalidated', async () => {
    const { users, control, clock } = setUpSeen({ tags: () => ['a'] });
    const reply = deferred();
    control.after = (verb, key) => (verb === 'write' && key.includes('|key|') ? reply.promise : undefined);
    const set = users.set('42', 1);
    await clock.flush();
    await users.invalidateTag('a');
    reply.resolve();
    await set;
    expect(users.size).toBe(0);
  });

  it.each(['set', 'delete', 'invalidateTag'] as const)(
    'lets nobody join an older load once a %s has begun',
    async (verb) => {
      const { users, source, control, clock } = setUpSeen({ on: undefined, early: 'off' });
      source.delayMs = 1_000;
      const older = users.get('42');
      older.catch(() => {});
      await clock.flush();
      expect(users.get('42')).toBe(older);
      control.before = () => new Promise(() => {});
      (verb === 'set' ? users.set('42', 2) : users[verb]('42')).catch(() => {});
      const newer = users.get('42');
      newer.catch(() => {});
      expect(newer).not.toBe(older);
      void users.close();
      await clock.advance(2_000);
    },
  );

  it.each(['delete', 'invalidateTag'] as const)(
    'keeps nothing that was read during a %s, even one that failed',
    async (verb) => {
      for (const fails of [false, true]) {
        const { users, control, clock } = setUpSeen({ tags: () => ['a'], early: 'off' });
        for (let looks = 0; looks < 2; looks++) await users.get('42');
        const { hold, isHolding } = { hold: deferred(), isHolding: { is: true } };
        control.before = async (what, key) => {
          const isOurs = verb === 'delete' ? what === 'remove' : what === 'write' && key.includes('|tag|');
          if (!isOurs || !isHolding.is) return;
          await hold.promise;
          if (fails) throw new Error('down');
        };
        const change = (verb === 'delete' ? users.delete('42') : users.invalidateTag('a')).catch(() => 'failed');
        await clock.flush();
        expect(await users.get('42')).toBe(1);
        expect(users.size).toBe(1);
        isHolding.is = false;
        hold.resolve();
        await change;
        expect(users.size).toBe(0);
      }
    },
  );

  it('keeps nothing that was read during a failed set', async () => {
    const { users, control, clock } = setUpSeen({ early: 'off' });
    await users.get('42');
    const hold = deferred();
    control.before = async (verb) => {
      if (verb !== 'write') return;
      await hold.promise;
      throw new Error('down');
    };
    const set = users.set('42', 2);
    await clock.flush();
    control.before = () => undefined;
    expect(await users.get('42')).toBe(1);
    hold.resolve();
    await expect(set).rejects.toThrow('down');
    expect(users.size).toBe(0);
  });

  it('keeps no copy of a value whose set ended after the cache was closed', async () => {
    const { users, control, clock } = setUpSeen();
    const reply = deferred();
    control.after = () => reply.promise;
    const set = users.set('42', 1);
    await clock.flush();
    await users.close();
    reply.resolve();
    await set;
    expect([users.size, control.watches.size]).toEqual([0, 0]);
  });

  it('does not replace a newer version with an older one that it has read', async () => {
    const { caches, users, control, clock } = setUpSeen({ early: 'off', isTelling: false }, 2);
    await caches[1]!.set('42', 1);
    const reply = deferred();
    control.after = () => reply.promise;
    const slow = users.get('42');
    await clock.flush();
    control.after = () => undefined;
    await caches[1]!.set('42', 2);
    // This separates newcomers from the one who still reads.
    await users.invalidateTag('any');
    expect(await users.get('42')).toBe(2);
    reply.resolve();
    expect(await slow).toBe(1);
    expect(users.peek('42')).toBe(2);
  });

  it.each([
    ['of which changes are told', []],
    ['of which some changes are told already', ['t']],
  ])(
    'looks again for what it has set itself, %s, when others may have set it before it was told so',
    async (_, tags) => {
      const { caches, users, source, control, clock } = setUpSeen({ early: 'off', tags: () => tags }, 2);
      // A load that is under way hears of all changes of the key.
      source.delayMs = 100;
      const loading = users.get('42');
      await clock.flush();
      const reply = deferred();
      control.after = (verb, key) => (verb === 'write' && key.includes('|key|') ? reply.promise : undefined);
      const ours = users.set('42', 'ours');
      await clock.flush();
      control.after = () => undefined;
      await caches[1]!.set('42', 'theirs');
      reply.resolve();
      await ours;
      expect(await users.get('42')).toBe('theirs');
      await clock.advance(100);
      await loading;
    },
  );

  it('is closed once the loads under way have given back their leases', async () => {
    const { users, source, control, clock } = setUpSeen();
    source.delayMs = 1_000;
    const cut = users.get('42').catch(() => 'cut');
    await clock.flush();
    const reply = deferred();
    control.after = (verb) => (verb === 'remove' ? reply.promise : undefined);
    let isClosed = false;
    const closing = users.close().then(() => {
      isClosed = true;
    });
    expect(await cut).toBe('cut');
    await clock.flush();
    expect(control.calls).toContain('remove cache|cache|key|42');
    expect(isClosed).toBe(false);
    reply.resolve();
    await closing;
  });

  it('keeps serving what it had to load by itself during an outage, up to the limit for unreported changes', async () => {
    const { users, source, control, clock } = setUpSeen({ early: 'off', ttl: (value) => (value === 2 ? '1h' : '1s') });
    await users.get('42');
    await clock.advance(1_000);
    control.before = () => Promise.reject(new Error('down'));
    source.value = 2;
    for (let looks = 0; looks < 3; looks++) expect(await users.get('42')).toBe(2);
    expect(source.loads).toBe(2);
    control.before = () => undefined;
    control.calls.length = 0;
    await clock.advance(3_000);
    await users.get('42');
    expect(control.calls).toEqual([]);
    // This is the longest time for which a value is trusted whose changes are not reported.
    await clock.advance(2_000);
    await users.get('42');
    expect(control.calls).not.toEqual([]);
  });

  it('does not replace a value that was set during a read with the older version it has read', async () => {
    const { users, control, clock } = setUpSeen({ early: 'off' });
    await users.get('42');
    await clock.advance(10_000);
    const reply = deferred();
    control.after = (verb) => (verb === 'read' ? reply.promise : undefined);
    const slow = users.get('42');
    await clock.flush();
    control.after = () => undefined;
    await users.set('42', 2);
    reply.resolve();
    await slow;
    await users.get('42');
    expect(await users.get('42')).toBe(2);
  });
});

describe('cache before a store', () => {
  it('watches what it holds, once, and nothing else', async () => {
    const { users, control } = setUpSeen({ max: 2, tags: (_value, key) => [`tag of ${key}`] });
    const watched = () => [...control.watches].map(({ key }) => key.replace('cache|cache|', '')).sort();
    for (const key of ['a', 'b', 'c']) for (let looks = 0; looks < 2; looks++) await users.get(key);
    expect(watched()).toEqual(['key|b', 'key|c', 'tag|tag of b', 'tag|tag of c']);
    await users.delete('b');
    expect(watched()).toEqual(['key|c', 'tag|tag of c']);
    await users.close();
    expect(watched()).toEqual([]);
  });

  it('asks again for all that it holds when changes may have been missed, and warns once a second', async () => {
    const { users, source, control, clock, warnings } = setUpSeen({ early: 'off', maxL1Ttl: '1h', ttl: '1h' });
    for (const key of ['a', 'b']) for (let looks = 0; looks < 2; looks++) await users.get(key);
    control.calls.length = 0;
    control.tell('gap');
    expect([users.peek('a'), users.peek('b'), warnings()]).toEqual([undefined, undefined, ['gap']]);
    expect([await users.get('a'), await users.get('b')]).toEqual([1, 1]);
    expect([control.calls.length, source.loads]).toEqual([2, 2]);
    await clock.advance(999);
    control.tell('gap');
    expect(warnings()).toEqual(['gap']);
    await users.get('a');
    await clock.advance(1);
    control.tell('gap');
    expect(warnings()).toEqual(['gap', 'gap']);
  });

  it('asks again for a changed key, and warns of nothing', async () => {
    const { users, control, warnings } = setUpSeen({ early: 'off' });
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    control.tell('changed');
    expect([users.peek('42'), warnings()]).toEqual([undefined, []]);
  });

  it.each([
    ['tells of changes', true, 30_000],
    ['does not tell', false, 5_000],
  ])(
    'compares its copy with a store that %s behind, and at the latest before the next hit',
    async (_, isTelling, boundMs) => {
      for (const place of ['load', 'set'] as const) {
        const { users, source, control, clock } = setUpSeen({ ttl: '1h', early: 'off', isTelling });
        if (place === 'set') await users.set('42', 1);
        else await users.get('42');
        // If it is watched at all, it is watched from here on.
        control.tell('changed');
        await users.get('42');
        const { loads } = source;
        control.calls.length = 0;
        await clock.advance(0.8 * boundMs - 1);
        await users.get('42');
        expect(control.calls).toEqual([]);
        await clock.advance(1);
        // The value is returned at once, and the store is asked in the background. The source is left alone.
        expect(await users.get('42')).toBe(1);
        expect(await users.get('42')).toBe(1);
        await clock.flush();
        expect(control.calls).toEqual(['read cache|cache|key|42']);
        control.before = () => clock.sleep(50);
        await clock.advance(boundMs);
        const answer = users.get('42');
        await clock.flush();
        expect(users.peek('42')).toBeUndefined();
        await clock.advance(50);
        expect([await answer, source.loads]).toEqual([1, loads]);
      }
    },
  );

  it('trusts its own copy for 5 s at most if no changes are reported, whatever maxL1Ttl is', async () => {
    const { users, control, clock } = setUpSeen({ ttl: '1h', early: 'off', isTelling: false, maxL1Ttl: '1h' });
    await users.get('42');
    control.calls.length = 0;
    await clock.advance(5_000);
    await users.get('42');
    expect(control.calls).toEqual(['read cache|cache|key|42']);
  });

  it('holds what it loads while the store is down, in place of what it had from the store', async () => {
    const { users, source, control, clock } = setUpSeen({ ttl: '20s', early: 'off', isTelling: false });
    await users.get('42');
    await clock.advance(20_000);
    control.before = () => {
      throw new Error('down');
    };
    // A key that the store does not know takes the place of one that it knew.
    source.value = 2;
    expect([await users.get('42'), await users.get('42'), source.loads]).toEqual([2, 2, 2]);
  });

  it('sets a value with the current generations of its tags, and not at all if it cannot read them', async () => {
    const { caches, source, control, clock, inner } = setUpSeen({ tags: () => ['a'] }, 2);
    await caches[0]!.invalidateTag('a');
    await clock.advance(10);
    await caches[0]!.set('42', 7);
    expect([await caches[1]!.get('42'), source.loads]).toEqual([7, 0]);
    control.before = (verb) => {
      if (verb === 'read') throw new Error('down');
    };
    await expect(caches[0]!.set('43', 7)).rejects.toThrow('down');
    expect(await inner.read('cache|cache|key|43')).toBeUndefined();
  });

  it('serves no stale value past staleIfError, however long the backoff lasts', async () => {
    const { users, source, clock } = setUp({
      ...{ early: 'off', staleIfError: '1m', failBackoff: () => 3_600_000 },
    });
    await users.get('42');
    source.error = new Error('down');
    await clock.advance(60_000);
    expect(await users.get('42')).toBe(1);
    await clock.advance(9_999);
    expect(await users.get('42')).toBe(1);
    await clock.advance(1);
    await expect(users.get('42')).rejects.toThrow('down');
    expect(source.loads).toBe(2);
  });

  it('shares a value that was set with all its windows and tags', async () => {
    const { caches, source, clock } = setUp(
      { early: 'off', staleWhileRevalidate: '5s', tags: () => ['a'], negativeTtl: '1m' },
      3,
    );
    await caches[0]!.set('42', 7);
    await caches[0]!.set('none', undefined);
    expect([await caches[1]!.get('42'), await caches[1]!.get('none'), source.loads]).toEqual([7, undefined, 0]);
    await clock.advance(12_000);
    expect(await caches[2]!.get('42')).toBe(7);
    await clock.flush();
    expect(source.loads).toBe(1);
    await caches[0]!.set('42', 8);
    await caches[1]!.invalidateTag('a');
    expect([await caches[2]!.get('42'), await caches[0]!.get('42')]).toEqual([1, 1]);
  });

  it('holds at most 64 MiB of values by default', async () => {
    const big = new Uint8Array(2 ** 20 - 1_000);
    const { users } = setUp({ max: 100, serializer: 'bytes' });
    for (let key = 0; key < 66; key++) await users.set(`${key}`, big);
    expect(users.size).toBe(64);
    const bound = setUp({ max: 100, serializer: 'bytes', maxBytes: 2 ** 22 });
    for (let key = 0; key < 6; key++) await bound.users.set(`${key}`, big);
    expect(bound.users.size).toBe(4);
  });
});
