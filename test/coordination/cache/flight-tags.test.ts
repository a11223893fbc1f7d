/** What one search for a key does when its value has tags. */
import { describe, expect, it } from 'vitest';
import { encodeRecord } from '../../../src/coordination/cache/record.js';
import { forbidUnhandledRejections } from '../../support/unhandled-rejections.ts';
import { setUp, setUpSeen } from './support.ts';

const keyIn = 'cache|cache|key|42';

forbidUnhandledRejections();

describe('flight of a value with tags', () => {
  it('loads again if a tag was invalidated during the load, before its lease was renewed', async () => {
    const { caches, users, source, clock } = setUp({ tags: () => ['a'] }, 2);
    source.delayMs = 2_000;
    const answer = users.get('42');
    await clock.advance(500);
    source.value = 2;
    await caches[1]!.invalidateTag('a');
    await clock.advance(5_000);
    expect([await answer, source.loads]).toEqual([2, 2]);
  });

  it('loads once if the tag was invalidated just before the load', async () => {
    const { caches, users, source, clock } = setUp({ tags: () => ['a'] }, 2);
    for (const delayMs of [100, 1_500]) {
      const { loads } = source;
      await caches[1]!.invalidateTag('a');
      await clock.advance(delayMs === 100 ? 3 : 30);
      source.delayMs = delayMs;
      const answer = users.get(`${delayMs}`);
      await clock.advance(5_000);
      await answer;
      expect(source.loads - loads).toBe(1);
    }
  });

  it('suspects a value when a change of the key was reported before its tags were read', async () => {
    const { users, control } = setUpSeen({ ttl: '1h', early: 'off', tags: () => ['a', 'b'] });
    for (let looks = 0; looks < 3; looks++) await users.get('42');
    expect(users.peek('42')).toBe(1);
    const tell = () => {
      for (const watch of control.watches) if (watch.key === keyIn) watch.tell({ kind: 'changed' });
    };
    tell();
    control.after = (verb, key) => {
      if (verb === 'read' && key === keyIn) tell();
    };
    await users.get('42');
    expect([users.size, users.peek('42')]).toEqual([1, undefined]);
  });

  it('is trusted as long as one without tags, if changes of its tags are reported', async () => {
    const { users, control, clock } = setUpSeen({ ttl: '1h', early: 'off', tags: () => ['a', 'b'] });
    for (let looks = 0; looks < 3; looks++) await users.get('42');
    control.calls.length = 0;
    await clock.advance(23_999);
    await users.get('42');
    expect(control.calls).toEqual([]);
    await clock.advance(1);
    await users.get('42');
    await clock.flush();
    expect(control.calls.length).toBe(2);
  });

  it('loads again if a tag was invalidated during the load, three times at most', async () => {
    const { caches, users, source, clock } = setUp({ tags: () => ['a'] }, 2);
    source.delayMs = 500;
    const answer = users.get('42');
    for (let invalidations = 0; invalidations < 5; invalidations++) {
      await clock.advance(250);
      source.value = invalidations;
      await caches[1]!.invalidateTag('a');
      await clock.advance(250);
    }
    await answer;
    expect(source.loads).toBe(3);
    expect(users.size).toBe(0);
    const twice = setUp({ tags: () => ['a'] }, 2);
    twice.source.delayMs = 500;
    const kept = twice.users.get('42');
    await twice.clock.advance(250);
    twice.source.value = 2;
    await twice.caches[1]!.invalidateTag('a');
    await twice.clock.advance(1_000);
    expect([await kept, twice.source.loads, await twice.caches[1]!.get('42')]).toEqual([2, 2, 2]);
  });

  it('does not use a value whose tag was invalidated since, and uses one whose tag was not', async () => {
    const { caches, users, source, sources, clock } = setUp({ tags: () => ['a', 'b'], early: 'off' }, 2);
    await caches[1]!.invalidateTag('b');
    await clock.advance(10);
    await users.get('42');
    expect(await caches[1]!.get('42')).toBe(1);
    expect(sources().at(-1)).toBe('l2');
    await users.invalidateTag('b');
    await clock.advance(10);
    source.value = 2;
    expect([await caches[1]!.get('42'), source.loads]).toEqual([2, 2]);
  });

  it('loads again what has a tag whose entry the store has dropped, invalidated or not, set or loaded', async () => {
    const { caches, users, source, store } = setUp({ tags: (_, key) => [`of ${key}`], early: 'off' }, 2);
    for (const key of ['loaded', 'invalidated']) await users.get(key);
    await users.set('set', 1);
    await caches[1]!.invalidateTag('of invalidated');
    source.value = 2;
    for (const key of ['loaded', 'invalidated', 'set']) {
      expect(await store.remove(`cache|cache|tag|of ${key}`)).toBe(true);
      const { loads } = source;
      expect([await caches[1]!.get(key), source.loads - loads]).toEqual([2, 1]);
    }
  });

  it('loads again what was stored without a generation of its tag, as by an older release', async () => {
    const { users, source, store } = setUp({ tags: () => ['a'], early: 'off' });
    const tags = new Map([['a', 0]]);
    const windows = { freshMs: 10_000, staleMs: 10_000, errorMs: 10_000, ageMs: 0, loadMs: 0 };
    const filled = { bytes: new TextEncoder().encode('7'), isUndefined: false, ...windows, tags };
    await store.write(keyIn, encodeRecord({ serializer: 1, filled }), { ttlMs: 10_000 });
    expect([await users.get('42'), source.loads]).toEqual([1, 1]);
  });

  it('loads each of many keys once though they are the first with their tag', async () => {
    const { caches, source, control, clock } = setUpSeen({ tags: () => ['a'], early: 'off' }, 2);
    source.delayMs = 100;
    const keys = Array.from({ length: 20 }, (_, index) => `${index}`);
    const all = Promise.all(keys.map((key, index) => caches[index % 2]!.get(key)));
    await clock.advance(50);
    const late = caches[0]!.get('late');
    await clock.advance(1_000);
    await Promise.all([all, late]);
    expect(source.loads).toBe(21);
    source.delayMs = 0;
    await Promise.all([...keys, 'late'].map((key) => caches[1]!.get(key)));
    expect(source.loads).toBe(21);
    expect(control.calls.filter((call) => call.startsWith('write cache|cache|tag|')).length).toBeLessThanOrEqual(20);
    control.calls.length = 0;
    await caches[0]!.get('later');
    expect(control.calls.filter((call) => call.startsWith('write cache|cache|tag|'))).toEqual([]);
  });

  it('loads again what was invalidated while its tag was given its first entry', async () => {
    const { caches, users, source, control, inner, clock } = setUpSeen({ tags: () => ['a'], early: 'off' }, 2);
    let isFirst = true;
    control.before = async (verb, key) => {
      if (verb !== 'write' || !key.includes('|tag|') || !isFirst) return;
      isFirst = false;
      source.value = 2;
      await clock.sleep(50);
      await inner.write(key, new Uint8Array(0), { ttlMs: 60_000 });
      await clock.sleep(50);
    };
    const answer = users.get('42');
    await clock.advance(200);
    expect([await answer, await caches[1]!.get('42'), source.loads]).toEqual([2, 2, 2]);
  });

  it.each(['fails', 'hangs'])(
    'answers what it loaded, and keeps it nowhere, when the write of a tag %s',
    async (how) => {
      const { users, control, warnings, clock, inner, source } = setUpSeen({ tags: () => ['a'] });
      control.before = (verb, key) => {
        if (verb !== 'write' || !key.includes('|tag|')) return undefined;
        if (how === 'fails') throw new Error('down');
        return new Promise(() => {});
      };
      const answer = users.get('42');
      await clock.advance(501);
      expect([await answer, warnings(), users.size]).toEqual([1, ['not-stored'], 0]);
      expect(await inner.read(keyIn)).toBeUndefined();
      const set = users.set('42', 7).catch((error: unknown) => error);
      await clock.advance(501);
      expect(await set).toBeInstanceOf(Error);
      expect([await inner.read(keyIn), source.loads]).toEqual([undefined, 1]);
    },
  );

  it('shows no value of which the store cannot say whether it is void', async () => {
    const { caches, users, source, control } = setUpSeen({ tags: () => ['a'], early: 'off' }, 2);
    await caches[1]!.get('42');
    source.value = 2;
    control.before = (verb, key) => {
      if (verb === 'read' && key.includes('|tag|')) throw new Error('down');
    };
    expect(await users.get('42')).toBe(2);
  });

  it('answers with what it loaded, and keeps it nowhere, if the store cannot read its tags', async () => {
    const { users, control, warnings } = setUpSeen({ tags: () => ['a'] });
    control.before = (verb) => {
      if (verb.startsWith('read')) throw new Error('down');
    };
    expect(await users.get('42')).toBe(1);
    expect([warnings(), users.size]).toEqual([['not-stored'], 0]);
  });
});
