/**
 * Store conformance: the laws of a store as cases for any test runner, against any back end.
 *
 * Promise: each case opens its own stores under its own prefix, and leaves nothing but entries that expire. Its error says which law is broken, how, and with
 * which seed. A store that breaks a law fails a case of that law.
 */
import { checkOptions, func, integer, number, oneOf, optional, withDefault } from '../core/options.js';
import type { Store, StoreWriteOptions } from '../stores/store.js';
import { checkLinearizability } from './history/index.js';
import { Bench, bytes, type Case, type ConformanceSettings, isSame, minute, runAndClose, show } from './store-bench.js';
import { consumeCases, readManyCases, watchCases } from './store-capabilities.js';
import { playHistory } from './store-histories.js';
import { storeModel } from './store-model.js';

/** Options of {@link storeConformance}. */
export interface StoreConformanceOptions {
  /** Opens a store. Those that have `close` are closed when the case ends. */
  readonly make: (settings: ConformanceSettings) => Store | Promise<Store>;
  /**
   * `'shared'`: all stores of one case are clients of one server, so that cases with several clients open several.
   * `'separate'`: each store has its own entries, so there is one per case. Default `'separate'`.
   */
  readonly entries?: 'shared' | 'separate' | undefined;
  /** Lets this much time pass by the store's clock, for stores on a virtual clock. By default the cases wait in real time. */
  readonly pass?: ((ms: number) => Promise<void>) | undefined;
  /** Stops the server and starts it again with its persisted data. Adds cases about restarts. */
  readonly restart?: (() => Promise<void>) | undefined;
  /** How late an entry may expire, in milliseconds, from 0 to 10 000. Default 20. */
  readonly toleranceMs?: number | undefined;
  /** Histories of concurrent clients that are run and checked, from 1 to 100 000. Default 50. */
  readonly histories?: number | undefined;
  /** The seed of the first of them. Default 1. */
  readonly seed?: number | undefined;
}

/** One case. Give `name` and `run` to your test runner. */
export interface ConformanceCase {
  /** The number of the law in `docs/stores.md`. */
  readonly law: number;
  readonly name: string;
  /** Whether it must run alone: it restarts the server, or has leases that must be renewed in time. All others may run concurrently. */
  readonly alone: boolean;
  /** Rejects with an error that says what is broken. */
  readonly run: () => Promise<void>;
}

/**
 * The laws of a store as a list of cases, to run against your own back end.
 *
 * @throws `OptionsError` for an unknown option or a bad value.
 * @example
 * ```ts
 * import { memoryStore } from 'holdfast';
 * import { storeConformance, virtualClock } from 'holdfast/testing';
 *
 * const clock = virtualClock();
 * const cases = storeConformance({
 *   make: ({ maxValueBytes }) => memoryStore({ maxValueBytes, clock }),
 *   pass: (ms) => clock.advance(ms),
 * });
 * for (const { run } of cases) await run(); // or, with a test runner: it(name, run)
 * ```
 */
export function storeConformance(options: StoreConformanceOptions): ConformanceCase[] {
  const { make, entries, pass, restart, toleranceMs, histories, seed } = checkOptions('storeConformance', options, {
    make: func<StoreConformanceOptions['make']>(),
    entries: withDefault(oneOf(['shared', 'separate']), 'separate'),
    pass: optional(func<(ms: number) => Promise<void>>()),
    restart: optional(func<() => Promise<void>>()),
    toleranceMs: withDefault(number({ min: 0, max: 10_000 }), 20),
    histories: withDefault(integer({ min: 1, max: 100_000 }), 50),
    seed: withDefault(integer({ min: 0 }), 1),
  });
  const cases: ConformanceCase[] = [];
  const add = (law: number, name: string, body: (bench: Bench) => Promise<void>, maxValueBytes = 2 ** 20) => {
    cases.push({
      law,
      name: `law ${law}: ${name}`,
      alone: body === acrossRestart,
      async run() {
        const bench = new Bench(law, make, entries === 'shared', pass, maxValueBytes);
        await runAndClose(bench, () =>
          body(bench).catch((error) => {
            throw bench.brokenBy(error);
          }),
        );
      },
    });
  };

  const acrossRestart = restart && ((bench: Bench) => growAcrossRestart(bench, restart));

  for (const [name, body] of versionCases) add(1, name, body);
  if (acrossRestart !== undefined) add(1, 'versions grow across a restart', acrossRestart);
  for (const [name, body] of conditionCases) add(2, name, body);
  for (const [name, body] of timeCases(toleranceMs)) add(3, name, body);
  for (const [name, body] of repetitionCases) add(5, name, body);
  for (const [name, body] of byteCases) add(6, name, body);
  for (const [name, body] of inputCases) add(6, name, body, smallMaxValueBytes);
  if (entries === 'shared') add(7, 'stores with different prefixes never meet', prefixesNeverMeet);
  add(8, 'a closed store fails with reason "closed"', closedStoreFails);
  for (const [name, body] of watchCases) add(10, name, body);
  for (const [name, body] of readManyCases) add(11, name, body);
  for (const [name, body] of consumeCases) add(12, name, body);
  add(9, `${histories} histories of concurrent clients are linearizable`, (bench) =>
    historiesAreLinearizable(bench, histories, seed),
  );
  return cases;
}

const smallMaxValueBytes = 1000;

const versionCases: readonly Case[] = [
  [
    'versions grow with every write, and reads show them',
    async (bench: Bench) => {
      const store = await bench.open();
      let last = 0;
      for (const value of ['one', 'two', 'two']) {
        const version = await bench.put(store, 'key', value);
        bench.claim(version > last, () => `version ${version} follows ${last}`);
        await bench.holds(store, 'key', value, version);
        last = version;
      }
      const version = await bench.put(store, 'key', 'three', { ifVersion: last });
      bench.claim(version > last, () => `version ${version} of a conditional write follows ${last}`);
      await bench.holds(store, 'key', 'three', version);
    },
  ],
  [
    'versions grow across a removal',
    async (bench: Bench) => {
      const store = await bench.open();
      let last = 0;
      for (let round = 0; round < 3; round++) {
        for (const value of ['one', 'two']) {
          const version = await bench.put(store, 'key', value, round === 1 && value === 'one' ? { ifVersion: 0 } : {});
          bench.claim(version > last, () => `version ${version} follows ${last} across a removal`);
          last = version;
        }
        await store.remove('key');
      }
    },
  ],
  [
    'versions grow across expiry',
    async (bench: Bench) => {
      const store = await bench.open();
      await bench.put(store, 'key', 'one');
      await bench.put(store, 'key', 'two');
      const last = await bench.put(store, 'key', 'three', { ttlMs: 20 });
      await bench.pass(100);
      await bench.holds(store, 'key', undefined);
      const version = await bench.put(store, 'key', 'four', { ifVersion: 0 });
      bench.claim(version > last, () => `version ${version} follows ${last} across expiry`);
    },
  ],
];

async function growAcrossRestart(bench: Bench, restart: () => Promise<void>): Promise<void> {
  let last = 0;
  for (let round = 0; round < 3; round++) {
    const store = await bench.open();
    const version = await bench.put(store, 'key', 'value');
    bench.claim(version > last, () => `version ${version} follows ${last} across a restart`);
    last = version;
    if (round === 1) await store.remove('key');
    await bench.close();
    await restart();
  }
}

const conditionCases: readonly Case[] = [
  [
    'ifVersion 0 writes only where nothing is, and the refusal brings the entry in the way',
    async (bench: Bench) => {
      const store = await bench.open();
      const version = await bench.put(store, 'key', 'first', { ifVersion: 0, ttlMs: 30_000 });
      const entry = await bench.blocked(store, 'key', 0);
      bench.showsEntry(entry, 'first', version, 'the refusal of a write if 0');
      bench.claim(
        entry !== undefined && entry.ttlMs > 0 && entry.ttlMs <= 30_000 && entry.ageMs >= 0,
        () => `the entry in the way must have its age and time left, got ${show(entry)}`,
      );
      await bench.holds(store, 'key', 'first', version);
      await store.remove('key');
      await bench.put(store, 'key', 'second', { ifVersion: 0 });
      await bench.put(store, 'short', 'first', { ttlMs: 20 });
      await bench.pass(100);
      await bench.put(store, 'short', 'second', { ifVersion: 0 });
    },
  ],
  [
    'ifVersion writes only over that version, and the refusal brings what is there',
    async (bench: Bench) => {
      const store = await bench.open();
      const first = await bench.put(store, 'key', 'first');
      const second = await bench.put(store, 'key', 'second', { ifVersion: first });
      bench.showsEntry(await bench.blocked(store, 'key', first), 'second', second, 'the refusal of a stale write');
      bench.showsEntry(await bench.blocked(store, 'key', second + 1), 'second', second, 'the refusal of a write ahead');
      await bench.holds(store, 'key', 'second', second);
      await store.remove('key');
      bench.same(await bench.blocked(store, 'key', second), undefined, 'in the way where the key was removed');
      bench.same(await bench.blocked(store, 'never', 1), undefined, 'in the way where the key never was');
      const short = await bench.put(store, 'short', 'value', { ttlMs: 20 });
      await bench.pass(100);
      bench.same(await bench.blocked(store, 'short', short), undefined, 'in the way where the entry has expired');
    },
  ],
  [
    'a refused write changes neither value, version nor time left',
    async (bench: Bench) => {
      const store = await bench.open();
      // If the machine stands still, an entry may expire before it is read: then one that lives longer is tried.
      for (let ttlMs = 500; ; ttlMs *= 2) {
        const beginMs = bench.now();
        const key = `kept for ${ttlMs} ms`;
        const version = await bench.put(store, key, 'kept', { ttlMs });
        await store.write(key, bytes('refused'), { ttlMs: minute, ifVersion: 0 });
        await store.write(key, bytes('refused'), { ttlMs: minute, ifVersion: version + 1 });
        bench.same(await store.remove(key, { ifVersion: version + 1 }), false, 'a removal of another version');
        const entry = await store.read(key);
        if (bench.now() - beginMs >= ttlMs && ttlMs < minute) continue;
        bench.showsEntry(entry, 'kept', version, 'a read after refusals');
        await bench.pass(ttlMs + 100);
        await bench.holds(store, key, undefined);
        return;
      }
    },
  ],
  [
    'a removal says whether something was removed, and minds ifVersion',
    async (bench: Bench) => {
      const store = await bench.open();
      bench.same(await store.remove('key'), false, 'a removal where nothing was');
      const first = await bench.put(store, 'key', 'first');
      const second = await bench.put(store, 'key', 'second');
      bench.same(await store.remove('key', { ifVersion: first }), false, 'a removal of an old version');
      bench.same(await store.remove('key', { ifVersion: 0 }), false, 'a removal of version 0');
      await bench.holds(store, 'key', 'second', second);
      bench.same(await store.remove('key', { ifVersion: second }), true, 'a removal of the version');
      await bench.holds(store, 'key', undefined);
      bench.same(await store.remove('key', { ifVersion: second }), false, 'a second removal of the version');
      await bench.put(store, 'key', 'third');
      bench.same(await store.remove('key'), true, 'an unconditional removal');
      await bench.put(store, 'key', 'fourth', { ttlMs: 20 });
      await bench.pass(100);
      bench.same(await store.remove('key'), false, 'a removal after expiry');
    },
  ],
  [
    'of many concurrent writers with one ifVersion exactly one wins, and each loser sees it',
    async (bench: Bench) => {
      const clients = await bench.clients();
      let version = 0;
      for (let round = 0; round < 5; round++) {
        const answers = await Promise.all(
          Array.from({ length: 20 }, (_, writer) =>
            clients[writer % clients.length]!.write('key', bytes(`${round}/${writer}`), {
              ttlMs: minute,
              ifVersion: version,
            }),
          ),
        );
        const winners = answers.flatMap((answer, writer) => (answer.ok ? [{ writer, version: answer.version }] : []));
        bench.same(winners.length, 1, `winners among 20 writers if ${version}`);
        const winner = winners[0]!;
        for (const answer of answers) {
          if (!answer.ok)
            bench.showsEntry(answer.entry, `${round}/${winner.writer}`, winner.version, "a loser's entry");
        }
        version = winner.version;
      }
      const removals = await Promise.all(
        Array.from({ length: 20 }, (_, index) =>
          clients[index % clients.length]!.remove('key', index % 2 === 0 ? {} : { ifVersion: version }),
        ),
      );
      bench.same(removals.filter(Boolean).length, 1, 'removals that removed one entry');
    },
  ],
];

function timeCases(toleranceMs: number): readonly Case[] {
  return [
    [
      'an entry lives for its ttl and is gone when it is over',
      async (bench: Bench) => {
        const store = await bench.open();
        const ttlMs = 200;
        const beginMs = bench.now();
        await bench.put(store, 'key', 'value', { ttlMs });
        const writtenMs = bench.now();
        for (;;) {
          const askedMs = bench.now();
          const entry = await store.read('key');
          const answeredMs = bench.now();
          if (entry === undefined) {
            // Clocks of different resolution may differ by a millisecond.
            bench.claim(answeredMs - beginMs >= ttlMs - 1, () => `gone after ${answeredMs - beginMs} of ${ttlMs} ms`);
            return;
          }
          const overdueMs = askedMs - writtenMs - ttlMs;
          bench.claim(overdueMs <= toleranceMs, () => `still there ${overdueMs} ms after its ttl of ${ttlMs} ms`);
          await bench.pass(5);
        }
      },
    ],
    [
      'ageMs counts from the last write, ttlMs to the end',
      async (bench: Bench) => {
        const store = await bench.open();
        const slackMs = toleranceMs + 1;
        await bench.put(store, 'key', 'old', { ttlMs: 5000 });
        await bench.pass(60);
        for (const ttlMs of [8500, 2500]) {
          const beginMs = bench.now();
          const version = await bench.put(store, 'key', 'value', { ttlMs });
          const writtenMs = bench.now();
          await bench.pass(40);
          const askedMs = bench.now();
          const views = [await store.read('key'), await bench.blocked(store, 'key', version + 1)];
          const answeredMs = bench.now();
          for (const entry of views) {
            bench.claim(entry !== undefined, () => `nothing is left of a ttl of ${ttlMs} ms after 40 ms`);
            const { ageMs, ttlMs: leftMs } = entry;
            bench.claim(
              ageMs >= askedMs - writtenMs - slackMs && ageMs <= answeredMs - beginMs + slackMs,
              () => `ageMs is ${ageMs}, about ${askedMs - writtenMs} ms after the write`,
            );
            bench.claim(
              Math.abs(ageMs + leftMs - ttlMs) <= slackMs,
              () => `ageMs ${ageMs} and ttlMs ${leftMs} must add up to the ttl of ${ttlMs} ms`,
            );
          }
        }
      },
    ],
    [
      'a write gives the entry its own ttl, longer or shorter',
      async (bench: Bench) => {
        const store = await bench.open();
        await bench.put(store, 'longer', 'value', { ttlMs: 50 });
        await bench.put(store, 'longer', 'value', { ttlMs: minute });
        await bench.put(store, 'shorter', 'value', { ttlMs: minute });
        await bench.put(store, 'shorter', 'value', { ttlMs: 50 });
        await bench.put(store, 'shortest', 'value', { ttlMs: 1 });
        await bench.put(store, 'fraction', 'value', { ttlMs: minute + 0.5 });
        await bench.pass(150);
        await bench.holds(store, 'longer', 'value');
        await bench.holds(store, 'shorter', undefined);
        await bench.holds(store, 'shortest', undefined);
        await bench.holds(store, 'fraction', 'value');
      },
    ],
  ];
}

const repetitionCases: readonly Case[] = [
  [
    'a repeated verb brings back what its owner knows as its own',
    async (bench: Bench) => {
      const store = await bench.open();
      // The case treats the reply of each first try as lost.
      const created = await bench.put(store, 'key', 'owner a, lease 1', { ifVersion: 0 });
      bench.showsEntry(await bench.blocked(store, 'key', 0), 'owner a, lease 1', created, 'a repeated creation');
      const renewed = await bench.put(store, 'key', 'owner a, lease 2', { ifVersion: created });
      bench.showsEntry(await bench.blocked(store, 'key', created), 'owner a, lease 2', renewed, 'a repeated renewal');
      bench.same(await store.remove('key', { ifVersion: renewed }), true, 'a release');
      const other = await bench.put(store, 'key', 'owner b, lease 1', { ifVersion: 0 });
      bench.same(await store.remove('key', { ifVersion: renewed }), false, 'a repeated release');
      await bench.holds(store, 'key', 'owner b, lease 1', other);
      bench.showsEntry(await bench.blocked(store, 'key', renewed), 'owner b, lease 1', other, 'a renewal come late');
    },
  ],
  [
    'a verb whose signal has aborted rejects with its reason and does nothing',
    async (bench: Bench) => {
      const store = await bench.open();
      await bench.put(store, 'key', 'kept');
      const reason = new Error('the caller has gone');
      const signal = AbortSignal.abort(reason);
      const verbs: Record<string, () => Promise<unknown>> = {
        read: () => store.read('key', { signal }),
        write: () => store.write('key', bytes('changed'), { ttlMs: minute, signal }),
        remove: () => store.remove('key', { signal }),
      };
      for (const [name, verb] of Object.entries(verbs)) {
        const error = await bench.failureOf(verb, `${name} with an aborted signal`);
        bench.claim(error === reason, () => `${name} must reject with the signal's reason, got ${show(error)}`);
      }
      await bench.holds(store, 'key', 'kept');
      // A signal that does not abort changes nothing.
      await bench.put(store, 'key', 'changed', { signal: new AbortController().signal });
    },
  ],
];

const byteCases: readonly Case[] = [
  [
    'the same bytes come out: none, all of them, no UTF-8, 1 MiB',
    async (bench: Bench) => {
      const store = await bench.open();
      const all = Uint8Array.from({ length: 256 }, (_, index) => index);
      const large = Uint8Array.from({ length: 2 ** 20 }, (_, index) => (index * 7919) >> 5);
      const values = [
        new Uint8Array(0),
        Uint8Array.of(0),
        all,
        all.toReversed(),
        Uint8Array.of(0xff, 0xfe, 0x80),
        large,
      ];
      for (const value of values) {
        await store.write('key', value, { ttlMs: minute });
        const refusal = await store.write('key', bytes('blocked'), { ttlMs: minute, ifVersion: 0 });
        const views = [await store.read('key'), refusal.ok ? undefined : refusal.entry];
        for (const entry of views) {
          bench.claim(entry?.value instanceof Uint8Array, () => `${value.length} bytes came out as ${show(entry)}`);
          bench.claim(isSame(entry.value, value), () => `${value.length} bytes did not come out as they went in`);
        }
      }
    },
  ],
  [
    'values are copied when they go in and when they come out',
    async (bench: Bench) => {
      const store = await bench.open();
      const around = bytes('<<value>>');
      const given = around.subarray(2, 7);
      await store.write('key', given, { ttlMs: minute });
      around.fill(0);
      await bench.holds(store, 'key', 'value');
      const read = await store.read('key');
      read?.value.fill(0);
      const refusal = await store.write('key', bytes('blocked'), { ttlMs: minute, ifVersion: 0 });
      if (!refusal.ok) refusal.entry?.value.fill(0);
      await bench.holds(store, 'key', 'value');
    },
  ],
  [
    'keys are opaque: globs, SQL, paths, hash tags, prototypes, any text',
    async (bench: Bench) => {
      const store = await bench.open();
      const versions = new Map<string, number>();
      const each = (body: (key: string) => Promise<void>) => Promise.all(oddKeys.map(body));
      await each((key) => bench.holds(store, key, undefined));
      await each(async (key) => {
        versions.set(key, await bench.put(store, key, `of ${key}`, { ifVersion: 0 }));
      });
      await each((key) => bench.holds(store, key, `of ${key}`, versions.get(key)));
      await each(async (key) => {
        bench.same(await store.remove(key, { ifVersion: versions.get(key)! }), true, `the removal of ${show(key)}`);
        await bench.holds(store, key, undefined);
      });
    },
  ],
];

const longest = 'k'.repeat(511);
const oddKeys: readonly string[] = [
  ...[
    'a',
    'A',
    ' a',
    'a ',
    'a\n',
    'a\0',
    'a\0b',
    'a\0c',
    '\0',
    ' ',
    '\t',
    '0',
    '1',
    '1.0',
    'null',
    'undefined',
    'true',
  ],
  ...['*', 'a*', '?', '[a]', '^', '%', '_', 'a_', "'", '"', '`', "' OR 1=1 --", "'; DROP TABLE holdfast_entries; --"],
  ...[
    '$1',
    '?1',
    ':key',
    '@key',
    '{a}b',
    '{a}c',
    '{}',
    '{',
    '}',
    'a:b',
    'a|b',
    'a/b',
    '../a',
    '/',
    '\\',
    'a\\',
    '.',
    '..',
  ],
  ...[
    '__proto__',
    'constructor',
    'toString',
    'hasOwnProperty',
    'return 1',
    'KEYS[1]',
    '\r\nFLUSHALL\r\n',
    '-',
    '--help',
  ],
  // These look equal, or are equal in some collation, but are different keys.
  ...[
    '\u00e9',
    'e\u0301',
    '\u00c9',
    '\u00df',
    'ss',
    '\u0131',
    'i',
    '\ufeffa',
    'a\u200b',
    '\u{1f512}',
    '\uffff',
    '\u{10ffff}',
  ],
  ...[`${longest}1`, `${longest}2`, `\u{1f512}`.repeat(128), `${'\u20ac'.repeat(170)}12`],
];

const tooLongKeys: readonly string[] = [
  'k'.repeat(513),
  '\u00e9'.repeat(257),
  '\u20ac'.repeat(171),
  '\u{1f512}'.repeat(129),
];

const inputCases: readonly Case[] = [
  [
    'a key that is no text of 1 to 512 bytes is refused by every verb',
    async (bench: Bench) => {
      const store = await bench.open();
      const badKeys: readonly unknown[] = [
        '',
        ...tooLongKeys,
        '\ud800',
        'a\udc00b',
        7,
        undefined,
        null,
        {},
        Symbol('key'),
      ];
      for (const bad of badKeys) {
        const key = bad as string;
        await bench.refuses(() => store.read(key), 'invalid', `read of key ${show(bad)}`);
        await bench.refuses(
          () => store.write(key, bytes(''), { ttlMs: minute }),
          'invalid',
          `write of key ${show(bad)}`,
        );
        await bench.refuses(() => store.remove(key), 'invalid', `removal of key ${show(bad)}`);
      }
    },
  ],
  [
    'a value over maxValueBytes is refused, one of just that size is not',
    async (bench: Bench) => {
      const store = await bench.open();
      const largest = 'v'.repeat(smallMaxValueBytes);
      await bench.put(store, 'key', largest);
      const write = () => store.write('key', bytes(`${largest}v`), { ttlMs: minute });
      await bench.refuses(write, 'invalid', `a value of ${smallMaxValueBytes + 1} bytes`);
      await bench.holds(store, 'key', largest);
    },
  ],
  [
    'bad values, ttls, versions and options are refused before anything is changed',
    async (bench: Bench) => {
      const store = await bench.open();
      await bench.put(store, 'key', 'kept');
      const value = bytes('changed');
      for (const bad of ['text', [1], new ArrayBuffer(1), new Uint16Array(1), null, undefined]) {
        const write = () => store.write('key', bad as unknown as Uint8Array, { ttlMs: minute });
        await bench.refuses(write, 'invalid', `the value ${show(bad)}`);
      }
      const badTtls: readonly unknown[] = [
        undefined,
        null,
        '5s',
        0,
        -1,
        0.5,
        Number.NaN,
        Number.POSITIVE_INFINITY,
        1e15,
      ];
      for (const ttlMs of badTtls) {
        const write = () => store.write('key', value, { ttlMs: ttlMs as number });
        await bench.refuses(write, 'invalid', `ttlMs ${show(ttlMs)}`);
      }
      for (const bad of [-1, 1.5, '1', null, Number.NaN, 2 ** 53]) {
        const ifVersion = bad as number;
        const write = () => store.write('key', value, { ttlMs: minute, ifVersion });
        await bench.refuses(write, 'invalid', `a write if ${show(bad)}`);
        await bench.refuses(() => store.remove('key', { ifVersion }), 'invalid', `a removal if ${show(bad)}`);
      }
      // A misspelt condition must not count as no condition.
      const misspelt = { ttlMs: minute, ifversion: 0 } as StoreWriteOptions;
      await bench.refuses(() => store.write('key', value, misspelt), 'invalid', 'an unknown option of write');
      await bench.refuses(
        () => store.remove('key', { ifversion: 1 } as object),
        'invalid',
        'an unknown option of remove',
      );
      const none = undefined as unknown as StoreWriteOptions;
      await bench.refuses(() => store.write('key', value, none), 'invalid', 'a write without options');
      await bench.holds(store, 'key', 'kept');
    },
  ],
];

async function prefixesNeverMeet(bench: Bench): Promise<void> {
  // If prefix and key were simply concatenated, the first two would be the same.
  const places = [
    { prefix: `${bench.prefix}:a`, key: 'b:c' },
    { prefix: `${bench.prefix}:a:b`, key: 'c' },
    { prefix: `${bench.prefix}:a`, key: 'b' },
    { prefix: `${bench.prefix}`, key: 'a:b' },
    { prefix: `${bench.prefix}`, key: 'b:c' },
  ];
  const stores = await Promise.all(places.map(({ prefix }) => bench.open(prefix)));
  for (const [index, { key }] of places.entries()) {
    await bench.put(stores[index]!, key, `value ${index}`, { ifVersion: 0 });
  }
  for (const [index, { key }] of places.entries()) await bench.holds(stores[index]!, key, `value ${index}`);
  await stores[0]!.remove(places[0]!.key);
  for (const [index, { key }] of places.entries()) {
    await bench.holds(stores[index]!, key, index === 0 ? undefined : `value ${index}`);
  }
}

async function closedStoreFails(bench: Bench): Promise<void> {
  const store = await bench.open();
  await bench.put(store, 'key', 'value');
  if (!(await bench.closes(store))) return;
  await bench.refuses(() => store.read('key'), 'closed', 'read after close');
  await bench.refuses(() => store.write('key', bytes(''), { ttlMs: minute }), 'closed', 'write after close');
  await bench.refuses(() => store.remove('key'), 'closed', 'remove after close');
  await bench.closes(store);
}

async function historiesAreLinearizable(bench: Bench, histories: number, firstSeed: number): Promise<void> {
  const clients = await bench.clients();
  const endSeed = firstSeed + histories;
  let nextSeed = firstSeed;
  // Each history has keys of its own, so they do not affect each other; they run concurrently because most of their time is spent waiting for replies.
  const playSome = async () => {
    while (nextSeed < endSeed) {
      const seed = nextSeed++;
      const verdict = checkLinearizability(await playHistory(clients, seed), storeModel());
      bench.claim(verdict.verdict === 'linearizable', () => `seed ${seed}\n${String(verdict)}`);
    }
  };
  await Promise.all(Array.from({ length: historiesAtOnce }, playSome));
}

const historiesAtOnce = 8;
