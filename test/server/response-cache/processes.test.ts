/** The response caches of two real processes before Redis. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { esbuildLowering } from '../../../tools/lowering.ts';
import { redisProgram, startRedis } from '../../support/servers/redis.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';
import { temporaryFolder } from '../../support/temporary-folder.ts';
import { send } from '../idempotency/raw-client.js';
import { statusOf } from './support.ts';

const folder = temporaryFolder('responses');
const program = join(folder, 'child.mjs');
const redis = await redisProgram();
const children: ChildProcess[] = [];

beforeAll(() =>
  build({
    ...{ entryPoints: [fileURLToPath(new URL('process-child.ts', import.meta.url))], outfile: program },
    ...{ bundle: true, format: 'esm', platform: 'node', logLevel: 'error', plugins: [esbuildLowering] },
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  }),
);

afterEach(async () => {
  for (const child of children.splice(0)) {
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.skipIf(redis === undefined)('responseCache of two processes before Redis', () => {
  let server: ServerProcess;
  beforeEach(async () => {
    server = await startRedis(redis!);
  });
  afterEach(() => server.dispose());

  async function start(framework: 'express' | 'fastify') {
    const child = fork(program, [framework, `${server.port}`], { execArgv: ['--no-warnings'] });
    children.push(child);
    const [port] = (await once(child, 'message')) as [number];
    const ask = async (order: string) => {
      const answer = once(child, 'message');
      child.send(order);
      return ((await answer) as [number])[0];
    };
    return { get: () => send(port, { method: 'GET', path: '/page' }), ask };
  }

  it('runs one handler for all clients of both, also after a change', async () => {
    const both = await Promise.all([start('express'), start('fastify')]);
    const all = () => Promise.all(Array.from({ length: 100 }, (_, index) => both[index % 2]!.get()));
    const runs = async () => (await Promise.all(both.map(({ ask }) => ask('runs')))).reduce((sum, one) => sum + one);
    const first = await all();
    expect(new Set(first.map(({ body }) => body.toString())).size).toBe(1);
    expect(await runs()).toBe(1);
    await both[1].ask('invalidate');
    const second = await all();
    expect(new Set(second.map(({ body }) => body.toString())).size).toBe(1);
    expect(second[0]!.body).not.toEqual(first[0]!.body);
    expect(await runs()).toBe(2);
    expect((await Promise.all(both.map(({ get }) => get()))).map(statusOf)).toEqual([
      ...[expect.stringContaining('; hit'), expect.stringContaining('; hit')],
    ]);
  });

  it('continues to answer while Redis is frozen', async () => {
    const one = await start('express');
    const { body } = await one.get();
    // By then it hears of changes, and its copy in memory needs no look at the store.
    for (let look = 0; look < 3; look++) expect((await one.get()).body).toEqual(body);
    server.freeze();
    expect((await one.get()).body).toEqual(body);
    server.wake();
    expect((await one.get()).body).toEqual(body);
  });
});
