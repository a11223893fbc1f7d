/**
 * What an idempotency key costs a server: processor time per hello POST, beside the same server without it, the least that
 * can be done by hand, and two libraries of the field. Records are in memory.
 *
 * `node bench/idempotency/run.ts [--rounds=N] [--requests=N]`, after a build. One server at a time works; ratios are within a round.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { quartilesOf } from '../statistics.ts';
import { contenders } from './contenders.ts';

const { values } = parseArgs({ options: { rounds: { type: 'string' }, requests: { type: 'string' } } });
const rounds = Number(values.rounds ?? 11);
const requests = Number(values.requests ?? 3_000);
const connections = 8;
const body = JSON.stringify({ amount: 250, currency: 'EUR', to: 'kelp and daughters' });

type Mode = 'fresh' | 'replay' | 'no key';
const modes: readonly Mode[] = ['fresh', 'replay', 'no key'];
let keys = 0;

class Server {
  private readonly child: ChildProcess;
  port = 0;

  constructor(name: string) {
    this.child = fork(fileURLToPath(new URL('server.ts', import.meta.url)), [name], { execArgv: ['--no-warnings'] });
  }

  async start(): Promise<void> {
    this.child.once('exit', (code) => {
      // The others end with this process.
      if (code !== 0) process.exit(1);
    });
    [this.port] = (await once(this.child, 'message')) as [number];
  }

  /** Microseconds of processor time per request. */
  async measure(mode: Mode): Promise<number> {
    const replayed = `replay-${keys++}`;
    if (mode === 'replay') await drive(this.port, 1, () => replayed);
    await this.spent();
    await drive(this.port, requests, () =>
      mode === 'fresh' ? `key-${keys++}` : mode === 'replay' ? replayed : undefined,
    );
    return (await this.spent()) / requests;
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

/** Sends over a few connections, on each one request after the other. */
async function drive(port: number, count: number, key: () => string | undefined): Promise<void> {
  let left = count;
  const one = async () => {
    const socket = connect(port, '127.0.0.1').setNoDelay(true);
    await once(socket, 'connect');
    while (left-- > 0) {
      const name = key();
      const line = name === undefined ? '' : `Idempotency-Key: ${name}\r\n`;
      const head = `POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n${line}Content-Length: ${body.length}\r\n\r\n`;
      socket.write(head + body);
      const [answer] = (await once(socket, 'data')) as [Buffer];
      if (!answer.toString('latin1').includes('hello')) throw new Error(`unexpected answer: ${answer}`);
    }
    socket.destroy();
  };
  await Promise.all(Array.from({ length: Math.min(connections, count) }, one));
}

const servers = new Map<string, Server>();
for (const { name } of contenders) servers.set(name, new Server(name));
await Promise.all([...servers.values()].map((server) => server.start()));
// The compiler's work is not theirs.
for (const server of servers.values()) for (const mode of modes) await server.measure(mode);

const results = new Map<string, { added: number[]; ratio: number[] }>();
for (let round = 0; round < rounds; round++) {
  for (const mode of modes) {
    const spent = new Map<string, number>();
    for (const [name, server] of servers) spent.set(name, await server.measure(mode));
    for (const { name, framework } of contenders) {
      const bare = spent.get(`${framework} bare`)!;
      const result = results.get(`${mode} ${name}`) ?? { added: [], ratio: [] };
      results.set(`${mode} ${name}`, result);
      result.added.push(spent.get(name)! - bare);
      result.ratio.push(spent.get(name)! / bare);
    }
  }
}
for (const server of servers.values()) server.end();

console.log(`Node ${process.version}, ${rounds} rounds of ${requests} requests; medians and quartiles\n`);
console.log('| server | requests | µs added | times the bare server |\n|---|---|---|---|');
for (const mode of modes) {
  for (const { name, kind } of contenders) {
    if (kind === 'bare') continue;
    const { added, ratio } = results.get(`${mode} ${name}`)!;
    const [a, r] = [quartilesOf(added), quartilesOf(ratio)];
    const show = ({ p25, median, p75 }: typeof a, digits: number) =>
      `${median.toFixed(digits)} (${p25.toFixed(digits)} to ${p75.toFixed(digits)})`;
    console.log(`| ${name} | ${mode} | ${show(a, 1)} | ${show(r, 2)} |`);
  }
}
