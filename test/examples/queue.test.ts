/**
 * The example of the queue, before and after, on a real Redis that has on disk what it has acknowledged. Its processes and Redis are killed or frozen at any
 * time, and continue. The version with holdfast promises that every accepted order is charged once, by a bank that knows its keys. Calls of the bank beyond the
 * first are outside of that promise; they are counted and reported.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { seededRandom } from '../../src/testing/index.js';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';

const program = await redisProgram();

/** A bank that takes its time for each charge. It charges once per key, and again for each call without a key. */
class Bank {
  readonly calls = new Map<string, number>();
  readonly charges = new Map<string, number>();
  private readonly keys = new Set<string>();
  private readonly server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { id } = JSON.parse(Buffer.concat(chunks).toString()) as { id: string };
    this.calls.set(id, (this.calls.get(id) ?? 0) + 1);
    await sleep(20);
    const key = request.headers['idempotency-key'] as string | undefined;
    if (key === undefined || !this.keys.has(key)) this.charges.set(id, (this.charges.get(id) ?? 0) + 1);
    if (key !== undefined) this.keys.add(key);
    await sleep(20);
    response.setHeader('content-type', 'application/json').end(JSON.stringify({ receipt: id }));
  });

  async listen(): Promise<void> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  close(): void {
    this.server.close();
    this.server.closeAllConnections();
  }
}

/** One process of the example. If it is started again under the same name, it has another port. */
class Part {
  private child: ChildProcess | undefined = undefined;
  port = 0;
  private readonly words: readonly [version: string, part: string];
  private readonly env: Record<string, string>;

  constructor(words: readonly [version: string, part: string], env: Record<string, string>) {
    this.words = words;
    this.env = env;
  }

  async start(): Promise<void> {
    const child = spawn(process.execPath, ['run.ts', ...this.words], {
      cwd: new URL('../../examples/queue/', import.meta.url),
      env: { ...process.env, ...this.env, NODE_NO_WARNINGS: '1' },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let said = '';
    child.stderr!.on('data', (data) => {
      said += data;
    });
    this.child = child;
    const [line] = await Promise.race([
      once(child.stdout!, 'data'),
      once(child, 'exit').then(() => Promise.reject(new Error(`the example ended: ${said}`))),
    ]);
    this.port = Number(String(line));
  }

  freeze(): void {
    this.child!.kill('SIGSTOP');
  }

  wake(): void {
    this.child!.kill('SIGCONT');
  }

  async kill(): Promise<void> {
    const { child } = this;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exit = once(child, 'exit');
    child.kill('SIGKILL');
    await exit;
  }
}

/** Asks until it is accepted, as a client does that has lost its answer, with the same key. */
async function order(api: Part, id: string): Promise<void> {
  const endsAtMs = performance.now() + 120_000;
  while (performance.now() < endsAtMs) {
    const response = await fetch(`http://127.0.0.1:${api.port}/orders`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'idempotency-key': `key ${id}` },
      body: JSON.stringify({ id }),
      signal: AbortSignal.timeout(20_000),
    }).catch(() => undefined);
    const status = response?.status;
    await response?.body?.cancel();
    if (status === 202) return;
    if (status !== undefined && status !== 409 && status < 500) throw new Error(`refused with ${status}`);
    await sleep(50);
  }
  throw new Error(`${id} was not accepted within 120 s`);
}

describe.skipIf(program === undefined)('the example of the queue', () => {
  let redis: ServerProcess;
  let bank: Bank;

  beforeAll(async () => {
    redis = await startRedis(program!, [
      '--maxmemory-policy',
      'noeviction',
      '--appendonly',
      'yes',
      '--appendfsync',
      'always',
    ]);
  });
  afterAll(() => redis?.dispose());
  beforeEach(async () => {
    await redis.ask('FLUSHALL');
    bank = new Bank();
    await bank.listen();
    return () => bank.close();
  });

  async function start(version: 'before' | 'after') {
    const env = { REDIS_PORT: `${redis.port}`, BANK_PORT: `${bank.port}` };
    const api = new Part([version, 'api'], env);
    const worker = new Part([version, 'worker'], env);
    await Promise.all([api.start(), worker.start()]);
    return { api, worker };
  }

  const countOf = async (question: string) => {
    const [command, list] = question.split(' ');
    return Number((await redis.ask(`${command} bull:orders:${list}`)).slice(1));
  };
  const total = (counts: ReadonlyMap<string, number>) => [...counts.values()].reduce((sum, count) => sum + count, 0);

  it('before: charges twice whoever clicks twice, and whom its worker had charged when it died', async () => {
    const { api, worker } = await start('before');
    try {
      await Promise.all([order(api, 'click'), order(api, 'click')]);
      await expect.poll(() => bank.charges.get('click')).toBe(2);
      await order(api, 'death');
      await expect.poll(() => bank.charges.get('death'), { interval: 2 }).toBe(1);
      await worker.kill();
      await worker.start();
      await expect.poll(() => bank.charges.get('death')).toBe(2);
    } finally {
      await Promise.all([api.kill(), worker.kill()]);
    }
  });

  const rounds = Number(process.env.HOLDFAST_ROUNDS ?? 6);

  it('after: loses no accepted order and doubles none, wherever its processes and Redis are killed or frozen', {
    timeout: 120_000 + rounds * 20_000,
  }, async () => {
    const seed = Number(process.env.HOLDFAST_SEED ?? 1);
    const random = seededRandom(seed);
    const { api, worker } = await start('after');
    const restart = async (victim: Part | ServerProcess) => {
      await victim.kill();
      await victim.start();
    };
    const freeze = async (victim: Part | ServerProcess, ms: number) => {
      victim.freeze();
      await sleep(ms);
      victim.wake();
    };
    const faults = [
      () => restart(worker),
      () => restart(api),
      () => restart(redis),
      // This is longer than the lease of its job, and longer than BullMQ leaves it the job.
      () => freeze(worker, 3_000),
      () => freeze(redis, 1_000),
      () => freeze(api, 1_000),
    ];
    const ids: string[] = [];
    try {
      for (let round = 0; round < rounds; round++) {
        const mine = Array.from({ length: 5 }, (_, index) => `round ${round}, order ${index}`);
        ids.push(...mine);
        // Each order is sent twice, as by a double click.
        const accepted = Promise.all([...mine, ...mine].map((id) => order(api, id)));
        await sleep(random.integer(0, 120));
        await faults[round % faults.length]!();
        await accepted;
      }
      // A job that has failed several times waits long for its next attempt, but is not lost.
      const left = () => Promise.all(['LLEN wait', 'LLEN active', 'ZCARD delayed'].map(countOf));
      const patience = { timeout: 60_000 + rounds * 3_000, interval: 100 };
      await expect.poll(left, patience).toEqual([0, 0, 0]);
      const missing = ids.filter((id) => !bank.charges.has(id));
      expect(missing, `seed ${seed}`).toEqual([]);
      expect(
        ids.filter((id) => bank.charges.get(id) !== 1),
        `seed ${seed}`,
      ).toEqual([]);
      console.log(
        `queue, seed ${seed}: ${ids.length} orders, ${total(bank.charges)} charges, ${total(bank.calls)} calls of the bank`,
      );
    } finally {
      await Promise.all([api.kill(), worker.kill()]);
    }
  });
});
