/**
 * Does the virtual world tell the truth? Runs the same overload scenario in simulation and with a real HTTP server in a process of its own. Run after
 * a build: `node bench/fidelity.ts`; about 45 s.
 *
 * Users arrive in an open loop, whatever becomes of earlier users. The server has 20 workers of 100 ms on average and a bounded queue, and continues
 * work that nobody waits for any more. Model, arrivals and pipeline are the same code in both.
 */
import { fork } from 'node:child_process';
import { Agent, createServer, get } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Clock, pipeline, systemClock, timeout } from 'holdfast';
import { type SeededRandom, seededRandom, serviceModel, simulate } from 'holdfast/testing';

const seed = 7;
const durationMs = 12_000;
const model = { workers: 20, serviceTime: { mean: 100, shape: 4 }, queue: 60 } as const;

interface Result {
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** Users arrive at a rate; reports what the users saw that got an answer. */
async function load(
  rate: number,
  clock: Clock,
  random: SeededRandom,
  sleep: (ms: number) => Promise<void>,
  request: (signal: AbortSignal) => Promise<unknown>,
): Promise<Result> {
  const patient = pipeline(timeout({ after: 700, clock }));
  const latencies: number[] = [];
  const users: Promise<void>[] = [];
  const startedMs = clock.now();
  let arrivalMs = startedMs;
  for (;;) {
    arrivalMs += random.exponential(1_000 / rate);
    if (arrivalMs > startedMs + durationMs) break;
    if (arrivalMs > clock.now()) await sleep(arrivalMs - clock.now());
    const beganMs = clock.now();
    users.push(
      patient
        .attempt(({ signal }) => request(signal))
        .then(({ ok }) => {
          if (ok) latencies.push(clock.now() - beganMs);
        }),
    );
  }
  await Promise.all(users);
  latencies.sort((left, right) => left - right);
  const quantile = (share: number) => latencies[Math.floor(share * (latencies.length - 1))] ?? Number.NaN;
  return { perSecond: latencies.length / (durationMs / 1_000), p50Ms: quantile(0.5), p99Ms: quantile(0.99) };
}

async function simulated(rate: number): Promise<Result> {
  const { result } = await simulate({ seed, network: { delay: { min: 0.2, max: 0.6 } } }, async (world) => {
    const server = world.node('server', {
      start(process) {
        const service = serviceModel({ ...model, random: seededRandom(seed + 1), clock: process.clock });
        process.serve((_message, { signal }) => service.serve(signal));
      },
    });
    const client = world.node('client');
    return client.run('users', (process) =>
      load(
        rate,
        process.clock,
        seededRandom(seed),
        (ms) => process.sleep(ms),
        (signal) => process.request(server, {}, { signal }),
      ),
    );
  });
  return result;
}

async function real(rate: number): Promise<Result> {
  const child = fork(fileURLToPath(import.meta.url), ['serve']);
  const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY });
  try {
    const port = await new Promise<number>((listening) =>
      child.once('message', (message) => listening(message as number)),
    );
    const request = (signal: AbortSignal) =>
      new Promise<void>((resolve, reject) => {
        get({ host: '127.0.0.1', port, agent, signal }, (response) => {
          response.resume();
          response.once('error', reject);
          response.once('end', () => (response.statusCode === 200 ? resolve() : reject(new Error('refused'))));
        }).once('error', reject);
      });
    return await load(rate, systemClock, seededRandom(seed), sleep, request);
  } finally {
    agent.destroy();
    child.kill();
  }
}

function serve(): void {
  const service = serviceModel({ ...model, random: seededRandom(seed + 1) });
  const server = createServer((request, response) => {
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    request.resume();
    service.serve(gone.signal).then(
      () => response.end('ok'),
      () => response.writeHead(503).end(),
    );
  });
  server.listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port));
  process.once('disconnect', () => process.exit());
}

async function compare(): Promise<void> {
  console.log(`seed ${seed}, ${durationMs / 1_000} s each; answers per second, and what those who got one waited`);
  console.log('load       simulated                     real                          difference');
  for (const rate of [140, 190, 400]) {
    const [virtual, actual] = [await simulated(rate), await real(rate)];
    const show = ({ perSecond, p50Ms, p99Ms }: Result) =>
      `${perSecond.toFixed(1)}/s  p50 ${p50Ms.toFixed(0)}  p99 ${p99Ms.toFixed(0)} ms`.padEnd(30);
    const difference = (part: keyof Result) => `${((virtual[part] / actual[part] - 1) * 100).toFixed(1)} %`;
    console.log(
      `${rate}/s`.padEnd(11) +
        show(virtual) +
        show(actual) +
        (['perSecond', 'p50Ms', 'p99Ms'] as const).map(difference).join('  '),
    );
  }
}

if (process.argv[2] === 'serve') serve();
else await compare();
