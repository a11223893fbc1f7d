/** The laws of a store against the memory store, in virtual time and in real time. */
import { memoryStore, type Store } from 'holdfast';
import { mutexConformance, storeConformance, virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';

const clock = virtualClock();

describe('memoryStore, in virtual time, keeps', () => {
  const cases = storeConformance({
    make: ({ maxValueBytes }) => memoryStore({ maxValueBytes, clock }),
    pass: (ms) => clock.advance(ms),
    toleranceMs: 0,
    histories: historyCount(1000),
    seed: firstSeed,
  });
  it.each(cases)('$name', ({ run }) => run(), historiesTimeoutMs);

  it('its word that it owns no timer', () => {
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('memoryStore, in real time, keeps', () => {
  it.each(storeConformance({ make: ({ maxValueBytes }) => memoryStore({ maxValueBytes }) }))('$name', ({ run }) =>
    run(),
  );
});

describe('memoryStore, when all is evictable, keeps', () => {
  const cases = storeConformance({
    make({ maxValueBytes }): Store {
      const store = memoryStore({ maxValueBytes, clock });
      return {
        read: (key, options) => store.read(key, options),
        // Invalid options are passed on unchanged.
        write: (key, value, options) => store.write(key, value, options && { ...options, evictable: true }),
        remove: (key, options) => store.remove(key, options),
      };
    },
    pass: (ms) => clock.advance(ms),
    toleranceMs: 0,
  });
  it.each(cases)('$name', ({ run }) => run());
});

describe('locks over memoryStore, in virtual time:', () => {
  const clock = virtualClock();
  const stores = new Map<string, Store>();
  const cases = mutexConformance({
    make({ prefix }) {
      const store = stores.get(prefix) ?? memoryStore({ clock });
      stores.set(prefix, store);
      return store;
    },
    ...{ clock, pass: (ms: number) => clock.advance(ms), toleranceMs: 0, contenders: 50, sections: 20 },
  });
  it.each(cases)('$name', ({ run }) => run());

  it('no timer is left', async () => {
    await clock.advance(60_000);
    expect(clock.pendingTimers).toBe(0);
  });
});
