/** What a search for a key does when it finds somebody else's lease: how long it waits, what it looks for meanwhile, and what ends the wait. */
import { describe, expect, it } from 'vitest';
import { LoadBackoffError, TimeoutError } from '../../../src/index.js';
import { forbidUnhandledRejections } from '../../support/unhandled-rejections.ts';
import { setUpSeen } from './support.ts';

const keyIn = 'cache|cache|key|42';

forbidUnhandledRejections();

describe('flight that waits for the load of another process', () => {
  const setUpWaiting = async (options: Parameters<typeof setUpSeen>[0] = {}) => {
    const world = setUpSeen({ early: 'off', random: () => 0.5, ...options }, 2);
    return { ...world, other: world.caches[1]! };
  };

  it('learns of the fill at once', async () => {
    const { users, other, source, clock, sources } = await setUpWaiting();
    source.delayMs = 777;
    void other.get('42');
    await clock.flush();
    const answeredMs = users.get('42').then(() => clock.now());
    await clock.advance(777);
    expect(await answeredMs).toBe(777);
    expect(sources()).toContain('wait');
    await clock.flush();
    expect(clock.pendingTimers).toBe(0);
  });

  it('polls every 500 ms in case a notice was lost', async () => {
    const { users, other, source, control, clock } = await setUpWaiting();
    source.delayMs = 2_900;
    void other.get('42');
    await clock.flush();
    void users.get('42');
    await clock.flush();
    control.calls.length = 0;
    await clock.advance(999);
    // The renewal of the other's lease is reported, after a third of it.
    expect(control.calls).toEqual([`read ${keyIn}`]);
    await clock.advance(3_000);
  });

  it('polls after 25 ms, then twice as long each time, and every 100 ms at last, if no changes are reported', async () => {
    const { users, other, source, control, clock } = await setUpWaiting({ isTelling: false });
    source.delayMs = 900;
    void other.get('42');
    await clock.flush();
    void users.get('42');
    await clock.flush();
    const looksMs: number[] = [];
    control.before = (verb) => verb === 'read' && looksMs.push(clock.now());
    await clock.advance(450);
    expect(looksMs).toEqual([25, 75, 175, 275, 375]);
    await clock.advance(1_000);
  });

  it('randomizes the pauses between polls from three to five quarters', async () => {
    for (const [draw, ms] of [
      [0, 18.75],
      [0.999, 31.2375],
    ] as const) {
      const { users, other, source, control, clock } = await setUpWaiting({ isTelling: false, random: () => draw });
      source.delayMs = 900;
      void other.get('42');
      await clock.flush();
      void users.get('42');
      await clock.flush();
      let firstMs: number | undefined;
      control.before = (verb) => {
        if (verb === 'read') firstMs ??= clock.now();
      };
      await clock.advance(40);
      expect(firstMs).toBeCloseTo(ms, 3);
      await clock.advance(1_000);
    }
  });

  it('loads for itself when waitTimeout has passed, and stores the value nowhere', async () => {
    const { users, other, source, control, clock } = await setUpWaiting({ waitTimeout: 900 });
    source.delayMs = 10_000;
    void other.get('42');
    await clock.flush();
    const answeredMs = users.get('42', { load: () => 'own' }).then((value) => [value, clock.now()]);
    await clock.advance(899);
    control.calls.length = 0;
    await clock.advance(1);
    expect(await answeredMs).toEqual(['own', 900]);
    expect([control.calls.filter((call) => call.startsWith('write')), users.size]).toEqual([[], 0]);
    await clock.advance(10_000);
  });

  it("rejects at waitTimeout with onWaitTimeout 'reject'", async () => {
    const { users, other, source, clock } = await setUpWaiting({ waitTimeout: '1s', onWaitTimeout: 'reject' });
    source.delayMs = 10_000;
    void other.get('42');
    await clock.flush();
    const failure = users.get('42').catch((error) => error);
    await clock.advance(1_000);
    expect(await failure).toBeInstanceOf(TimeoutError);
    expect(((await failure) as Error).message).toContain('1000 ms');
    await clock.advance(10_000);
  });

  it('serves the stale value at waitTimeout, or at softTimeout', async () => {
    for (const options of [{ waitTimeout: '1s' }, { softTimeout: '1s' }] as const) {
      const { users, other, source, clock } = await setUpWaiting({ ...options, staleIfError: '1m' });
      await users.get('42');
      await clock.advance(10_000);
      source.delayMs = 5_000;
      source.value = 2;
      const loads = other.get('42');
      await clock.flush();
      const startedMs = clock.now();
      const answered = users.get('42').then((value) => [value, clock.now() - startedMs]);
      await clock.advance(1_000);
      expect(await answered).toEqual([1, 1_000]);
      await clock.advance(10_000);
      expect([await loads, source.loads]).toEqual([options === undefined ? 0 : expect.anything(), 2]);
    }
  });

  it('serves a stale value at once, and does not ask again for half a second', async () => {
    for (const isTelling of [true, false]) {
      const { users, other, source, control, clock, sources } = await setUpWaiting({
        ...{ staleWhileRevalidate: '1m', isTelling },
      });
      await users.get('42');
      await clock.advance(10_000);
      source.delayMs = 800;
      source.value = 2;
      await other.get('42');
      await clock.flush();
      expect(await users.get('42')).toBe(1);
      await clock.flush();
      expect(sources().at(-1)).toBe('stale');
      control.calls.length = 0;
      await clock.advance(499);
      expect(await users.get('42')).toBe(1);
      await clock.flush();
      expect([control.calls, source.loads]).toEqual([[], 2]);
      await clock.advance(1);
      await users.get('42');
      await clock.flush();
      expect(control.calls.length).toBe(1);
      await clock.advance(500);
      await users.get('42');
      await clock.flush();
      expect(await users.get('42')).toBe(2);
    }
  });

  it('takes over the lease of a dead process, even if the old value is still in the record', async () => {
    const { users, other, source, control, clock } = await setUpWaiting({
      isTelling: false,
      lease: '1s',
      staleIfError: '1h',
    });
    await other.get('42');
    await clock.advance(10_000);
    source.delayMs = 60_000;
    void other.get('42').catch(() => {});
    await clock.flush();
    const startedMs = clock.now();
    const answered = users.get('42', { load: () => 'own' }).then((value) => [value, clock.now() - startedMs]);
    await clock.flush();
    control.before = (verb) =>
      verb === 'write' && clock.now() < startedMs + 1_000 ? new Promise(() => {}) : undefined;
    await clock.advance(1_100);
    expect(await answered).toEqual(['own', 1_000]);
    await clock.advance(60_000);
  });

  it('leaves no timer of softTimeout when it has first waited and then loaded', async () => {
    const { users, other, source, clock } = await setUpWaiting({ staleIfError: '1h', softTimeout: '5s' });
    await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 1_000;
    const controller = new AbortController();
    const given = other.get('42', { signal: controller.signal });
    await clock.flush();
    const answer = users.get('42', { load: () => 'own' });
    await clock.advance(500);
    controller.abort();
    await given.catch(() => {});
    await clock.advance(600);
    expect([await answer, clock.pendingTimers]).toEqual(['own', 0]);
  });

  it('ends when its cache is closed', async () => {
    const { users, other, source, clock } = await setUpWaiting();
    source.delayMs = 5_000;
    void other.get('42');
    await clock.flush();
    const cut = users.get('42').catch((error) => error.message);
    await clock.flush();
    await users.close();
    expect(await cut).toContain('closed');
    await clock.advance(6_000);
    expect(clock.pendingTimers).toBe(0);
  });

  it('loads as soon as the lease of the other process has ended', async () => {
    const { users, other, source, control, clock } = await setUpWaiting({ isTelling: false, lease: '1s' });
    source.delayMs = 60_000;
    void other.get('42').catch(() => {});
    await clock.flush();
    const answered = users.get('42', { load: () => 'own' }).then((value) => [value, clock.now()]);
    await clock.flush();
    // The other process dies together with its lease.
    control.before = (verb) => (verb === 'write' && clock.now() < 1_000 ? new Promise(() => {}) : undefined);
    await clock.advance(1_100);
    expect(await answered).toEqual(['own', 1_000]);
    void other.close();
    await clock.advance(60_000);
  });

  it('asks the store nothing after its own failure while there is a stale value', async () => {
    const { users, source, control, clock } = await setUpWaiting({ staleIfError: '1h', failBackoff: () => 4_000 });
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    await clock.advance(10_000);
    source.error = new Error('down');
    expect(await users.get('42')).toBe(1);
    // This reports its own failure.
    expect(await users.get('42')).toBe(1);
    control.calls.length = 0;
    await clock.advance(3_999);
    expect(await users.get('42')).toBe(1);
    expect([control.calls, source.loads]).toEqual([[], 2]);
    await clock.advance(1);
    await users.get('42');
    expect(source.loads).toBe(3);
  });

  it('is refused during the backoff after a failure, with the reason', async () => {
    const { users, other, source, clock } = await setUpWaiting({ failBackoff: () => 4_000 });
    source.error = new Error('no such table');
    await expect(other.get('42')).rejects.toThrow('no such table');
    await clock.advance(1_000);
    const refused = (await users.get('42').catch((error) => error)) as LoadBackoffError;
    expect(refused).toBeInstanceOf(LoadBackoffError);
    expect(refused.retryAfterMs).toBe(3_000);
    expect(refused.message).toContain('no such table');
    await clock.advance(2_999);
    await expect(users.get('42')).rejects.toBeInstanceOf(LoadBackoffError);
    await clock.advance(1);
    await expect(users.get('42')).rejects.toThrow('no such table');
    expect(source.loads).toBe(2);
  });

  it('serves the stale value during the backoff, and asks the store for it at most once', async () => {
    const { users, other, source, control, clock } = await setUpWaiting({
      staleIfError: '1h',
      failBackoff: () => 4_000,
    });
    await other.get('42');
    await clock.advance(10_000);
    source.error = new Error('down');
    expect(await other.get('42')).toBe(1);
    control.calls.length = 0;
    for (let ms = 0; ms < 3_900; ms += 300) {
      expect(await users.get('42')).toBe(1);
      await clock.advance(300);
    }
    expect([source.loads, control.calls.length]).toEqual([2, expect.any(Number)]);
    expect(control.calls.length).toBeLessThan(4);
    await clock.advance(200);
    expect(await users.get('42')).toBe(1);
    expect(source.loads).toBe(3);
  });
});
