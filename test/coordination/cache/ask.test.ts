/** What parts of this package get that build their own values on the cache's engine. */
import { describe, expect, it } from 'vitest';
import { StoredCache } from '../../../src/coordination/cache/cache.js';
import { type CacheOptions, type HoldfastEvent, memoryStore } from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';
import { viewOf } from './support.ts';

function setUp(options: Partial<CacheOptions<unknown>> & { readonly isStored?: boolean } = {}) {
  const { isStored = false, ...cacheOptions } = options;
  const clock = virtualClock();
  const store = viewOf(memoryStore({ clock }));
  const events: HoldfastEvent[] = [];
  const on = (event: HoldfastEvent) => void events.push(event);
  const responses = new StoredCache<unknown, string>('responseCache', {
    ...{ ttl: '10s', jitter: 0, early: 'off', name: 'pages', clock, on, ...cacheOptions },
    ...(isStored && { store }),
  });
  const source = { value: 1 as unknown, delayMs: 0, loads: 0 };
  const load = async () => {
    source.loads++;
    const { value } = source;
    if (source.delayMs > 0) await clock.sleep(source.delayMs);
    return value;
  };
  const ask = (isRefreshed = true) => responses.ask('42', { load, isRefreshed: () => isRefreshed });
  return { clock, store, events, responses, source, ask };
}

describe('asking a stored cache', () => {
  it('tells where a value came from and until when it is fresh', async () => {
    const { clock, ask, source, events } = setUp({ staleWhileRevalidate: '5s' });
    await clock.advance(1_000);
    source.delayMs = 100;
    const answers = [ask(), ask()];
    await clock.advance(100);
    const freshness = { freshMs: 11_100, ttlMs: 10_000 };
    expect(await answers[0]).toEqual({ value: 1, source: 'load', freshness });
    expect(await answers[1]).toEqual({ value: 1, source: 'wait', freshness });
    expect(await ask()).toMatchObject({ value: 1, source: 'l1', freshness });
    await clock.advance(10_000);
    source.value = 2;
    expect(await ask()).toMatchObject({ value: 1, source: 'stale', freshness });
    await clock.advance(100);
    expect(await ask()).toMatchObject({ value: 2, source: 'l1', freshness: { freshMs: 21_200 } });
    const told = events.flatMap((event) => (event.type === 'cache-get' ? [[event.source, event.durationMs]] : []));
    expect(told).toEqual([
      ['load', 100],
      ['wait', 100],
      ['l1', 0],
      ['stale', 0],
      ['l1', 0],
    ]);
  });

  it('tells the same of a value that is in a store', async () => {
    const { clock, store, ask, source } = setUp({ isStored: true });
    source.delayMs = 100;
    const loaded = ask();
    await clock.advance(100);
    const freshness = { freshMs: 10_100, ttlMs: 10_000 };
    expect(await loaded).toEqual({ value: 1, source: 'load', freshness });
    expect((await ask()).freshness).toMatchObject(freshness);
    const other = new StoredCache<unknown, string>('responseCache', {
      ...{ ttl: '10s', jitter: 0, staleWhileRevalidate: '1m', early: 'off', name: 'pages', clock, store: { ...store } },
    });
    await clock.advance(1_000);
    const found = await other.ask('42', { load: () => 2, isRefreshed: () => true });
    expect(found).toEqual({ value: 1, source: 'l2', freshness });
  });

  it('serves a value that is not worth a refresh until it expires, and then no longer', async () => {
    const { clock, ask, source } = setUp({ staleWhileRevalidate: '5s' });
    await ask();
    await clock.advance(9_999);
    expect(await ask(false)).toMatchObject({ value: 1, source: 'l1' });
    await clock.advance(1);
    source.value = 2;
    expect(await ask(false)).toMatchObject({ value: 2, source: 'load' });
  });

  it('tells no freshness of a value that is not kept', async () => {
    const { ask } = setUp({ ttl: () => 0 });
    expect(await ask()).toEqual({ value: 1, source: 'load', freshness: undefined });
  });

  it("invalidates by a tag only the keys that can have it, and warns with the cache's name", async () => {
    const { clock, responses, source, ask, events } = setUp();
    source.delayMs = 100;
    const older = ask();
    await clock.flush();
    await responses.invalidateTag('of others', (key) => key !== '42');
    const joined = ask();
    await clock.advance(500);
    expect([(await older).source, (await joined).source, source.loads]).toEqual(['load', 'wait', 1]);
    responses.warn('not-invalidated', '42', 'reason');
    expect(events.at(-1)).toEqual({
      ...{ type: 'cache-warning', name: 'pages', key: '42', reason: 'not-invalidated', error: 'reason' },
    });
  });

  it('rejects once the cache is closed', async () => {
    const { responses, ask } = setUp();
    await ask();
    await responses.close();
    await expect(ask()).rejects.toThrow('the cache "pages" is closed');
  });

  it('names the cache in the error for an invalid option', () => {
    expect(() => setUp({ ttl: 'soon' as never })).toThrow('responseCache: option "ttl"');
  });
});
