/**
 * The spike scenario against a real server: does virtual time tell the truth about the strategies? `node bench/overload/real.ts [--seed=N]
 * [--only=NAME]`; it runs the sources, about 30 s per strategy.
 *
 * The server runs in a process of its own, speaks HTTP on the loopback interface, and is the same model of 20 workers with 100 ms each. Users,
 * strategies and counters are the same code in both. Only the wait for workers is modelled, so nothing else that matters may compete with the two
 * processes for processors.
 */
import '../sources.ts';
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { Agent, createServer, get } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { systemClock } = await import('../../src/index.ts');
const { seededRandom, serviceModel } = await import('../../src/testing/index.ts');
const { grid, playIn } = await import('../../src/testing/overload/overload.ts');
const { adaptive, byStandard, unprotected } = await import('../../test/simulation/support/strategies.ts');
const { playOnPlatform } = await import('../../src/testing/overload/platform.ts');
const { rivals } = await import('./rivals.ts');
type Report = import('../../src/testing/overload/overload.ts').Report;
type Strategy = import('../../src/testing/overload/overload.ts').Strategy;
type Service = import('../../src/testing/overload/services.ts').Service;

const { values } = parseArgs({
  options: { seed: { type: 'string', default: '1' }, only: { type: 'string' }, serve: { type: 'boolean' } },
});
const seed = Number(values.seed);
const shape = grid['s20/100/4']!;
const phases = { beforeSeconds: 5, disturbanceSeconds: 10, afterSeconds: 10 } as const;
/** How long retries of p-retry continue after the last user has arrived. */
const longestEndMs = 15_000;

const strategies: Readonly<Record<string, Strategy>> = {
  'no protection': unprotected,
  ...rivals,
  'standard()': byStandard,
  'adaptiveLimit() + timeout': adaptive(),
};

async function real(strategy: Strategy): Promise<Report> {
  const child = fork(fileURLToPath(import.meta.url), ['--serve', `--seed=${seed}`]);
  const agent = new Agent({ keepAlive: true, maxFreeSockets: 2_000 });
  let pending = 0;
  try {
    const port = await portOf(child);
    const counted: Strategy = (world) => {
      const request = strategy(world);
      return (task) => {
        pending++;
        return request(task).finally(() => pending--);
      };
    };
    return await playIn(
      {
        clock: systemClock,
        random: seededRandom(seed),
        service: new Remote(port, agent),
        until: (atMs) => sleep(Math.max(0, atMs - systemClock.now())),
        end: async () => {
          for (const untilMs = systemClock.now() + longestEndMs; pending > 0 && systemClock.now() < untilMs; )
            await sleep(100);
        },
      },
      { strategy: counted, shape, scenario: 'spike', seed, ...phases },
    );
  } finally {
    agent.destroy();
    const exit = once(child, 'exit');
    child.kill();
    await exit;
  }
}

async function portOf(child: ChildProcess): Promise<number> {
  const exit = once(child, 'exit').then(() => Promise.reject(new Error('the server has ended')));
  const [port] = await Promise.race([once(child, 'message'), exit]);
  exit.catch(() => {});
  return port as number;
}

class Remote implements Service {
  /** Only the server knows it. */
  readonly completed = Number.NaN;
  private readonly port: number;
  private readonly agent: Agent;

  constructor(port: number, agent: Agent) {
    this.port = port;
    this.agent = agent;
  }

  serve(signal?: AbortSignal): Promise<unknown> {
    const options = { host: '127.0.0.1', port: this.port, agent: this.agent, ...(signal && { signal }) };
    return new Promise((resolve, reject) => {
      get(options, (response) => {
        response.resume();
        response.once('error', reject);
        response.once('end', resolve);
      }).once('error', reject);
    });
  }

  slowDown(): void {}
}

function serve(): void {
  const { workers, meanMs: mean, gamma } = shape;
  const random = seededRandom(seed).fork('service');
  const service = serviceModel({ workers, serviceTime: { mean, shape: gamma }, queue: 10_000_000, random });
  const server = createServer((request, response) => {
    request.resume();
    // Like the model in virtual time, it continues when the client has disconnected.
    service.serve().then(() => response.end('ok'));
  });
  // Longer than a run, so that no idle connection is closed while a request is on its way to it.
  server.keepAliveTimeout = 60_000;
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 }, () =>
    process.send?.((server.address() as AddressInfo).port),
  );
  process.once('disconnect', () => process.exit());
}

async function compare(): Promise<void> {
  console.log(`seed ${seed}; node bench/overload/real.ts --seed=${seed}\n`);
  const columns = ['goodput %', 'virtual', 'p99 ms', 'virtual', 'calls', 'virtual', 'back s', 'virtual'];
  console.log(`| ${''.padEnd(50)} | ${columns.map((column) => column.padStart(9)).join(' | ')} |`);
  console.log(`|${'-'.repeat(52)}|${columns.map(() => `${'-'.repeat(10)}:`).join('|')}|`);
  for (const [name, strategy] of Object.entries(strategies)) {
    if (values.only !== undefined && name !== values.only) continue;
    const virtual = await playOnPlatform({ strategy, shape, scenario: 'spike', seed, ...phases });
    const actual = await real(strategy);
    const cells = ([field, digits]: readonly [Exclude<keyof Report, 'seed'>, number]) =>
      [actual, virtual].map((report) => report[field].toFixed(digits).padStart(9));
    const fields = [
      ['goodput', 1],
      ['p99Ms', 0],
      ['callsPerRequest', 2],
      ['recoverySeconds', 1],
    ] as const;
    console.log(`| ${name.padEnd(50)} | ${fields.flatMap(cells).join(' | ')} |`);
  }
}

if (values.serve) serve();
else {
  await compare();
  // opossum's intervals do not keep the process alive, but what a strategy left behind might.
  process.exit();
}
