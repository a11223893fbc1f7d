/** The caches of several real processes before SQLite and Redis, killed, frozen, and cut off from news of changes. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { postgresStore } from '../../../src/stores/postgres.js';
import { esbuildLowering } from '../../../tools/lowering.ts';
import { drivers } from '../../stores/postgres-clients.ts';
import { median } from '../../support/median.ts';
import { postgresHome, startPostgres } from '../../support/servers/postgres.ts';
import { redisProgram, startRedis } from '../../support/servers/redis.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';
import { temporaryFolder } from '../../support/temporary-folder.ts';
import type { ChildSettings, Order, Told } from './process-child.ts';

const folder = temporaryFolder('cache');
const program = join(folder, 'child.cjs');
const redis = await redisProgram();
const home = postgresHome();
const children: Child[] = [];
let files = 0;
/** `npm run worlds` plays the twenty that were promised. */
const trials = process.env.HOLDFAST_WORLDS === undefined ? 6 : 20;

beforeAll(() =>
  build({
    ...{ entryPoints: [fileURLToPath(new URL('process-child.ts', import.meta.url))], outfile: program },
    ...{ bundle: true, format: 'cjs', platform: 'node', logLevel: 'error', plugins: [esbuildLowering] },
  }),
);

afterEach(async () => {
  for (const child of children.splice(0)) await child.kill();
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

type Given = Order extends infer One ? (One extends Order ? Omit<One, 'id'> : never) : never;

class Child {
  readonly process: ChildProcess;
  readonly loading: string[] = [];
  private readonly waiting = new Map<number, (told: Told) => void>();
  private orders = 0;

  constructor(settings: ChildSettings) {
    this.process = fork(program, [JSON.stringify(settings)], { execArgv: ['--no-warnings'] });
    this.process.on('message', (told: Told) => {
      if (told.kind === 'loading') this.loading.push(told.key);
      else this.waiting.get(told.id)?.(told);
    });
    children.push(this);
  }

  async ask(order: Given): Promise<Extract<Told, { kind: 'done' }>> {
    const id = ++this.orders;
    const told = new Promise<Told>((resolve) => this.waiting.set(id, resolve));
    this.process.send({ ...order, id });
    const answer = await told;
    if (answer.kind !== 'done') throw new Error(JSON.stringify(answer));
    return answer;
  }

  async get(key: string, { callers = 1, loadMs = 20 } = {}): Promise<string> {
    const { values } = await this.ask({ verb: 'get', key, callers, loadMs });
    return values.join(' and ');
  }

  async kill(): Promise<void> {
    const { process } = this;
    if (process.exitCode !== null || process.signalCode !== null) return;
    const gone = once(process, 'exit');
    process.kill('SIGKILL');
    await gone;
  }
}

const loadsOf = (all: readonly Child[], key: string) =>
  all.reduce((sum, { loading }) => sum + loading.filter((one) => one === key).length, 0);

function start(count: number, settings: Pick<ChildSettings, 'place' | 'subscribes'> & Partial<ChildSettings>) {
  const source = join(folder, `source-${++files}`);
  const change = (value: string) => writeFileSync(source, value);
  change('old');
  const common = { source, patience: 'long', lease: 10_000 } as const;
  const all = Array.from({ length: count }, () => new Child({ ...common, ...settings }));
  return { all, change };
}

interface Kind {
  readonly title: string;
  readonly isThere: boolean;
  readonly subscribes: boolean;
  /** Starts the servers and processes that the test needs. */
  start?(): Promise<ServerProcess>;
  place(server: ServerProcess | undefined): ChildSettings['place'];
}

const kinds: readonly Kind[] = [
  { title: 'SQLite', isThere: true, subscribes: false, place: () => join(folder, `store-${++files}.db`) },
  ...[true, false].map((subscribes) => ({
    title: `Redis ${subscribes ? 'with' : 'without'} a subscriber`,
    start: () => startRedis(redis!),
    ...{ isThere: redis !== undefined, subscribes, place: (server: ServerProcess | undefined) => server!.port },
  })),
  {
    title: 'Postgres',
    isThere: home !== undefined,
    subscribes: true,
    async start() {
      const server = await startPostgres(home!);
      const connection = drivers[0]!.connect(server.port, 1);
      await postgresStore(connection.pool).migrate();
      await connection.close();
      return server;
    },
    place: (server) => ({ postgres: server!.port }),
  },
];

for (const kind of kinds) {
  describe.skipIf(!kind.isThere)(`cache of eight processes before ${kind.title}`, () => {
    let server: ServerProcess | undefined;
    beforeEach(async () => {
      server = await kind.start?.();
    });
    afterEach(() => server?.dispose());

    it('loads a cold key once for 200 callers each, every time', async () => {
      const { all } = start(8, { place: kind.place(server), subscribes: kind.subscribes });
      await Promise.all(all.map((child) => child.get('warm')));
      for (let trial = 1; trial <= trials; trial++) {
        const key = `key ${trial}`;
        const values = await Promise.all(all.map((child) => child.get(key, { callers: 200, loadMs: 50 })));
        expect(new Set(values)).toEqual(new Set(['old']));
        expect(loadsOf(all, key), key).toBe(1);
      }
    });

    it('loads once more when the loading process is killed', async () => {
      const lease = 1_500;
      const { all } = start(4, { place: kind.place(server), subscribes: kind.subscribes, lease });
      await Promise.all(all.map((child) => child.get('warm')));
      const answers = all.map((child) => child.get('key', { callers: 20, loadMs: 600 }).catch(() => 'killed'));
      await expect.poll(() => loadsOf(all, 'key'), { interval: 5 }).toBe(1);
      const holder = all.findIndex(({ loading }) => loading.includes('key'));
      await all[holder]!.kill();
      const values = await Promise.all(answers.filter((_, index) => index !== holder));
      expect(new Set(values)).toEqual(new Set(['old']));
      expect(loadsOf(all, 'key')).toBe(2);
    });

    it('keeps the new value everywhere when the loading process was frozen while it was set', {
      timeout: 60_000,
    }, async () => {
      const { all, change } = start(3, { place: kind.place(server), subscribes: kind.subscribes, lease: 1_000 });
      const [holder, ...others] = all as [Child, Child, Child];
      await Promise.all(all.map((child) => child.get('warm')));
      const late = holder.get('key', { loadMs: 200 });
      await expect.poll(() => loadsOf(all, 'key'), { interval: 5 }).toBe(1);
      holder.process.kill('SIGSTOP');
      change('new');
      await others[0].ask({ verb: 'delete', key: 'key' });
      expect(await Promise.all(others.map((child) => child.get('key')))).toEqual(['new', 'new']);
      holder.process.kill('SIGCONT');
      await late;
      expect(await Promise.all(all.map((child) => child.get('key')))).toEqual(['new', 'new', 'new']);
    });
  });
}

describe.skipIf(redis === undefined)('cache before Redis', () => {
  let server: ServerProcess;
  beforeEach(async () => {
    server = await startRedis(redis!);
  });
  afterEach(() => server.dispose());

  const shown = (all: readonly Child[]) => Promise.all(all.map((child) => child.get('key')));
  /** Far less than the 30 s for which a copy in memory may live without a look at the store. */
  const soon = { interval: 20 };

  it('shows a change in all processes as soon as it is reported', async () => {
    const { all, change } = start(3, { place: server.port, subscribes: true });
    expect(await shown(all)).toEqual(['old', 'old', 'old']);
    change('new');
    await all[0]!.ask({ verb: 'delete', key: 'key' });
    await expect.poll(() => shown(all), soon).toEqual(['new', 'new', 'new']);
  });

  it('reads again after the connection for notices was lost', async () => {
    const { all, change } = start(3, { place: server.port, subscribes: true });
    for (let looks = 0; looks < 3; looks++) expect(await shown(all)).toEqual(['old', 'old', 'old']);
    change('new');
    // Both happen in one transaction, so that nobody is connected when the change is made.
    await server.ask('CLIENT KILL TYPE pubsub');
    await all[0]!.ask({ verb: 'delete', key: 'key' });
    await expect.poll(() => shown(all), soon).toEqual(['new', 'new', 'new']);
  });

  it.each(['frozen', 'killed'] as const)(
    'writes a deletion that a %s Redis did not accept when it is back, for all processes',
    async (how) => {
      const settings = { place: server.port, subscribes: true, patience: 'default', onStoreDown: 'replay' } as const;
      const { all, change } = start(2, settings);
      for (let looks = 0; looks < 2; looks++) expect(await shown(all)).toEqual(['old', 'old']);
      if (how === 'frozen') server.freeze();
      else {
        // The old value comes back with the server.
        await server.ask('SAVE');
        await server.kill();
      }
      change('new');
      await all[0]!.ask({ verb: 'delete', key: 'key' });
      expect(await all[0]!.get('key')).toBe('new');
      if (how === 'frozen') server.wake();
      else await server.start();
      await expect.poll(() => shown(all), soon).toEqual(['new', 'new']);
    },
  );

  it.each(['frozen', 'killed'] as const)(
    'costs the first calls little and the others nothing when Redis is %s',
    async (how) => {
      const { all } = start(1, { place: server.port, subscribes: true, patience: 'default' });
      const [child] = all as [Child];
      const loadMs = 50;
      const took = async (key: string) => (await child.ask({ verb: 'get', key, callers: 10, loadMs })).tookMs;
      await took('warm');
      if (how === 'frozen') server.freeze();
      else await server.dispose();
      const first: number[] = [];
      for (let call = 0; call < 3; call++) first.push(await took(`first ${call}`));
      const later: number[] = [];
      for (let call = 0; call < 10; call++) later.push(await took(`later ${call}`));
      // The first calls pay half a second instead of the 10 s of the store itself, and the others do not pay it.
      expect(median(first)).toBeLessThan(loadMs + 5_000);
      // At least half of them do not wait for the store at all.
      expect(median(later)).toBeLessThan(loadMs + 450);
      await took('later 0');
      expect(loadsOf(all, 'later 0')).toBe(1);
      if (how === 'frozen') server.wake();
    },
  );
});
