/**
 * Processes: child processes that cannot outlive the demo.
 *
 * Promise: a child ends when the channel to its parent closes, so none is left however the parent ended. The parent hears at once of a child that
 * ends without having been killed.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';

export interface ChildOptions {
  readonly name: string;
  /** The script. Default: the demo's own program, which then plays this role. */
  readonly file?: string | undefined;
  readonly settings: object;
  readonly onLost: (error: Error) => void;
  /** Receives messages that the child sends unasked. */
  readonly onNews?: (news: never) => void;
}

const variable = 'HOLDFAST_DEMO_PART';

type FromChild =
  | { readonly kind: 'ready'; readonly value: unknown }
  | { readonly kind: 'reply'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'news'; readonly value: unknown };

interface Asked {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class Child<Ready> {
  /** What the child sent when it was ready. */
  ready!: Ready;
  private readonly process: ChildProcess;
  private readonly waiting = new Map<number, Asked>();
  private readonly ended: Promise<void>;
  private lastId = 0;
  /** Why it answers no more. */
  private loss: Error | undefined = undefined;

  constructor({ name, file, settings, onLost, onNews = () => {} }: ChildOptions) {
    this.process = fork(file ?? process.argv[1]!, ['demo'], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      env: { ...process.env, [variable]: JSON.stringify(settings), NODE_NO_WARNINGS: '1' },
    });
    this.ended = new Promise((resolve) => {
      const end = (reason: string) => {
        resolve();
        if (this.loss !== undefined) return;
        this.loss = new Error(`${name} ended before its time (${reason})`);
        for (const { reject } of this.waiting.values()) reject(this.loss);
        this.waiting.clear();
        if (!this.process.killed) onLost(this.loss);
      };
      this.process.once('exit', (code, killedBy) => end(killedBy ?? `exit code ${code}`));
      // It could not be started, for example because there are too many processes.
      this.process.once('error', (error) => end(error.message));
    });
    this.process.on('message', (message: FromChild) => {
      if (message.kind === 'news') onNews(message.value as never);
      if (message.kind !== 'reply') return;
      this.waiting.get(message.id)?.resolve(message.value);
      this.waiting.delete(message.id);
    });
  }

  /** Resolves when the child is ready. */
  async opened(signal: AbortSignal): Promise<this> {
    const [first] = (await once(this.process, 'message', { signal })) as [FromChild];
    this.ready = first.value as Ready;
    return this;
  }

  /** Rejects when the child has ended without an answer. */
  ask<Answer>(message: unknown): Promise<Answer> {
    const id = ++this.lastId;
    return new Promise((resolve, reject) => {
      if (this.loss !== undefined) return reject(this.loss);
      this.waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
      // If the channel has closed already, the end of the process rejects.
      this.process.send({ id, message }, () => {});
    });
  }

  /** Resolves when the child is gone. */
  async kill(): Promise<void> {
    this.process.kill('SIGKILL');
    await this.ended;
  }
}

/** In a child: the role it was started for; undefined in the program that the user started. */
export function partOf(): object | undefined {
  const given = process.env[variable];
  return given === undefined || process.send === undefined ? undefined : (JSON.parse(given) as object);
}

/** In a child, as the first thing: from now on it ends when its parent is gone, and only then. */
export function endWithParent(): void {
  process.on('disconnect', () => process.exit());
  // The parent may have ended while this program was loaded.
  if (!process.connected) process.exit();
  // Ctrl-C, a closed terminal and many supervisors signal the whole group; the parent decides when its children end.
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => {});
}

/** In a child: reports that it is ready, then answers the parent's messages. */
export function serveParent(ready: unknown, answer: (message: never) => unknown): void {
  process.on('message', ({ id, message }: { id: number; message: unknown }) => {
    say({ kind: 'reply', id, value: answer(message as never) });
  });
  say({ kind: 'ready', value: ready });
}

/** In a child: sends a message to the parent. */
export function tellParent(news: unknown): void {
  say({ kind: 'news', value: news });
}

function say(message: FromChild): void {
  // The parent may be gone; then this process ends, too.
  process.send?.(message, undefined, undefined, () => {});
}
