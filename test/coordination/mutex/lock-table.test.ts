/** What is written into a store for a lock, and how those who share a key judge it. */
import { mutex, type Store, StoreError, semaphore } from 'holdfast';
import { describe, expect, it } from 'vitest';
import { deferred } from '../../support/deferred.ts';
import { bench, engine, type Fate, unsteady, until } from './support.ts';

/** What a store holds under the key of a lock. */
async function recordOf(store: Store, key = 'mutex:key') {
  const entry = await store.read(key);
  return entry && { ...JSON.parse(new TextDecoder().decode(entry.value)), ttlMs: entry.ttlMs, version: entry.version };
}

describe('the record of a lock', () => {
  it('says who holds it and how many renewals there were; the first renewal records the fence', async () => {
    const { clock, inner, process } = bench();
    const lease = await process().acquire('key');
    const { owner, fence } = lease;
    const common = { owner, mode: 'exclusive', leaseMs: 3_000, leftMs: 3_000 };
    expect(await recordOf(inner)).toEqual({ holders: [{ ...common, renewals: 0 }], ttlMs: 3_000, version: fence });
    await clock.advance(1_000);
    expect(await recordOf(inner)).toMatchObject({ holders: [{ ...common, renewals: 1, fence }], ttlMs: 3_000 });
    await clock.advance(1_000);
    expect(await recordOf(inner)).toMatchObject({ holders: [{ ...common, renewals: 2, fence }] });
    await lease.extend('5s');
    expect(await recordOf(inner)).toMatchObject({ holders: [{ leaseMs: 5_000, renewals: 3, fence }], ttlMs: 5_000 });
    expect(lease.fence).toBe(fence);
  });

  it('counts the remaining time of each holder from its write, whoever rewrites the record', async () => {
    const { clock, inner, process } = bench();
    const dead = unsteady(clock, { inner });
    const first = await mutex({ store: dead.store, clock, ttl: '3s' }).read('key');
    dead.state.fate = () => 'hung';
    await clock.advance(500);
    const second = await process({ ttl: '60s' }).read('key');
    await clock.advance(1_000);
    const shared = { mode: 'shared' } as const;
    expect((await process().inspect('key')).holders).toEqual([
      { ...shared, owner: first.owner, fence: first.fence, remainingMs: 1_500 },
      { ...shared, owner: second.owner, fence: second.fence, remainingMs: 59_000 },
    ]);
    await clock.advance(1_499);
    expect((await process().inspect('key')).holders.length).toBe(2);
    await clock.advance(1);
    expect((await process().inspect('key')).holders).toMatchObject([{ owner: second.owner, remainingMs: 57_500 }]);
  });

  it('keeps the name of another owner, whatever characters it has', async () => {
    const { inner, process } = bench();
    const other = { owner: 'näïve 🔒', mode: 'shared', leaseMs: 3_000, leftMs: 3_000, renewals: 0, fence: 1 };
    await inner.write('mutex:key', new TextEncoder().encode(JSON.stringify({ holders: [other] })), { ttlMs: 3_000 });
    const { owner } = await process().read('key');
    expect((await recordOf(inner))?.holders).toMatchObject([{ owner: other.owner }, { owner }]);
  });

  it('is refused if it is malformed', async () => {
    const { inner, process } = bench();
    for (const text of ['{}', 'null', '{"holders":5}', '5']) {
      await inner.write('mutex:key', new TextEncoder().encode(text), { ttlMs: 1_000 });
      await expect(process().acquire('key')).rejects.toMatchObject({
        ...{ code: 'ERR_STORE', reason: 'schema', applied: 'no', store: 'lock' },
        message: expect.stringContaining('"key" holds something that is no record of a lock'),
      });
    }
  });

  it('is refused if it holds something else than holders and a claim, which must not let anybody in', async () => {
    const { inner, process } = bench();
    const known = { owner: 'x', mode: 'exclusive', leaseMs: 3_000, leftMs: 3_000, renewals: 0 };
    const holders = [
      null,
      'x',
      {},
      { id: 'x', endsInMs: 3_000 },
      { ...known, owner: 1 },
      { ...known, mode: 'upgrade' },
    ];
    const times = ['leaseMs', 'leftMs', 'renewals'].flatMap((name) => [
      { ...known, [name]: '3s' },
      { ...known, [name]: undefined },
    ]);
    const records = [
      ...[...holders, ...times, { ...known, fence: '9' }, { ...known, fence: null }].map((holder) => ({
        holders: [holder],
      })),
      ...[null, 'x', {}, { owner: 'x' }, { owner: 1, leftMs: 3_000 }].map((claim) => ({ holders: [], claim })),
    ];
    const locks = process();
    for (const record of records) {
      await inner.write('mutex:key', new TextEncoder().encode(JSON.stringify(record)), { ttlMs: 1_000 });
      for (const call of [locks.tryAcquire, locks.read, locks.inspect]) {
        await expect(call('key'), JSON.stringify(record)).rejects.toMatchObject({
          code: 'ERR_STORE',
          reason: 'schema',
        });
      }
    }
    expect(await locks.forceRelease('key')).toBe(true);
    expect(await locks.tryAcquire('key')).not.toBe(null);
  });
});

describe('the claim of a writer', () => {
  it('keeps readers out without a gap, is renewed when half of it has passed, and goes with the writer', async () => {
    const { clock, inner, process } = bench();
    const reader = await process({ ttl: '3s' }).read('key');
    const locks = process();
    const controller = new AbortController();
    const writing = locks.write('key', { signal: controller.signal });
    const ended = expect(writing).rejects.toBe('enough');
    const claims = new Set<number>();
    await clock.advance(1);
    const late = process();
    for (let passedMs = 0; passedMs < 9_000; passedMs += 50) {
      await expect(late.read('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
      const { claim, version } = await recordOf(inner);
      if (claim.leftMs === 3_000) claims.add(version);
      await clock.advance(50);
    }
    expect(reader.held()).toBe(true);
    expect([claims.size >= 4, claims.size <= 6]).toEqual([true, true]);
    controller.abort('enough');
    await ended;
    await clock.flush();
    expect((await recordOf(inner)).claim).toBe(undefined);
    expect((await late.read('key', { wait: 0 })).held()).toBe(true);
  });

  it('expires when the writer has disappeared, and not before, even if the readers are gone sooner', async () => {
    for (const readerTtl of ['60s', 100]) {
      const { clock, inner, process } = bench();
      const [reading, writing] = [unsteady(clock, { inner }), unsteady(clock, { inner })];
      await mutex({ store: reading.store, clock, ttl: readerTtl as 100 }).read('key');
      if (readerTtl === 100) reading.state.fate = () => 'hung';
      const writer = mutex({ store: writing.store, clock, ttl: '3s' }).write('key');
      writer.catch(() => {});
      await clock.flush();
      writing.state.fate = () => 'hung';
      await clock.advance(2_999);
      await expect(process().read('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
      await clock.advance(1);
      expect((await process().read('key', { wait: 0 })).held()).toBe(true);
    }
  });

  it('expires even while a reader keeps renewing the record', async () => {
    const { clock, inner, process } = bench();
    const reader = await process({ ttl: '3s' }).read('key');
    const dead = unsteady(clock, { inner });
    const writer = mutex({ store: dead.store, clock, ttl: '3s' }).write('key');
    writer.catch(() => {});
    await clock.flush();
    dead.state.fate = () => 'hung';
    await clock.advance(2_990);
    await expect(process().read('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(20);
    expect((await process().read('key', { wait: 0 })).held()).toBe(true);
    expect(reader.held()).toBe(true);
  });

  it('stays when one of the readers leaves, and when the last one does', async () => {
    const { clock, process } = bench();
    const readers = [await process().read('key'), await process().read('key')];
    const writing = process().write('key');
    await clock.flush();
    for (const reader of readers) {
      expect(await reader.release()).toBe('released');
      await expect(process().read('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
    }
    const writer = await until(clock, writing, 20);
    await writer.release();
    expect((await process().read('key', { wait: 0 })).held()).toBe(true);
  });

  it('is not made for a caller that does not wait, nor on a lock that a writer holds', async () => {
    const { clock, inner, process } = bench();
    const reader = await process().read('key');
    expect(await process().tryAcquire('key')).toBe(null);
    expect((await recordOf(inner)).claim).toBe(undefined);
    await reader.release();
    await process({ ttl: '60s' }).write('key');
    const waiting = process().write('key', { wait: 500 });
    const ended = expect(waiting).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(500);
    await ended;
    expect((await recordOf(inner)).claim).toBe(undefined);
  });

  it('belongs to one writer at a time; the next writer makes its own', async () => {
    const { clock, inner, process } = bench();
    const reader = await process().read('key');
    const first = process().write('key');
    await clock.flush();
    const { claim } = await recordOf(inner);
    const second = process().write('key');
    await clock.advance(1_000);
    expect((await recordOf(inner)).claim.owner).toBe(claim.owner);
    await reader.release();
    const writer = await until(clock, first, 300);
    expect((await recordOf(inner)).claim).toBe(undefined);
    await writer.release();
    expect((await until(clock, second, 300)).held()).toBe(true);
  });

  it('goes with a writer that gives up at once, and lets no other writer overtake in between', async () => {
    const { clock, inner, process } = bench();
    const reader = await process().read('key');
    const controller = new AbortController();
    const gone = expect(process().write('key', { signal: controller.signal })).rejects.toBe('gone');
    await clock.flush();
    await reader.release();
    expect(await process().tryAcquire('key')).toBe(null);
    await (await process().read('other')).release();
    controller.abort('gone');
    await gone;
    await clock.flush();
    expect(await inner.read('mutex:key')).toBe(undefined);
    const again = await process().read('key');
    const next = new AbortController();
    const ended = expect(process().write('key', { signal: next.signal })).rejects.toBe('gone');
    await clock.flush();
    next.abort('gone');
    await ended;
    await clock.flush();
    expect([again.held(), (await recordOf(inner)).claim]).toEqual([true, undefined]);
  });

  it.each([false, true])(
    'passes from a writer that has disappeared to the next when it expires (in a line: %s)',
    async (queues) => {
      const { clock, inner, process } = bench({ queues });
      await process({ ttl: '60s' }).read('key');
      const dead = unsteady(clock, { inner, queues });
      mutex({ store: dead.store, clock, ttl: '3s' })
        .write('key')
        .catch(() => {});
      await clock.flush();
      dead.state.fate = () => 'hung';
      const { claim } = await recordOf(inner);
      process()
        .write('key')
        .catch(() => {});
      await clock.advance(2_900);
      expect((await recordOf(inner)).claim.owner).toBe(claim.owner);
      await clock.advance(400);
      expect((await recordOf(inner)).claim.owner).not.toBe(claim.owner);
    },
  );

  it('is never made by a semaphore', async () => {
    const { clock, store, inner } = bench();
    const permits = semaphore({ store, clock, permits: 1 });
    await permits.acquire('key');
    const waiting = expect(semaphore({ store, clock, permits: 1 }).acquire('key', { wait: 500 })).rejects.toThrow();
    await clock.advance(400);
    expect((await recordOf(inner, 'semaphore:key')).claim).toBe(undefined);
    await clock.advance(100);
    await waiting;
  });

  it('does not keep out a reader that is in already but has not received the reply', async () => {
    const { clock, state, inner, process } = bench();
    const other = await process().write('key');
    const reading = process().read('key');
    await clock.advance(100);
    await other.release();
    state.fate = (verb) => (verb === 'write' ? 'lost' : 'ok');
    await clock.advance(100);
    state.fate = () => 'refused';
    const writing = mutex({ store: unsteady(clock, { inner }).store, clock, ttl: '3s' }).write('key');
    await clock.flush();
    expect((await recordOf(inner)).claim).not.toBe(undefined);
    state.fate = () => 'ok';
    const reader = await until(clock, reading, 1_000);
    expect((await recordOf(inner)).claim).not.toBe(undefined);
    await reader.release();
    expect((await until(clock, writing, 300)).held()).toBe(true);
  });
});

describe('writes for a lock', () => {
  it('give up when others have come first two hundred times in a row', async () => {
    const { clock, inner } = bench();
    let writes = 0;
    const store: Store = {
      read: (key) => inner.read(key),
      remove: (key, options) => inner.remove(key, options),
      async write() {
        const value = new TextEncoder().encode('{"holders":[]}');
        return { ok: false, entry: { value, version: ++writes, ageMs: 0, ttlMs: 1_000 } };
      },
    };
    await expect(mutex({ store, clock }).acquire('key')).rejects.toMatchObject({
      ...{ code: 'ERR_STORE', reason: 'busy', applied: 'no' },
      message: expect.stringContaining('others came first 200 times in a row'),
    });
    expect(writes).toBe(200);
  });

  it('abort with the attempt that they are made for, but not if they serve several', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    state.fate = () => 'hung';
    await clock.advance(1_000);
    const signal = state.signals.at(-1)!;
    expect(signal.aborted).toBe(false);
    await clock.advance(750);
    expect(signal.aborted).toBe(true);
    expect(lease.state).toBe('suspect');
  });

  it('fail for every request in the same write, and go on for others', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const readers = await Promise.all(Array.from({ length: 20 }, () => locks.read('key')));
    const fates: Fate[] = ['ok', 'ok', 'ok', 'ok', 'dropped'];
    state.fate = (verb) => (verb === 'write' ? (fates.shift() ?? 'ok') : 'ok');
    const results = await Promise.all(readers.map((reader) => reader.release()));
    expect(results).toContain('unknown');
    expect(results).toContain('released');
    await clock.advance(200);
    expect((await process().inspect('key')).holders).toEqual([]);
    expect(clock.pendingTimers).toBe(0);
  });

  it('remember only the present owners of those who share a key', async () => {
    const { store, clock, process } = bench();
    const { locks, lines } = engine(store, clock);
    await locks.acquire('key', 'shared');
    const others = process();
    for (let round = 0; round < 50; round++) {
      const lease = await others.read('key');
      await locks.inspect('key');
      await lease.release();
    }
    const line = lines.get('key') as { readonly table: { readonly seenSince: ReadonlyMap<string, unknown> } };
    expect(line.table.seenSince.size).toBeLessThanOrEqual(2);
  });

  it('are limited to four at a time per process and key', async () => {
    const { clock, state, store } = bench();
    const permits = semaphore({ store, clock, permits: 50 });
    const { promise: reply, resolve: answer } = deferred();
    state.fate = () => reply;
    const trying = Promise.all(Array.from({ length: 20 }, () => permits.tryAcquire('key')));
    await clock.flush();
    expect(state.calls).toBe(4);
    state.fate = () => 'ok';
    answer();
    expect((await trying).every((lease) => lease?.held())).toBe(true);
  });

  it('that serve several requests do not abort with the attempt of one of them', async () => {
    const { clock, state, process } = bench();
    const locks = process({ ttl: '60s' });
    const readers = await Promise.all(Array.from({ length: 6 }, () => locks.read('key')));
    const { promise: reply, resolve: answer } = deferred();
    state.fate = () => reply;
    const extended = Promise.all(readers.map((reader) => reader.extend()));
    await clock.flush();
    state.signals.length = 0;
    state.fate = () => 'ok';
    answer();
    await extended;
    expect(state.signals).toContain(undefined);
  });

  it('do not fail one request when the attempt of another ends; it only learns the present record', async () => {
    const { clock, state, process } = bench();
    const locks = process({ ttl: '60s' });
    const readers = await Promise.all(Array.from({ length: 5 }, () => locks.read('key')));
    const { promise: reply, resolve: answer } = deferred();
    state.fate = () => reply;
    const ends = Promise.allSettled(readers.slice(0, 4).map((reader) => reader.extend()));
    await clock.flush();
    const last = readers[4]!.extend().catch((error) => error);
    const trying = locks.tryAcquire('key');
    trying.catch(() => {});
    // The next write renews the last reader's lease and shows that there is no room. It takes longer than an attempt to renew may.
    const slow = deferred();
    state.fate = () => ({ reply: slow.promise });
    answer();
    await clock.advance(15_000);
    expect(await last).toMatchObject({ code: 'ERR_STORE', reason: 'timeout' });
    slow.resolve();
    expect(await trying).toBe(null);
    await ends;
  });

  it('renew while the store grants nothing, even in one write with a caller that wants to come in', async () => {
    const { clock, state, process } = bench({ queues: true });
    const locks = process({ afterRestart: 'wait', ttl: '3s' });
    const readers = [await until(clock, locks.read('key'))];
    for (let index = 0; index < 4; index++) readers.push(await locks.read('key'));
    state.beganMs = clock.now();
    const { promise: reply, resolve: answer } = deferred();
    state.fate = () => reply;
    const extended = readers.map((reader) => reader.extend());
    await clock.flush();
    const refused = expect(locks.read('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
    await clock.flush();
    state.fate = () => 'ok';
    answer();
    await refused;
    for (const remaining of await Promise.all(extended)) expect(remaining).toBe(2_668);
  });

  it('hand over the seat that is released, and give each heir a fence of its own', async () => {
    const { clock, store, inner } = bench();
    const permits = semaphore({ store, clock, permits: 8, ttl: '3s' });
    const leases = [];
    for (let index = 0; index < 8; index++) leases.push(await permits.acquire('key'));
    const waiting = Array.from({ length: 7 }, () => permits.acquire('key'));
    await clock.flush();
    await Promise.all(leases.slice(1).map((lease) => lease.release()));
    const heirs = await Promise.all(waiting);
    const { holders } = await recordOf(inner, 'semaphore:key');
    const owners = [leases[0]!, ...heirs].map(({ owner }) => owner);
    expect(holders.map(({ owner }: { owner: string }) => owner).sort()).toEqual(owners.sort());
    expect(new Set(heirs.map(({ fence }) => fence)).size).toBe(7);
  });

  it('that renew one holder take nothing from the others who share the key', async () => {
    const { clock, inner, process } = bench();
    const readers = [await process().read('key'), await process().read('key'), await process().read('key')];
    await clock.advance(10_000);
    expect(readers.map((reader) => reader.held())).toEqual([true, true, true]);
    const { holders } = await recordOf(inner);
    expect(holders.map(({ owner }: { owner: string }) => owner).sort()).toEqual(
      readers.map(({ owner }) => owner).sort(),
    );
    expect(holders.map(({ fence }: { fence: number }) => fence).sort()).toEqual(
      readers.map(({ fence }) => fence).sort(),
    );
  });

  it('keep a holder that renews as late as its lease allows, and no later', async () => {
    const { clock, inner } = bench();
    const dead = unsteady(clock, { inner });
    const shared = { clock, permits: 2, ttl: '3s' } as const;
    await semaphore({ store: dead.store, ...shared }).acquire('key');
    dead.state.fate = () => 'hung';
    const { store } = unsteady(clock, { inner });
    const others = semaphore({ store, ...shared, ttl: '60s' });
    // The record is rewritten all the time, so it ages slowly. What is left of the dead reader's lease is rounded in its favour.
    const lease = await others.acquire('key');
    for (let passedMs = 0; passedMs < 2_990; passedMs += 10) {
      await clock.advance(10);
      await lease.extend();
    }
    expect((await others.inspect('key')).holders.length).toBe(2);
    await clock.advance(30);
    expect((await others.inspect('key')).holders.length).toBe(1);
  });

  it('do not take an owner for dead that comes in again under its earlier name', async () => {
    const { clock, inner } = bench();
    const shared = { clock, permits: 2, random: () => 0.5 } as const;
    const [here, there] = [unsteady(clock, { inner }), unsteady(clock, { inner })];
    const locks = semaphore({ store: here.store, ...shared, ttl: '60s' });
    const [lease, second] = [await locks.acquire('key'), await locks.acquire('key')];
    const waiting = semaphore({ store: there.store, ...shared, ttl: '3s' }).acquire('key');
    await clock.advance(1_000);
    await second.release();
    // It gets in without hearing of it, until the others who share the key take it for dead. They do not hear that they have written so either.
    let deadAtMs = Number.POSITIVE_INFINITY;
    const isIn = () => deadAtMs !== Number.POSITIVE_INFINITY;
    there.state.fate = (verb) => (isIn() ? 'dropped' : verb === 'write' ? 'lost' : 'ok');
    here.state.fate = (verb) => (verb === 'write' && clock.now() > deadAtMs ? 'lost' : 'ok');
    for (let holders = 1; !isIn() || holders > 1; ) {
      await clock.advance(10);
      await lease.extend().catch(() => {});
      holders = (await recordOf(inner, 'semaphore:key')).holders.length;
      if (!isIn() && holders > 1) deadAtMs = clock.now() + 3_000;
    }
    there.state.fate = here.state.fate = () => 'ok';
    const late = await until(clock, waiting, 500);
    await lease.extend();
    expect([await locks.tryAcquire('key'), lease.held(), late.held()]).toEqual([null, true, true]);
  });
});

describe('a store that fails in the middle of a change', () => {
  it("fails the caller with the store's own error", async () => {
    const { state, process } = bench();
    const error = new StoreError({ store: 'x', operation: 'write', reason: 'full', applied: 'no', detail: 'full' });
    state.fate = () => error;
    await expect(process().acquire('key')).rejects.toBe(error);
    await expect(process().inspect('key')).rejects.toBe(error);
    await expect(process().forceRelease('key')).rejects.toBe(error);
  });
});
