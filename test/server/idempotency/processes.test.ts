/** Servers in processes of their own, on one file: killed in the middle, frozen, and all at once. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { esbuildLowering } from '../../../tools/lowering.ts';
import { temporaryDatabase } from '../../stores/sqlite-files.js';
import { headerOf, type RawAnswer, send } from './raw-client.js';
import type { Death } from './shop-child.js';

const folder = mkdtempSync(join(tmpdir(), 'holdfast-shop-'));
const program = join(folder, 'child.cjs');
const leaseMs = 1_000;
const patienceMs = 60_000;

beforeAll(
  () =>
    build({
      ...{ entryPoints: [fileURLToPath(new URL('shop-child.ts', import.meta.url))], outfile: program },
      ...{ bundle: true, format: 'cjs', platform: 'node', logLevel: 'error', plugins: [esbuildLowering] },
    }),
  120_000,
);

afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Shop {
  readonly child: ChildProcess;
  readonly port: number;
}

/** A file and the processes on it, gone at the end of the block. */
class Town implements AsyncDisposable {
  readonly file = temporaryDatabase();
  private readonly children: ChildProcess[] = [];

  async open(framework: string, onLost: string): Promise<Shop> {
    const given = [this.file.path, framework, onLost, `${leaseMs}ms`];
    const child = fork(program, given, { execArgv: ['--no-warnings'] });
    this.children.push(child);
    const [port] = (await once(child, 'message')) as [number];
    return { child, port };
  }

  effects(): { key: string; attempt: number }[] {
    const db = new DatabaseSync(this.file.path);
    try {
      return db.prepare('SELECT key, attempt FROM effects').all() as { key: string; attempt: number }[];
    } finally {
      db.close();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.children) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const gone = once(child, 'exit');
      child.kill('SIGKILL');
      await gone;
    }
    this.file[Symbol.dispose]();
  }
}

function order(
  { port }: Shop,
  key: string,
  { die, pauseMs }: { die?: Death; pauseMs?: number } = {},
): Promise<RawAnswer> {
  const headers = [['Idempotency-Key', key] as const];
  const told = [die && (['X-Die', die] as const), pauseMs && (['X-Pause', String(pauseMs)] as const)];
  return send(port, { path: '/orders', headers: [...headers, ...told.filter((one) => typeof one === 'object')] });
}

/** Asks until it is not told that the order is under way. */
async function untilDecided(shop: Shop, key: string): Promise<{ answer: RawAnswer; tookMs: number }> {
  const beganMs = performance.now();
  for (;;) {
    const answer = await order(shop, key);
    const type = answer.status === 409 ? String(JSON.parse(answer.body.toString()).type) : '';
    if (!type.endsWith('in-progress')) return { answer, tookMs: performance.now() - beganMs };
    await sleep(50);
  }
}

describe.concurrent.each(['express', 'fastify'])('with %s, a server that is killed', (framework) => {
  /** What the next request finds, and how often the effect may then have been done. */
  const fates: [onLost: string, die: Death, status: number, effects: number][] = [
    ['rerun', 'before-effect', 201, 1],
    ['rerun', 'after-effect', 201, 2],
    ['rerun', 'storing', 201, 2],
    ['rerun', 'stored', 201, 1],
    ['rerun', 'answered', 201, 1],
    ['refuse', 'before-effect', 409, 0],
    ['refuse', 'after-effect', 409, 1],
    ['refuse', 'storing', 409, 1],
    ['refuse', 'stored', 201, 1],
    ['refuse', 'answered', 201, 1],
    ['resume', 'before-effect', 201, 1],
    ['resume', 'after-effect', 201, 2],
    ['resume', 'stored', 201, 1],
  ];

  it.each(fates)(
    'in mode %s, %s, answers %i in the end, and has had %i effects',
    async (onLost, die, status, count) => {
      await using town = new Town();
      const shops = [await town.open(framework, onLost), await town.open(framework, onLost)] as const;
      const gone = once(shops[0].child, 'exit');
      await order(shops[0], 'k', { die });
      await gone;
      const { answer, tookMs } = await untilDecided(shops[1], 'k');
      expect(answer.status).toBe(status);
      expect(town.effects()).toHaveLength(count);
      if (status === 409) expect(JSON.parse(answer.body.toString()).type).toMatch(/outcome-unknown$/);
      else expect(headerOf(await order(shops[1], 'k'), 'idempotent-replayed')).toBe('true');
      // One lease, and what a loaded machine needs.
      expect(tookMs).toBeLessThan(leaseMs + 5_000);
      expect(town.effects()).toHaveLength(count);
    },
    patienceMs,
  );
});

describe.concurrent.each(['express', 'fastify'])('with %s, four servers', (framework) => {
  it(
    'let one of a hundred equal requests run',
    async () => {
      await using town = new Town();
      const shops = await Promise.all(Array.from({ length: 4 }, () => town.open(framework, 'refuse')));
      const answers = await Promise.all(
        Array.from({ length: 100 }, (_, index) => order(shops[index % 4]!, 'k', { pauseMs: 200 })),
      );
      expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([201, 409]));
      expect(town.effects()).toEqual([{ key: 'k', attempt: 1 }]);
      const again = await Promise.all(shops.map((shop) => order(shop, 'k')));
      expect(again.map(({ status, body }) => [status, body.toString()])).toEqual(shops.map(() => [201, '{"order":1}']));
    },
    patienceMs,
  );
});

describe.concurrent('a server that is frozen past its lease', () => {
  it(
    'has had the only effect when it wakes, where the mode is refuse',
    async () => {
      await using town = new Town();
      const shops = [await town.open('express', 'refuse'), await town.open('express', 'refuse')] as const;
      const working = once(shops[0].child, 'message');
      const first = order(shops[0], 'k', { pauseMs: 3_000 });
      await working;
      shops[0].child.kill('SIGSTOP');
      const { answer } = await untilDecided(shops[1], 'k');
      shops[0].child.kill('SIGCONT');
      await first;
      expect(answer.status).toBe(409);
      expect(town.effects()).toHaveLength(1);
      expect((await order(shops[1], 'k')).status).toBe(409);
    },
    patienceMs,
  );

  it(
    'does not take the place of the answer that was given meanwhile, where the mode is rerun',
    async () => {
      await using town = new Town();
      const shops = [await town.open('fastify', 'rerun'), await town.open('fastify', 'rerun')] as const;
      const working = once(shops[0].child, 'message');
      const first = order(shops[0], 'k', { pauseMs: 3_000 });
      await working;
      shops[0].child.kill('SIGSTOP');
      const { answer } = await untilDecided(shops[1], 'k');
      shops[0].child.kill('SIGCONT');
      await first;
      expect([answer.status, answer.body.toString()]).toEqual([201, '{"order":2}']);
      expect((await order(shops[0], 'k')).body.toString()).toBe('{"order":2}');
    },
    patienceMs,
  );
});
