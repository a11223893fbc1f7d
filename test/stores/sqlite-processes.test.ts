/** Several processes on one file, some of which are killed. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { type Store, StoreError } from 'holdfast';
import { seededRandom, storeConformance } from 'holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { sqliteStore } from '../../src/stores/sqlite.js';
import { esbuildLowering } from '../../tools/lowering.ts';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { temporaryFolder } from '../support/temporary-folder.ts';
import type { Asked } from './sqlite-child.ts';
import { nodeSqlite, temporaryDatabase } from './sqlite-files.ts';

const folder = temporaryFolder('sqlite-child');
const program = join(folder, 'child.mjs');
const children = new Set<ChildProcess>();

beforeAll(() =>
  build({
    ...{ entryPoints: [fileURLToPath(new URL('sqlite-child.ts', import.meta.url))], outfile: program },
    ...{ bundle: true, format: 'esm', platform: 'node', logLevel: 'error', plugins: [esbuildLowering] },
  }),
);

afterAll(async () => {
  for (const child of children) await kill(child);
  rmSync(folder, { recursive: true, force: true });
});

function start(path: string, mode: 'loop' | 'serve'): ChildProcess {
  const child = fork(program, [path, mode], { execArgv: ['--no-warnings'] });
  children.add(child);
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  children.delete(child);
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill('SIGKILL');
  await gone;
}

/** A store whose verbs are carried out by another process. */
function remote(child: ChildProcess, prefix: string): Store {
  const waiting = new Map<number, { resolve: (result: never) => void; reject: (error: Error) => void }>();
  child.setMaxListeners(0);
  child.on('message', ({ id, result, error }: { id: number; result: never; error?: string }) => {
    if (error === undefined) waiting.get(id)?.resolve(result);
    else waiting.get(id)?.reject(new Error(error));
    waiting.delete(id);
  });
  child.once('exit', () => {
    for (const { reject } of waiting.values()) reject(killed());
    waiting.clear();
  });
  const ask = <T>(asked: Omit<Asked, 'id'>): Promise<T> =>
    new Promise((resolve, reject) => {
      const id = nextId++;
      if (!child.connected) return reject(killed());
      waiting.set(id, { resolve, reject });
      child.send({ ...asked, id, key: `${prefix} ${asked.key}` }, () => {});
    });
  type Shown = { value: string; version: number } | undefined;
  const entry = (shown: Shown) =>
    shown && { value: Buffer.from(shown.value, 'hex'), version: shown.version, ageMs: 0, ttlMs: 1 };
  return {
    read: async (key) => entry(await ask<Shown>({ verb: 'read', key })),
    async write(key, value, { ifVersion }) {
      const condition = ifVersion === undefined ? {} : { ifVersion };
      type Answer = { ok: true; version: number } | { ok: false; entry: Shown };
      const answer = await ask<Answer>({ verb: 'write', key, value: Buffer.from(value).toString('hex'), ...condition });
      return answer.ok ? answer : { ok: false, entry: entry(answer.entry) };
    },
    remove: (key, { ifVersion } = {}) =>
      ask({ verb: 'remove', key, ...(ifVersion === undefined ? {} : { ifVersion }) }),
  };
}

/** The process may have done what it had begun. */
function killed(): StoreError {
  const detail = 'the process that did it was killed';
  return new StoreError({ store: 'sqlite', operation: 'write', reason: 'failed', applied: 'unknown', detail });
}

let nextId = 0;

describe('sqliteStore, shared by four processes, keeps', () => {
  const file = temporaryDatabase();
  const servers: ChildProcess[] = [];
  let opened = 0;
  beforeAll(() => {
    for (let count = 0; count < 4; count++) servers.push(start(file.path, 'serve'));
  });
  afterAll(async () => {
    for (const child of servers) await kill(child);
    file[Symbol.dispose]();
  });

  const cases = storeConformance({
    entries: 'shared',
    make: ({ prefix }) => remote(servers[opened++ % servers.length]!, prefix),
    histories: historyCount(200),
    seed: firstSeed,
  });
  const concurrent = cases.filter(({ name }) => /concurrent/.test(name));

  it.each(concurrent)('$name', async ({ run }) => run(), historiesTimeoutMs);

  it('two laws about concurrency, at least', () => {
    expect(concurrent.map(({ law }) => law)).toEqual([2, 9]);
  });
});

describe('sqliteStore, shared by processes that are killed and replaced, keeps', () => {
  const file = temporaryDatabase();
  const servers: ChildProcess[] = [];
  let kills = 0;
  let ends = false;
  afterAll(async () => {
    for (const child of servers) await kill(child);
    file[Symbol.dispose]();
  });

  /** The process that is alive carries it out. */
  const made = new WeakMap<ChildProcess, Store>();
  const survivor = (index: number, prefix: string): Store => {
    const child = servers[index % servers.length]!;
    let store = made.get(child);
    if (store === undefined) {
      store = remote(child, prefix);
      made.set(child, store);
    }
    return store;
  };
  let opened = 0;
  const cases = storeConformance({
    entries: 'shared',
    make({ prefix }) {
      const index = opened++;
      return {
        read: (key) => survivor(index, prefix).read(key),
        write: (key, value, options) => survivor(index, prefix).write(key, value, options),
        remove: (key, options) => survivor(index, prefix).remove(key, options),
      };
    },
    histories: historyCount(100),
    seed: firstSeed,
  });
  const [histories] = cases.filter(({ law }) => law === 9);

  it(
    histories!.name,
    async () => {
      for (let count = 0; count < 4; count++) servers.push(start(file.path, 'serve'));
      const random = seededRandom(firstSeed);
      const killing = (async () => {
        while (!ends) {
          await sleep(random.integer(50, 300));
          const index = random.integer(0, servers.length - 1);
          const old = servers[index]!;
          servers[index] = start(file.path, 'serve');
          await kill(old);
          kills++;
        }
      })();
      await histories!.run().finally(() => {
        ends = true;
      });
      await killing;
      expect(kills).toBeGreaterThan(0);
    },
    historiesTimeoutMs,
  );
});

describe('sqliteStore, after a writer was killed,', () => {
  it('opens, holds nothing half-written, and goes on above every version that was given', async () => {
    using file = temporaryDatabase();
    let last = 0;
    for (let round = 0; round < 5; round++) {
      const child = start(file.path, 'loop');
      let given = 0;
      const enough = new Promise<string>((resolve) => {
        let messages = 0;
        child.on('message', (version) => {
          given = version as number;
          if (++messages === 20 + round * 7) resolve('has written');
        });
      });
      const failed = once(child, 'exit').then(() => 'ended by itself');
      expect(await Promise.race([enough, failed])).toBe('has written');
      await kill(child);
      expect(given).toBeGreaterThan(last);

      const db = nodeSqlite.open(file.path);
      const store = sqliteStore(db);
      expect(db.prepare('PRAGMA integrity_check').all()).toEqual([{ integrity_check: 'ok' }]);
      const [entry, left, right] = await Promise.all(['key', 'left', 'right'].map((key) => store.read(key)));
      expect(entry!.version).toBeGreaterThanOrEqual(given);
      for (const { value } of [entry!, left!, right!]) {
        expect(value.length).toBe(20_000);
        expect(value.every((byte) => byte === value[0])).toBe(true);
      }
      expect(left!.value[0]).toBe(right!.value[0]);
      const next = await store.write('key', Uint8Array.of(1), { ttlMs: 600_000, ifVersion: entry!.version });
      expect(next.ok && next.version > Math.max(given, right!.version)).toBe(true);
      last = next.ok ? next.version : 0;
      db.close();
    }
  });
});
