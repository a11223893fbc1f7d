/** The suite is only worth something if it finds stores that break a law. Each bug planted here is found by a case of the law that it breaks. */
import {
  type Clock,
  type Entry,
  memoryStore,
  OptionsError,
  type Store,
  StoreError,
  type StoreWriteOptions,
} from 'holdfast';
import {
  mutexConformance,
  type StoreConformanceOptions,
  seededRandom,
  storeConformance,
  type VirtualClock,
  virtualClock,
} from 'holdfast/testing';
import { describe, expect, it } from 'vitest';

interface Bug {
  readonly law: number;
  readonly bug: string;
  /** Breaks a sound store. */
  readonly plant: (sound: Store, clock: VirtualClock) => Partial<Store>;
}

const closed = () =>
  new StoreError({ store: 'bad', operation: 'read', reason: 'closed', applied: 'no', detail: 'the store is closed' });
const restamped = (entry: Entry | undefined, change: (entry: Entry) => Partial<Entry>) =>
  entry && { ...entry, ...change(entry) };
const mapKeys = (sound: Store, change: (key: string) => string): Partial<Store> => {
  // Bad keys are accepted, so that only the planted bug is found.
  const changed = (key: string) => (typeof key === 'string' ? change(key) : key);
  return {
    read: (key, options) => sound.read(changed(key), options),
    write: (key, value, options) => sound.write(changed(key), value, options),
    remove: (key, options) => sound.remove(changed(key), options),
  };
};
const withWrite = (sound: Store, change: (options: StoreWriteOptions) => object): Partial<Store> => ({
  write: (key, value, options) => sound.write(key, value, options && { ...options, ...change(options) }),
});

const bugs: readonly Bug[] = [
  {
    law: 1,
    bug: 'counts versions anew after a removal',
    plant(sound) {
      const offsets = new Map<string, number>();
      const last = new Map<string, number>();
      const lower = (key: string, version: number) => version - (offsets.get(key) ?? 0);
      const raise = (key: string, version?: number) => (version ? version + (offsets.get(key) ?? 0) : version);
      const view = (key: string, entry: Entry | undefined) =>
        restamped(entry, ({ version }) => ({ version: lower(key, version) }));
      return {
        read: async (key, options) => view(key, await sound.read(key, options)),
        async write(key, value, options) {
          const answer = await sound.write(
            key,
            value,
            options && { ...options, ifVersion: raise(key, options.ifVersion) },
          );
          if (!answer.ok) return { ok: false, entry: view(key, answer.entry) };
          last.set(key, answer.version);
          return { ok: true, version: lower(key, answer.version) };
        },
        async remove(key, options) {
          const removed = await sound.remove(key, options && { ...options, ifVersion: raise(key, options.ifVersion) });
          if (removed) offsets.set(key, last.get(key) ?? 0);
          return removed;
        },
      };
    },
  },
  {
    law: 1,
    bug: 'gives the time as version, which stands still',
    plant: (sound, clock) => ({
      async write(key, value, options) {
        const answer = await sound.write(key, value, options);
        return answer.ok ? { ok: true, version: Math.floor(clock.now()) + 1 } : answer;
      },
    }),
  },
  {
    law: 1,
    bug: 'says nothing about a write',
    plant: (sound) => ({
      async write(key, value, options) {
        await sound.write(key, value, options);
        return undefined as never;
      },
    }),
  },
  {
    law: 1,
    bug: 'returns values as text',
    plant: (sound) => ({
      async read(key, options) {
        const entry = await sound.read(key, options);
        return restamped(entry, ({ value }) => ({ value: new TextDecoder().decode(value) as never }));
      },
    }),
  },
  {
    law: 9,
    bug: 'refuses with null for nothing',
    plant: (sound) => ({
      async write(key, value, options) {
        const answer = await sound.write(key, value, options);
        return answer.ok ? answer : { ok: false, entry: answer.entry ?? (null as never) };
      },
    }),
  },
  {
    law: 2,
    bug: 'looks first and writes later',
    plant: (sound) => ({
      async write(key, value, options) {
        const { ifVersion, ...others } = options ?? {};
        if (ifVersion === undefined || typeof ifVersion !== 'number') return sound.write(key, value, options);
        const entry = await sound.read(key);
        await undefined;
        if ((entry?.version ?? 0) !== ifVersion) return { ok: false, entry };
        return sound.write(key, value, others as StoreWriteOptions);
      },
    }),
  },
  {
    law: 2,
    bug: 'refuses without the entry in the way',
    plant: (sound) => ({
      async write(key, value, options) {
        const answer = await sound.write(key, value, options);
        return answer.ok ? answer : { ok: false };
      },
    }),
  },
  {
    law: 2,
    bug: 'takes ifVersion 0 for none',
    plant: (sound) => withWrite(sound, ({ ifVersion }) => ({ ifVersion: ifVersion === 0 ? undefined : ifVersion })),
  },
  {
    law: 2,
    bug: 'removes whatever version there is',
    plant: (sound) => ({ remove: (key, options) => sound.remove(key, options?.signal && { signal: options.signal }) }),
  },
  {
    law: 2,
    bug: 'says that it removed what was not there',
    plant: (sound) => ({
      async remove(key, options) {
        const removed = await sound.remove(key, options);
        return removed || options?.ifVersion === undefined;
      },
    }),
  },
  {
    law: 2,
    bug: 'gives the entry a new life when it refuses',
    plant: (sound) => ({
      async write(key, value, options) {
        const answer = await sound.write(key, value, options);
        if (!answer.ok && answer.entry) await sound.write(key, answer.entry.value, { ttlMs: options.ttlMs });
        return answer;
      },
    }),
  },
  {
    law: 3,
    bug: 'lets entries live too long',
    plant: (sound) =>
      withWrite(sound, ({ ttlMs }) => ({ ttlMs: typeof ttlMs === 'number' && ttlMs >= 1 ? ttlMs + 30 : ttlMs })),
  },
  {
    law: 3,
    bug: 'drops entries early',
    plant: (sound) => withWrite(sound, ({ ttlMs }) => ({ ttlMs: ttlMs > 100 ? ttlMs - 30 : ttlMs })),
  },
  {
    law: 3,
    bug: 'rounds ttls down to seconds',
    plant: (sound) =>
      withWrite(sound, ({ ttlMs }) => ({ ttlMs: ttlMs > 1000 ? Math.floor(ttlMs / 1000) * 1000 : ttlMs })),
  },
  {
    law: 3,
    bug: 'counts the age from the first write',
    plant(sound, clock) {
      const first = new Map<string, number>();
      return {
        read: async (key, options) =>
          restamped(await sound.read(key, options), () => ({ ageMs: clock.now() - first.get(key)! })),
        write(key, value, options) {
          if (!first.has(key)) first.set(key, clock.now());
          return sound.write(key, value, options);
        },
      };
    },
  },
  {
    law: 3,
    bug: 'tells the whole ttl as time left',
    plant: (sound) => ({
      read: async (key, options) =>
        restamped(await sound.read(key, options), ({ ageMs, ttlMs }) => ({ ttlMs: ageMs + ttlMs })),
    }),
  },
  {
    law: 5,
    bug: 'minds no signal',
    plant: (sound) => ({
      read: (key) => sound.read(key),
      write: (key, value, options) => sound.write(key, value, options && { ...options, signal: undefined }),
      remove: (key, options) => sound.remove(key, options && { ...options, signal: undefined }),
    }),
  },
  {
    law: 5,
    bug: 'frees the successor when a release is repeated',
    plant(sound) {
      const releases = new Set<string>();
      return {
        async remove(key, options) {
          const isRepeated = options?.ifVersion !== undefined && releases.has(`${key} ${options.ifVersion}`);
          if (options?.ifVersion !== undefined) releases.add(`${key} ${options.ifVersion}`);
          return isRepeated ? sound.remove(key) : sound.remove(key, options);
        },
      };
    },
  },
  {
    law: 6,
    bug: 'keeps the bytes that it was given',
    plant(sound) {
      const given = new Map<string, Uint8Array>();
      return {
        read: async (key, options) =>
          restamped(await sound.read(key, options), () => ({ value: given.get(key)!.slice() })),
        async write(key, value, options) {
          const answer = await sound.write(key, value, options);
          if (answer.ok) given.set(key, value);
          return answer;
        },
      };
    },
  },
  {
    law: 6,
    bug: 'hands out the bytes that it keeps',
    plant(sound) {
      const handed = new Map<string, Entry>();
      return {
        async read(key, options) {
          const entry = await sound.read(key, options);
          const before = handed.get(key);
          if (entry === undefined || before?.version === entry.version) return entry && before;
          handed.set(key, entry);
          return entry;
        },
      };
    },
  },
  {
    law: 6,
    bug: 'keeps bytes as text',
    plant: (sound) => ({
      write: (key, value, options) => {
        const isBytes = value instanceof Uint8Array;
        return sound.write(key, isBytes ? new TextEncoder().encode(new TextDecoder().decode(value)) : value, options);
      },
    }),
  },
  {
    law: 6,
    bug: 'takes an empty value for nothing',
    plant: (sound) => ({
      async read(key, options) {
        const entry = await sound.read(key, options);
        return entry?.value.length === 0 ? undefined : entry;
      },
    }),
  },
  {
    law: 6,
    bug: 'keeps the whole buffer of a view',
    plant: (sound) => ({
      write: (key, value, options) =>
        sound.write(key, value instanceof Uint8Array ? new Uint8Array(value.buffer) : value, options),
    }),
  },
  { law: 6, bug: 'ends keys at a zero byte', plant: (sound) => mapKeys(sound, (key) => key.split('\0')[0] || key) },
  { law: 6, bug: 'compares keys without case', plant: (sound) => mapKeys(sound, (key) => key.toLowerCase()) },
  { law: 6, bug: 'trims keys', plant: (sound) => mapKeys(sound, (key) => key.trim() || key) },
  { law: 6, bug: 'normalises keys', plant: (sound) => mapKeys(sound, (key) => key.normalize()) },
  {
    law: 6,
    bug: 'cuts long keys',
    plant: (sound) => mapKeys(sound, (key) => (key.length <= 512 ? key.slice(0, 500) : key)),
  },
  {
    law: 6,
    bug: 'keeps only the hash tag',
    plant: (sound) => mapKeys(sound, (key) => /\{(.+?)\}/.exec(key)?.[1] ?? key),
  },
  {
    law: 6,
    bug: 'takes keys of any length',
    plant: (sound) => mapKeys(sound, (key) => (key.length > 512 ? key.slice(0, 512) : key)),
  },
  {
    law: 6,
    bug: 'counts units, not bytes, of a key',
    plant: (sound) => mapKeys(sound, (key) => (/^\u00e9{257}$/.test(key) ? 'short' : key)),
  },
  { law: 6, bug: 'takes an empty key', plant: (sound) => mapKeys(sound, (key) => key || 'empty') },
  {
    law: 6,
    bug: 'replaces what is not well-formed in a key',
    plant: (sound) => mapKeys(sound, (key) => Buffer.from(key).toString()),
  },
  {
    law: 6,
    bug: 'cuts a value that is too large',
    plant: (sound) => ({
      write: (key, value, options) => sound.write(key, value?.length === 1001 ? value.slice(0, 1000) : value, options),
    }),
  },
  {
    law: 6,
    bug: 'takes a ttl of 0 for the least',
    plant: (sound) => withWrite(sound, ({ ttlMs }) => ({ ttlMs: ttlMs === 0 ? 1 : ttlMs })),
  },
  {
    law: 6,
    bug: 'overlooks a misspelt option',
    plant: (sound) => ({
      write: (key, value, options) =>
        sound.write(
          key,
          value,
          options && { ttlMs: options.ttlMs, ifVersion: options.ifVersion, signal: options.signal },
        ),
    }),
  },
  {
    law: 6,
    bug: 'throws where it should reject',
    plant: (sound) => ({
      read(key, options) {
        if (key === '')
          throw new StoreError({ store: 'bad', operation: 'read', reason: 'invalid', applied: 'no', detail: '' });
        return sound.read(key, options);
      },
    }),
  },
  {
    law: 6,
    bug: 'fails with an error of its own kind',
    plant: (sound) => ({
      read: (key, options) => (key === '' ? Promise.reject(new TypeError('no key')) : sound.read(key, options)),
    }),
  },
  {
    law: 8,
    bug: 'works on after close',
    plant: () => ({ close: async () => {} }) as Partial<Store>,
  },
  {
    law: 8,
    bug: 'throws when it is closed twice',
    plant() {
      let isClosed = false;
      const check = async () => {
        if (isClosed) throw closed();
        return undefined;
      };
      return {
        read: check,
        write: () => check().then(() => ({ ok: true, version: 1 })),
        remove: () => check().then(() => true),
        async close() {
          await check();
          isClosed = true;
        },
      } as Partial<Store>;
    },
  },
  {
    law: 9,
    bug: 'answers reads from a cache of its own',
    plant(sound) {
      const cached = new Map<string, Entry | undefined>();
      let reads = 0;
      return {
        async read(key, options) {
          if (reads++ % 2 === 0 || !cached.has(key)) cached.set(key, await sound.read(key, options));
          return cached.get(key);
        },
      };
    },
  },
  {
    law: 10,
    bug: 'tells of writes only',
    plant: (sound) => {
      const told = new Set<() => void>();
      return {
        async write(key, value, options) {
          const answer = await sound.write(key, value, options);
          if (answer.ok) for (const tell of told) tell();
          return answer;
        },
        native: {
          watch(key, onChange) {
            const inner = sound.native!.watch!(key, () => {});
            const tell = () => onChange({ kind: 'changed' });
            told.add(tell);
            return {
              ready: inner.ready,
              close() {
                told.delete(tell);
                inner.close();
              },
            };
          },
        },
      };
    },
  },
  {
    law: 10,
    bug: 'goes on telling who has closed',
    plant: (sound) => ({
      native: { watch: (key, onChange) => ({ ready: sound.native!.watch!(key, onChange).ready, close() {} }) },
    }),
  },
  {
    law: 11,
    bug: 'answers only for what is there',
    plant: (sound) => ({
      native: {
        readMany: async (keys) => (await sound.native!.readMany!(keys)).filter((entry) => entry !== undefined),
      },
    }),
  },
  {
    law: 12,
    bug: 'takes from the limit what it refuses',
    plant: (sound) => ({
      native: {
        async consume(key, options) {
          const answer = await sound.native!.consume!(key, options);
          if (!answer.ok)
            await sound.native!.consume!(key, { ...options, limit: 1, periodMs: 600_000, burst: 9, cost: 1 });
          return answer;
        },
      },
    }),
  },
  {
    law: 12,
    bug: 'grants one more than the burst',
    plant: (sound) => ({
      native: {
        consume: (key, options) =>
          sound.native!.consume!(key, { ...options, burst: (options.burst ?? options.limit) + 1 }),
      },
    }),
  },
];

/** The laws that a store breaks in virtual time. */
async function brokenLaws(
  options: Partial<StoreConformanceOptions> & Pick<StoreConformanceOptions, 'make'>,
  clock: VirtualClock,
) {
  const found: { law: number; message: string }[] = [];
  for (const { law, run } of storeConformance({ pass: (ms) => clock.advance(ms), ...options })) {
    await run().catch((error: Error) => found.push({ law, message: error.message }));
  }
  return found;
}

describe('storeConformance', () => {
  it('finds nothing in a sound store', async () => {
    const clock = virtualClock();
    expect(await brokenLaws({ make: () => memoryStore({ clock, maxValueBytes: 2 ** 20 }) }, clock)).toMatchObject([
      // The suite must also respect its settings.
      { law: 6, message: expect.stringContaining('a value of 1001 bytes') },
    ]);
    expect(await brokenLaws({ make: ({ maxValueBytes }) => memoryStore({ clock, maxValueBytes }) }, clock)).toEqual([]);
  });

  it.each(bugs)('finds a store that $bug', async ({ law, plant }) => {
    const clock = virtualClock();
    const make: StoreConformanceOptions['make'] = ({ maxValueBytes }) => {
      const sound = memoryStore({ clock, maxValueBytes });
      const verbs: Store = {
        read: (key, options) => sound.read(key, options),
        write: (key, value, options) => sound.write(key, value, options),
        remove: (key, options) => sound.remove(key, options),
      };
      return { ...verbs, close: () => sound.close(), ...plant(sound, clock) };
    };
    const found = await brokenLaws({ make }, clock);
    expect(found.map((one) => one.law)).toContain(law);
    expect(found.find((one) => one.law === law)!.message).toMatch(
      new RegExp(`^(law ${law} of stores is broken: |bad store)`),
    );
  });

  it('blames no law for a store that cannot be made', async () => {
    const failure = new TypeError('no address');
    const [first] = storeConformance({ make: () => Promise.reject(failure) });
    await expect(first!.run()).rejects.toBe(failure);
  });

  it('finds prefixes that are glued to the key', async () => {
    const clock = virtualClock();
    const one = memoryStore({ clock });
    const make: StoreConformanceOptions['make'] = ({ prefix }) => ({
      read: (key) => one.read(`${prefix}:${key}`),
      write: (key, value, options) => one.write(`${prefix}:${key}`, value, options),
      remove: (key) => one.remove(`${prefix}:${key}`),
    });
    const found = await brokenLaws({ make, entries: 'shared' }, clock);
    expect(found.find(({ law }) => law === 7)?.message).toContain('law 7 of stores is broken');
  });

  it('finds versions that a restart sets back', async () => {
    const clock = virtualClock();
    let store = memoryStore({ clock });
    const restart = async () => {
      store = memoryStore({ clock });
    };
    const make = () => ({ ...verbsOf(store) });
    const found = await brokenLaws({ make, restart }, clock);
    expect(found.find(({ law }) => law === 1)?.message).toContain('across a restart');
  });

  it('closes every store of a case, and tells what it has found even if they cannot be closed', async () => {
    const clock = virtualClock();
    const pass = (ms: number) => clock.advance(ms);
    const opened = new Set<string>();
    let isSound = false;
    const make: StoreConformanceOptions['make'] = () => {
      const sound = memoryStore({ clock });
      const name = `store ${opened.size}`;
      opened.add(name);
      return {
        ...verbsOf(sound),
        write: (key, value, options) =>
          isSound ? sound.write(key, value, options) : Promise.reject(new TypeError('no')),
        async close() {
          opened.delete(name);
          throw new Error(`${name} is open for ever`);
        },
      };
    };
    const stores = storeConformance({ make, pass, entries: 'shared' });
    const writers = stores.find(({ name }) => name.includes('many concurrent writers'))!;
    await expect(writers.run()).rejects.toThrow('law 2 of stores is broken');
    const [basics] = mutexConformance({ make, clock, pass });
    await expect(basics!.run()).rejects.toThrow(TypeError);
    isSound = true;
    await expect(stores[0]!.run()).rejects.toThrow('store 0 is open for ever');
    expect(opened).toEqual(new Set());
  });

  it('says which cases must run alone: the one that ends the server, and those that have leases', () => {
    const make = () => memoryStore();
    const restart = async () => {};
    const alone = storeConformance({ make, restart }).filter((one) => one.alone);
    expect(alone.map(({ name }) => name)).toEqual(['law 1: versions grow across a restart']);
    expect(mutexConformance({ make, restart }).every((one) => one.alone)).toBe(true);
  });

  it('finds nothing wrong with locks whose process stands still again and again, for about as long as their leases last', async () => {
    for (let seed = 1; seed <= 2; seed++) {
      const random = seededRandom(seed);
      const clock = virtualClock();
      let stoodMs = 0;
      const own: Clock = {
        now: () => clock.now() + stoodMs,
        wallNow: () => clock.wallNow() + stoodMs,
        schedule: (timer, atMs) => clock.schedule(timer, atMs - stoodMs),
        cancel: (timer) => clock.cancel(timer),
      };
      const pass = async (ms: number) => {
        for (let passedMs = 0; passedMs < ms; passedMs++) {
          if (random() < 0.001) stoodMs += random.between(350, 1_050);
          await clock.advance(1);
        }
      };
      const stores = new Map<string, Store>();
      const make = ({ prefix }: { readonly prefix: string }) => {
        const store = stores.get(prefix) ?? memoryStore({ clock: own });
        stores.set(prefix, store);
        return store;
      };
      for (const { name, run } of mutexConformance({ make, clock: own, pass })) {
        await run().catch((cause) => expect.fail(`seed ${seed}, ${name}: ${cause}`));
      }
    }
  });

  it.each([
    ['at once', 0, undefined],
    ['later than it takes to ask', 30, 'case 13 of locks is broken: of 11 hand-overs 0 came before'],
  ])('judges a store that tells of changes %s by who comes first, and not by a clock', async (_, lateMs, message) => {
    const clock = virtualClock();
    const sound = memoryStore({ clock });
    const make = (): Store => ({
      ...verbsOf(sound),
      native: {
        watch: (key, onChange) =>
          sound.native!.watch!(key, (change) => {
            if (lateMs === 0) onChange(change);
            else void clock.sleep(lateMs).then(() => onChange(change));
          }),
      },
    });
    const cases = mutexConformance({ make, clock, pass: (ms) => clock.advance(ms) });
    const { run } = cases.find(({ law }) => law === 13)!;
    if (message === undefined) await run();
    else await expect(run()).rejects.toThrow(message);
  });

  it('names the seed of a history that is not linearizable, and finds it again from there', async () => {
    const clock = virtualClock();
    const { plant } = bugs.findLast(({ law }) => law === 9)!;
    const make = () => {
      const sound = memoryStore({ clock });
      return { ...verbsOf(sound), ...plant(sound, clock) };
    };
    const messageFrom = async (options: object) =>
      (await brokenLaws({ make, ...options }, clock)).find(({ law }) => law === 9)!.message;
    const seed = Number(/seed (\d+)/.exec(await messageFrom({}))![1]);
    expect(await messageFrom({ seed, histories: 1 })).toContain(`seed ${seed}\nNot linearizable`);
  });

  it('refuses bad options', () => {
    expect(() => storeConformance({} as StoreConformanceOptions)).toThrow(OptionsError);
    expect(() => storeConformance({ make: () => memoryStore(), histories: 0 })).toThrow('"histories"');
    expect(() => storeConformance({ make: () => memoryStore(), tolerance: 5 } as StoreConformanceOptions)).toThrow(
      'did you mean "toleranceMs"?',
    );
  });
});

function verbsOf(store: Store): Store {
  return {
    read: (key, options) => store.read(key, options),
    write: (key, value, options) => store.write(key, value, options),
    remove: (key, options) => store.remove(key, options),
  };
}
