/**
 * Contended locks in Redis (P12): how long a hand-over takes, what an idle waiter costs, and how long callers wait when many processes want one key.
 *
 * `node bench/locks.ts` after a build, some five minutes; with the name of a contender for that one alone. Progress goes to stderr, the tables come
 * at the end. Each contender has its own server, and its processes are forks of this file. One contender runs at a time.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { mutex } from 'holdfast';
import { redisStore } from 'holdfast/redis';
import { Redis } from 'ioredis';
import { Mutex } from 'redis-semaphore';
import Redlock from 'redlock';
import { redisProgram, startRedis } from '../test/support/servers/redis.ts';

/** Longer than anything is held here, because redlock does not renew. */
const ttlMs = 60_000;
const key = 'key';

/** Runs a section under the lock. */
type Run = (section: () => Promise<void>) => Promise<void>;

interface Connections {
  connect(): Redis;
  /** Commands sent by all processes. */
  sent(): number;
  close(): void;
}

function connectionsTo(port: number): Connections {
  const all: Redis[] = [];
  let sent = 0;
  return {
    connect() {
      const client = new Redis(port, '127.0.0.1', { autoResendUnfulfilledCommands: false });
      const { sendCommand } = client;
      client.sendCommand = (...command: Parameters<typeof sendCommand>) => {
        sent++;
        return sendCommand.apply(client, command);
      };
      all.push(client);
      return client;
    },
    sent: () => sent,
    close() {
      for (const client of all) client.disconnect();
    },
  };
}

function holdfast(fair: boolean) {
  return ({ connect }: Connections): Run => {
    const store = redisStore(connect(), { subscriber: connect(), timeout: '10s' });
    const locks = mutex({ store, ttl: ttlMs, wait: '10m', fair });
    return (section) => locks.run(key, section);
  };
}

const releaseScript = `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`;

const contenders: Readonly<Record<string, (connections: Connections) => Run>> = {
  holdfast: holdfast(false),
  'holdfast, fair': holdfast(true),
  redlock({ connect }) {
    const redlock = new Redlock([connect()], { retryCount: -1 });
    return async (section) => {
      const lock = await redlock.lock(key, ttlMs);
      await section();
      await lock.unlock();
    };
  },
  'redis-semaphore'({ connect }) {
    const client = connect();
    return async (section) => {
      const lock = new Mutex(client, key, { lockTimeout: ttlMs, acquireTimeout: 600_000 });
      await lock.acquire();
      await section();
      await lock.release();
    };
  },
  'raw, asked every 10 ms'({ connect }) {
    const client = connect();
    let last = 0;
    return async (section) => {
      const owner = `${process.pid} ${++last}`;
      while ((await client.set(key, owner, 'PX', ttlMs, 'NX')) === null) await sleep(10);
      await section();
      await client.eval(releaseScript, 1, key, owner);
    };
  },
};

/** The percentile of sorted values. */
function percentile(values: readonly number[], share: number): number {
  return values[Math.ceil(share * values.length) - 1] ?? Number.NaN;
}

interface Load {
  readonly processes: number;
  /** Callers in all processes. */
  readonly callers: number;
  readonly seconds: number;
  readonly sectionMs: number;
}

/** What a process reports at its end. */
interface Told {
  readonly waitsMs: readonly number[];
  readonly requests: number;
}

async function child(name: string, port: number, callers: number, seconds: number, sectionMs: number): Promise<void> {
  const connections = connectionsTo(port);
  const run = contenders[name]!(connections);
  await run(async () => {});
  process.send!('ready');
  await new Promise((resolve) => process.once('message', resolve));
  const before = connections.sent();
  const endsAtMs = performance.now() + seconds * 1_000;
  const waitsMs: number[] = [];
  let isOver = false;
  const call = async () => {
    while (performance.now() < endsAtMs) {
      const startMs = performance.now();
      await run(async () => {
        if (isOver) return;
        waitsMs.push(performance.now() - startMs);
        if (sectionMs > 0) await sleep(sectionMs);
      });
    }
  };
  const calls = Array.from({ length: callers }, call);
  await sleep(seconds * 1_000);
  isOver = true;
  const told: Told = { waitsMs, requests: connections.sent() - before };
  // The message must be sent completely before the process ends.
  await new Promise((resolve) => process.send!(told, resolve));
  // Remaining waiters must leave the line, or others would wait for them.
  await Promise.race([Promise.all(calls), sleep(5_000)]);
  process.exit();
}

async function contend(name: string, port: number, { processes, callers, seconds, sectionMs }: Load) {
  const args = [name, port, callers / processes, seconds, sectionMs].map(String);
  const children = Array.from({ length: processes }, () => fork(fileURLToPath(import.meta.url), args));
  const next = (one: ChildProcess) => new Promise<unknown>((resolve) => one.once('message', resolve));
  await Promise.all(children.map(next));
  const told = Promise.all(children.map(next)) as Promise<Told[]>;
  for (const one of children) one.send('go');
  const all = await told;
  for (const one of children) one.kill('SIGKILL');
  const waits = all.flatMap(({ waitsMs }) => waitsMs).sort((a, b) => a - b);
  const sections = all.map(({ waitsMs }) => waitsMs.length);
  return {
    perSecond: waits.length / seconds,
    p99Ms: percentile(waits, 0.99),
    longestMs: waits.at(-1) ?? Number.NaN,
    requestsPerSection: all.reduce((sum, { requests }) => sum + requests, 0) / waits.length,
    share: Math.min(...sections) / Math.max(...sections),
  };
}

/** Two clients, one of which waits. Measures from before the release to the start of the other's section. */
async function handOvers(name: string, port: number, rounds: number): Promise<number[]> {
  const [one, other] = [connectionsTo(port), connectionsTo(port)];
  const [first, second] = [contenders[name]!(one), contenders[name]!(other)];
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    let releasedMs = 0;
    let waiting: Promise<void> | undefined;
    await first(async () => {
      waiting = second(async () => void times.push(performance.now() - releasedMs));
      await sleep(15 + 20 * Math.random());
      releasedMs = performance.now();
    });
    await waiting;
  }
  one.close();
  other.close();
  return times.sort((a, b) => a - b);
}

async function idleRequests(name: string, port: number, seconds: number): Promise<number> {
  const [one, other] = [connectionsTo(port), connectionsTo(port)];
  let perSecond = 0;
  let waiting: Promise<void> | undefined;
  await contenders[name]!(one)(async () => {
    waiting = contenders[name]!(other)(async () => {});
    await sleep(1_000);
    const before = other.sent();
    await sleep(seconds * 1_000);
    perSecond = (other.sent() - before) / seconds;
  });
  await waiting;
  one.close();
  other.close();
  return perSecond;
}

/** The upper bound for any lock: sections per second of one caller that runs them one after the other. */
async function withoutLock(seconds: number, sectionMs: number): Promise<number> {
  const endsAtMs = performance.now() + seconds * 1_000;
  let sections = 0;
  for (; performance.now() < endsAtMs; sections++) await sleep(sectionMs);
  return sections / seconds;
}

async function main(only?: string): Promise<void> {
  const program = await redisProgram();
  if (program === undefined) throw new Error('these tables need a Redis');
  const figure = (value: number) =>
    value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
  const rows: string[][] = [
    ['lock', 'hand-over p50, ms', 'p90', 'idle waiter, requests per s'],
    ['', '50 callers in 5 processes: sections per s', 'longest wait, ms', '500: p99, ms', 'longest'],
    ['', '2 × 8, sections of 1 ms: per s', 'p99, ms', 'requests per section', 'share'],
  ];
  const tables = rows.map((head) => [head]);
  const startedMs = performance.now();
  const note = (what: string) => console.error(`${Math.round((performance.now() - startedMs) / 1_000)} s: ${what}`);
  for (const name of Object.keys(contenders).filter((one) => only === undefined || one === only)) {
    const server = await startRedis(program);
    const { port } = server;
    note(`${name}, hand-overs and an idle waiter`);
    const times = await handOvers(name, port, 60);
    const idle = await idleRequests(name, port, 15);
    tables[0]!.push([name, figure(percentile(times, 0.5)), figure(percentile(times, 0.9)), figure(idle)]);
    // Removes what the processes of the previous contender held when they were ended.
    const fresh = () => server.ask('FLUSHALL');
    note(`${name}, 50 and 500 callers in 5 processes`);
    const many = await contend(name, port, { processes: 5, callers: 50, seconds: 5, sectionMs: 0 });
    await fresh();
    const more = await contend(name, port, { processes: 5, callers: 500, seconds: 8, sectionMs: 0 });
    tables[1]!.push([name, ...[many.perSecond, many.longestMs, more.p99Ms, more.longestMs].map(figure)]);
    await fresh();
    note(`${name}, two processes of eight`);
    const two = await contend(name, port, { processes: 2, callers: 16, seconds: 5, sectionMs: 1 });
    tables[2]!.push([name, ...[two.perSecond, two.p99Ms, two.requestsPerSection, two.share].map(figure)]);
    await server.dispose();
  }
  note('no lock');
  tables[2]!.push(['none: one caller alone', figure(await withoutLock(5, 1)), '', '', '']);
  for (const [head, ...body] of tables) {
    console.log(`| ${head!.join(' | ')} |\n|${head!.map(() => '---').join('|')}|`);
    for (const row of body) console.log(`| ${row.join(' | ')} |`);
    console.log();
  }
}

const [name, ...numbers] = process.argv.slice(2);
if (name === undefined || numbers.length === 0) await main(name);
else await child(name, ...(numbers.map(Number) as [number, number, number, number]));
