/** A town of shops: servers in separate processes that keep their records in one file or on one server. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { afterAll, beforeAll } from 'vitest';
import { esbuildLowering } from '../../../tools/lowering.ts';
import { temporaryDatabase } from '../../stores/sqlite-files.js';
import { temporaryFolder } from '../../support/temporary-folder.ts';
import { unsynced } from '../../support/unsynced.js';
import { type RawAnswer, send } from './raw-client.js';
import type { Death } from './shop-child.js';

const leaseMs = 1_000;
/** How long a key may be blocked: for one lease, plus an allowance for a loaded machine. */
export const mostBlockedMs = leaseMs + 30_000;

const folder = temporaryFolder('shop');
const program = join(folder, 'child.cjs');

/** Prepares the test file that calls it: the program of the shops exists while its tests run. */
export function withShops(): void {
  beforeAll(() =>
    build({
      ...{ entryPoints: [fileURLToPath(new URL('shop-child.ts', import.meta.url))], outfile: program },
      ...{ bundle: true, format: 'cjs', platform: 'node', logLevel: 'error', plugins: [esbuildLowering] },
      external: ['pg-native'],
    }),
  );
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
}

export interface Shop {
  readonly child: ChildProcess;
  readonly port: number;
}

/** A file and the processes that use it, which are gone at the end of the block. Records may be elsewhere: `redis:<port>`, `postgres:<port>`. */
export class Town implements AsyncDisposable {
  readonly file = temporaryDatabase();
  private readonly records: string;
  private readonly children: ChildProcess[] = [];

  constructor(records = 'sqlite') {
    this.records = records;
  }

  async open(framework: string, onLost: string, lease = `${leaseMs}ms`): Promise<Shop> {
    const given = [this.file.path, framework, onLost, lease, this.records];
    const child = fork(program, given, { execArgv: ['--no-warnings'] });
    this.children.push(child);
    const [port] = (await once(child, 'message')) as [number];
    return { child, port };
  }

  effects(key?: string): { key: string; attempt: number }[] {
    using db = unsynced(this.file.path);
    const all = db.prepare('SELECT key, attempt FROM effects').all() as { key: string; attempt: number }[];
    return key === undefined ? all : all.filter((effect) => effect.key === key);
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

export function order(
  { port }: Shop,
  key: string,
  { die, diesAt, pauseMs, signal }: { die?: Death; diesAt?: number; pauseMs?: number; signal?: AbortSignal } = {},
): Promise<RawAnswer> {
  const told: [name: string, value: string][] = [['Idempotency-Key', key]];
  if (die !== undefined) told.push(['X-Die', die]);
  if (diesAt !== undefined) told.push(['X-Dies-At', String(diesAt)]);
  if (pauseMs !== undefined) told.push(['X-Pause', String(pauseMs)]);
  return send(port, { path: '/orders', headers: told }, signal);
}

/** Asks until the answer is no longer that the order is in progress. */
export async function untilDecided(shop: Shop, key: string): Promise<{ answer: RawAnswer; tookMs: number }> {
  const beganMs = performance.now();
  for (;;) {
    const answer = await order(shop, key);
    const type = answer.status === 409 ? String(JSON.parse(answer.body.toString()).type) : '';
    if (!type.endsWith('in-progress')) return { answer, tookMs: performance.now() - beganMs };
    await sleep(50);
  }
}
