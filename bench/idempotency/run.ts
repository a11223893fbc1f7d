/**
 * What an idempotency key costs a server: processor time of its thread per hello POST, compared with the same server without it, with the minimum
 * written by hand, and with two libraries of the field. Records are in memory, or in a private Redis.
 *
 * `node bench/idempotency/run.ts [--rounds=N] [--requests=N] [--processes=N]`, after a build. One server at a time works; ratios are within a round.
 * Each server runs in several processes, which take the rounds in turn, because V8 optimizes the same code differently from process to process: for
 * bare Fastify the difference is a third.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { redisProgram, startRedis } from '../../test/support/servers/redis.ts';
import { quartilesOf } from '../statistics.ts';
import { type Contender, contenders } from './contenders.ts';

const { values } = parseArgs({
  options: { rounds: { type: 'string' }, requests: { type: 'string' }, processes: { type: 'string' } },
});
const rounds = Number(values.rounds ?? 11);
const requests = Number(values.requests ?? 3_000);
const processes = Math.min(rounds, Number(values.processes ?? 4));
const connections = 32;
const body = JSON.stringify({ amount: 250, currency: 'EUR', to: 'kelp and daughters' });

/** `slow`: a fresh key, and a handler that works for 150 microseconds. */
type Mode = 'fresh' | 'replay' | 'no key' | 'slow';
const modes: readonly Mode[] = ['fresh', 'replay', 'no key', 'slow'];
let keys = 0;

interface Cost {
  /** Processor time of the server's thread per request. */
  readonly microseconds: number;
  readonly medianMs: number;
}

class Server {
  private readonly child: ChildProcess;
  private port = 0;

  constructor(name: string, redisPort: number) {
    const program = fileURLToPath(new URL('server.ts', import.meta.url));
    this.child = fork(program, [name, String(redisPort)], { execArgv: ['--no-warnings'] });
  }

  async start(): Promise<void> {
    this.child.once('exit', (code) => {
      // The other processes end with this one.
      if (code !== 0) process.exit(1);
    });
    [this.port] = (await once(this.child, 'message')) as [number];
  }

  async measure(mode: Mode, count = requests): Promise<Cost> {
    const replayed = `replay-${keys++}`;
    const path = mode === 'slow' ? '/slow' : '/';
    if (mode === 'replay') await drive(this.port, path, 1, () => replayed);
    await this.spent();
    const waits = await drive(this.port, path, count, () =>
      mode === 'no key' ? undefined : mode === 'replay' ? replayed : `key-${keys++}`,
    );
    return { microseconds: (await this.spent()) / count, medianMs: quartilesOf(waits).median };
  }

  end(): void {
    this.child.disconnect();
  }

  private async spent(): Promise<number> {
    this.child.send('spent');
    const [microseconds] = (await once(this.child, 'message')) as [number];
    return microseconds;
  }
}

/** Sends requests over several connections, one at a time on each, and measures how long each took. */
async function drive(port: number, path: string, count: number, key: () => string | undefined): Promise<number[]> {
  const waits: number[] = [];
  let left = count;
  const one = () =>
    new Promise<void>((resolve, reject) => {
      const socket = connect(port, '127.0.0.1').setNoDelay(true);
      let sentMs = 0;
      const next = () => {
        if (left-- <= 0) {
          socket.destroy();
          return resolve();
        }
        const name = key();
        const line = name === undefined ? '' : `Idempotency-Key: ${name}\r\n`;
        const head = `POST ${path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n${line}Content-Length: ${body.length}\r\n\r\n`;
        sentMs = performance.now();
        socket.write(head + body);
      };
      let answer = '';
      socket.on('connect', next).on('error', reject);
      socket.on('data', (bytes) => {
        answer += bytes.toString('latin1');
        if (!answer.endsWith('}')) return;
        if (!answer.includes('"hello":"world"')) return reject(new Error(`unexpected answer: ${answer}`));
        answer = '';
        waits.push(performance.now() - sentMs);
        next();
      });
    });
  await Promise.all(Array.from({ length: Math.min(connections, count) }, one));
  return waits;
}

const program = await redisProgram();
const redis = program && (await startRedis(program));
const isOnRedis = ({ kind }: Contender) => kind.endsWith('on Redis');
const measured = contenders.filter((one) => redis !== undefined || !isOnRedis(one));
/** Leaves out contenders that are not worth a row in a mode. */
const takesPart = (one: Contender, mode: Mode) =>
  mode === 'slow' ? one.kind === 'bare' || one.kind === 'holdfast' : mode !== 'no key' || !isOnRedis(one);

const servers = new Map<string, Server[]>();
for (const { name } of measured)
  servers.set(
    name,
    Array.from({ length: processes }, () => new Server(name, redis?.port ?? 0)),
  );
await Promise.all([...servers.values()].flat().map((server) => server.start()));
// Excludes the work of the compiler, which continues for some thousand requests. Only contenders whose cost grows with each record are warmed up
// less.
for (const mode of modes) {
  for (const one of measured) {
    const isShort = mode === 'slow' || one.kind === 'express-idempotency';
    const count = isShort ? 2 * requests : Math.max(2 * requests, 8_000);
    if (!takesPart(one, mode)) continue;
    for (const server of servers.get(one.name)!) await server.measure(mode, count);
  }
}

/** Commands that the store sends. A script counts as one; the commands that it calls do not count. */
async function commands(): Promise<number> {
  return Number(/cmdstat_evalsha:calls=(\d+)/.exec((await redis?.ask('INFO commandstats')) ?? '')?.[1] ?? 0);
}

interface Result {
  readonly added: number[];
  readonly ratio: number[];
  readonly addedMs: number[];
  readonly commands: number[];
}

const results = new Map<string, Result>();
for (let round = 0; round < rounds; round++) {
  for (const mode of modes) {
    const costs = new Map<string, Cost>();
    for (const one of measured.filter((candidate) => takesPart(candidate, mode))) {
      const before = one.kind === 'holdfast on Redis' ? await commands() : 0;
      const cost = await servers.get(one.name)![round % processes]!.measure(mode);
      const asked = one.kind === 'holdfast on Redis' ? (await commands()) - before : 0;
      costs.set(one.name, cost);
      const bare = costs.get(`${one.framework} bare`)!;
      const result = results.get(`${mode} ${one.name}`) ?? { added: [], ratio: [], addedMs: [], commands: [] };
      results.set(`${mode} ${one.name}`, result);
      result.added.push(cost.microseconds - bare.microseconds);
      result.ratio.push(cost.microseconds / bare.microseconds);
      result.addedMs.push(cost.medianMs - bare.medianMs);
      result.commands.push(asked / requests);
    }
  }
}
for (const server of [...servers.values()].flat()) server.end();

/** The cost of a fresh key among 50,000 others, relative to its cost among 10,000. */
async function growth(name: string): Promise<number> {
  const server = new Server(name, 0);
  await server.start();
  const chunk = 2_500;
  const costs: number[] = [];
  for (let known = 0; known < 52_500; known += chunk) costs.push((await server.measure('fresh', chunk)).microseconds);
  server.end();
  const near = (thousands: number) =>
    quartilesOf(costs.slice((thousands * 1_000) / chunk - 2, (thousands * 1_000) / chunk + 1)).median;
  return near(50) / near(10);
}
const grown = new Map<string, number[]>();
for (const framework of ['express', 'fastify']) {
  const ratios: number[] = [];
  for (let round = 0; round < Math.ceil(rounds / 4); round++) ratios.push(await growth(`${framework} holdfast`));
  grown.set(framework, ratios);
}
await redis?.dispose();

const show = (samples: readonly number[], digits: number) => {
  const { p25, median, p75 } = quartilesOf(samples);
  return `${median.toFixed(digits)} (${p25.toFixed(digits)} to ${p75.toFixed(digits)})`;
};
console.log(
  `Node ${process.version}, ${rounds} rounds of ${requests} requests over ${connections} connections, each server in ${processes} processes; medians and quartiles\n`,
);
console.log('| server | requests | µs added | times the bare server |\n|---|---|---|---|');
for (const mode of modes) {
  for (const one of measured) {
    if (one.kind === 'bare' || !takesPart(one, mode)) continue;
    const { added, ratio } = results.get(`${mode} ${one.name}`)!;
    console.log(`| ${one.name} | ${mode} | ${show(added, 1)} | ${show(ratio, 2)} |`);
  }
}
for (const framework of ['express', 'fastify'] as const) {
  const { addedMs, commands } = results.get(`fresh ${framework} holdfast on Redis`) ?? { addedMs: [], commands: [] };
  if (addedMs.length > 0) {
    console.log(
      `\n${framework} on Redis: ${show(commands, 2)} commands per fresh key, ${show(addedMs, 2)} ms added at the median`,
    );
  }
  console.log(
    `\n${framework} in memory: a key among 50,000 costs ${show(grown.get(framework)!, 2)} times one among 10,000`,
  );
}
