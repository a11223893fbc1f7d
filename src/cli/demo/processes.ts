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
  readonly signal: AbortSignal;
  readonly onLost: (error: Error) => void;
  /** Receives messages that the child sends unasked. */
  readonly onNews?: (news: never) => void;
}

const variable = 'HOLDFAST_DEMO_PART';

type FromChild =
  | { readonly kind: 'ready'; readonly value: unknown }
  | { readonly kind: 'reply'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'news'; readonly value: unknown };

export class Child<Ready> {
  /** What the child sent when it was ready. */
  ready!: Ready;
  private readonly process: ChildProcess;
  private readonly waiting = new Map<number, (value: unknown) => void>();
  private lastId = 0;

  private constructor(process: ChildProcess, onNews: (news: never) => void) {
    this.process = process;
    process.on('message', (message: FromChild) => {
      if (message.kind === 'news') onNews(message.value as never);
      if (message.kind !== 'reply') return;
      this.waiting.get(message.id)?.(message.value);
      this.waiting.delete(message.id);
    });
  }

  /** Resolves when the child is ready. */
  static async start<Ready>(options: ChildOptions): Promise<Child<Ready>> {
    const { name, file, settings, signal, onLost, onNews = () => {} } = options;
    const forked = fork(file ?? process.argv[1]!, ['demo'], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      env: { ...process.env, [variable]: JSON.stringify(settings), NODE_NO_WARNINGS: '1' },
    });
    const child = new Child<Ready>(forked, onNews);
    const kill = () => child.kill();
    process.once('exit', kill);
    forked.once('exit', (code, killedBy) => {
      process.off('exit', kill);
      if (!forked.killed) onLost(new Error(`${name} ended before its time (${killedBy ?? `exit code ${code}`})`));
    });
    const [first] = (await once(forked, 'message', { signal })) as [FromChild];
    child.ready = first.value as Ready;
    return child;
  }

  /** Never resolves once the child has ended. */
  ask<Answer>(message: unknown): Promise<Answer> {
    const id = ++this.lastId;
    this.process.send({ id, message });
    return new Promise((resolve) => this.waiting.set(id, resolve as (value: unknown) => void));
  }

  kill(): void {
    this.process.kill('SIGCONT');
    this.process.kill('SIGKILL');
  }

  /** Freezes the child without its notice. */
  freeze(): void {
    this.process.kill('SIGSTOP');
  }

  thaw(): void {
    this.process.kill('SIGCONT');
  }
}

/** In a child: the role it was started for; undefined in the program that the user started. */
export function partOf(): object | undefined {
  const given = process.env[variable];
  return given === undefined || process.send === undefined ? undefined : (JSON.parse(given) as object);
}

/** In a child: reports that it is ready, then answers the parent's messages until the parent is gone. */
export function serveParent(ready: unknown, answer: (message: never) => unknown): void {
  process.on('disconnect', () => process.exit());
  // A terminal sends Ctrl-C to the whole group; the parent decides when its children end.
  process.on('SIGINT', () => {});
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
  process.send?.(message);
}
