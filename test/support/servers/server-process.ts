/**
 * Server process: a real server as a private child on a free loopback port, which can be stopped, killed, frozen and restarted.
 *
 * Promise: it is ready when it answers its own protocol. It never outlives the thread that started it, however that thread ends.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { temporaryFolder } from '../temporary-folder.ts';
import type { Program } from './provide.ts';

/** How one kind of server is started and queried. */
export interface ServerKind {
  readonly name: string;
  readonly program: Program;
  /** The port after `port` also belongs to the server. */
  readonly args: (place: { readonly port: number; readonly folder: string }) => readonly string[];
  /** Called once, before the first start. */
  readonly prepare?: (folder: string) => Promise<void>;
  /** The user that the server runs as, if it refuses to run as the user that runs the tests. */
  readonly user?: { readonly uid: number; readonly gid: number } | undefined;
  /** The line to send to the port and the start of the answer of a ready server, or a custom check. */
  readonly ping: { readonly request: string; readonly answer: string } | ((port: number) => Promise<boolean>);
  /** The signal that ends the server. Default SIGTERM. */
  readonly stopSignal?: NodeJS.Signals;
}

/** On a busy machine servers need a thousand times as long. Nobody waits this long once a server is ready or has ended. */
const longestStartMs = 40_000;
const longestStopMs = 20_000;
const longestAnswerMs = 20_000;

export class ServerProcess {
  readonly host = '127.0.0.1';
  readonly port: number;
  readonly folder: string;
  private readonly kind: ServerKind;
  private child: ChildProcess | undefined = undefined;

  private constructor(kind: ServerKind, port: number) {
    this.kind = kind;
    this.port = port;
    this.folder = temporaryFolder(kind.name);
  }

  /** Starts a server on a port that was free a moment ago; tries again if another process took it first. */
  static async start(kind: ServerKind): Promise<ServerProcess> {
    for (let tries = 1; ; tries++) {
      const server = new ServerProcess(kind, await freePort());
      try {
        await kind.prepare?.(server.folder);
        await server.start();
        return server;
      } catch (error) {
        await server.dispose();
        if (tries === 2) throw error;
      }
    }
  }

  get isRunning(): boolean {
    return this.child !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Starts the server again on its old port, with the contents of its folder. */
  async start(): Promise<void> {
    const { file, env } = this.kind.program;
    const args = [file, ...this.kind.args(this)];
    // The kernel kills the child when its parent is gone: no clean-up code runs after a SIGKILL.
    const setpriv = '/usr/bin/setpriv';
    const { user } = this.kind;
    const as = user === undefined ? [] : ['--reuid', `${user.uid}`, '--regid', `${user.gid}`, '--clear-groups'];
    const hasSetpriv = existsSync(setpriv);
    const command = hasSetpriv ? [setpriv, '--pdeathsig', 'KILL', ...as, ...args] : args;
    const log = openSync(this.logFile, 'a');
    const child = spawn(command[0]!, command.slice(1), {
      cwd: this.folder,
      env: { ...process.env, ...env },
      stdio: ['ignore', log, log],
      detached: true,
    });
    closeSync(log);
    if (!hasSetpriv && child.pid !== undefined) killWithUs(child, child.pid);
    this.child = child;
    const end = once(child, 'exit').then(
      ([code, signal]) => `it ended with ${code ?? signal}`,
      (error) => `it could not be started: ${error}`,
    );
    let reason: string | undefined;
    void end.then((text) => {
      reason = text;
    });
    const endsAtMs = performance.now() + longestStartMs;
    while (!(await this.answers())) {
      if (performance.now() > endsAtMs) reason ??= `no answer within ${longestStartMs} ms`;
      if (reason !== undefined) throw new Error(`${this.kind.name}: ${reason}\n${this.log()}`);
      await sleep(10);
    }
  }

  /** Asks the server to end, and waits until it has. */
  async stop(): Promise<void> {
    await this.end(this.kind.stopSignal ?? 'SIGTERM');
  }

  /** Kills the server abruptly, like a crash. */
  async kill(): Promise<void> {
    await this.end('SIGKILL');
  }

  /** Stops all processes of the server. Connections stay open, and nothing is answered until `wake`. */
  freeze(): void {
    this.signal('SIGSTOP');
  }

  wake(): void {
    this.signal('SIGCONT');
  }

  async dispose(): Promise<void> {
    await this.kill();
    taken.delete(this.port);
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Sends one line and resolves with the first chunk of the answer. That is enough to set up a server without a client. */
  ask(line: string): Promise<string> {
    return new Promise((resolve, reject) => {
      const socket = connect(this.port, this.host, () => socket.write(`${line}\r\n`));
      socket.setTimeout(longestAnswerMs, () => socket.destroy(new Error(`no answer to ${line}`)));
      socket.once('error', reject);
      // The server may close the connection without an answer, as one does that becomes a primary.
      socket.once('close', () => reject(new Error(`the connection was closed before an answer to ${line}`)));
      socket.once('data', (data) => {
        socket.destroy();
        resolve(data.toString());
      });
    });
  }

  /** The server's output, for the message of a failing test. */
  log(): string {
    return existsSync(this.logFile) ? readFileSync(this.logFile, 'utf8').slice(-4000) : '';
  }

  private get logFile(): string {
    return join(this.folder, 'log');
  }

  private async end(signal: NodeJS.Signals): Promise<void> {
    const { child } = this;
    if (child === undefined || !this.isRunning) return;
    const gone = once(child, 'exit');
    // A child that was forked while we look for the children of a killed server would survive.
    if (signal === 'SIGKILL') process.kill(child.pid!, 'SIGSTOP');
    const tree = processTree(child.pid!);
    // A frozen process receives no signal but SIGKILL.
    if (signal !== 'SIGKILL') this.signal('SIGCONT');
    this.signal(signal);
    const timer = setTimeout(() => this.signal('SIGKILL'), longestStopMs);
    await gone;
    clearTimeout(timer);
    // Postgres does not start while an orphan still uses the shared memory.
    while (tree.some(isAlive)) await sleep(5);
  }

  private signal(signal: NodeJS.Signals): void {
    if (!this.isRunning || this.child?.pid === undefined) return;
    // Not the process group: some servers put their workers into groups of their own.
    for (const pid of processTree(this.child.pid)) {
      try {
        process.kill(pid, signal);
      } catch {
        // The process has ended in between.
      }
    }
  }

  /** Whether the server is ready now. */
  async answers(): Promise<boolean> {
    const { ping } = this.kind;
    if (typeof ping === 'function') return ping(this.port);
    const { request, answer } = ping;
    return this.ask(request).then(
      (text) => text.startsWith(answer),
      () => false,
    );
  }
}

/** Replaces the kernel feature of Linux: a helper process waits for a pipe to close, which happens however we end, and then kills the child. */
function killWithUs(child: ChildProcess, pid: number): void {
  const waits = spawn('/bin/sh', ['-c', 'read line; kill -9 "$0"', `${pid}`], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  });
  waits.unref();
  child.once('exit', () => waits.kill('SIGKILL'));
}

/** Whether a process has not ended; false without /proc. */
function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return !stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z');
  } catch {
    return false;
  }
}

/** A process and all its descendants; only the process itself without /proc. */
function processTree(root: number): number[] {
  const childrenOf = new Map<number, number[]>();
  let names: string[] = [];
  try {
    names = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  } catch {
    return [root];
  }
  for (const name of names) {
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'latin1');
      // The second field is a name in parentheses and may contain anything.
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
      childrenOf.set(parent, [...(childrenOf.get(parent) ?? []), Number(name)]);
    } catch {
      // The process has ended in between.
    }
  }
  const tree = [root];
  for (const pid of tree) tree.push(...(childrenOf.get(pid) ?? []));
  return tree;
}

/** Below the ports that the system assigns on its own, and below those of the fault proxies. */
const firstPort = 10_000;
const shares = 8;
const pairsPerShare = 625;
/** The ports of this worker's servers, whether they are running or down. */
const taken = new Set<number>();

/**
 * A free even port whose successor is also free. Each worker of vitest has its own share of the ports, so that none takes the port of a server that another
 * one has killed and is about to start again.
 */
async function freePort(): Promise<number> {
  const share = Number(process.env.VITEST_POOL_ID ?? 0) % shares;
  for (;;) {
    const port = firstPort + 2 * (share * pairsPerShare + randomInt(pairsPerShare));
    if (taken.has(port)) continue;
    taken.add(port);
    if ((await isFree(port)) && (await isFree(port + 1))) return port;
    taken.delete(port);
  }
}

function isFree(port: number): Promise<boolean> {
  const server = createServer();
  return new Promise((resolve) => {
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
