/**
 * Child: processes that cannot outlive the demo.
 *
 * Promise: a child ends when the channel to its parent closes, so none is left however the parent ended; the parent
 * hears at once when a child ends before its time.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';

/** A child, seen from the parent. */
export interface Child {
  readonly pid: number | undefined;
  /** Sends one message and waits for the answer to it. */
  ask<Answer>(message: unknown): Promise<Answer>;
  kill(): void;
}

export interface ChildOptions {
  /** A file beside this one. */
  readonly file: string;
  /** What the child finds in `settings()`. */
  readonly settings: unknown;
  /** Ends every wait for the child. */
  readonly signal: AbortSignal;
  /** The child ended although nobody killed it. */
  readonly onLost: (error: Error) => void;
}

/** Starts a child and waits for its first message, which says that it is ready. */
export async function startChild<Ready>(options: ChildOptions): Promise<{ child: Child; ready: Ready }> {
  const { file, settings, signal, onLost } = options;
  const child = fork(new URL(file, import.meta.url), [JSON.stringify(settings)], {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  const kill = () => void child.kill('SIGKILL');
  process.once('exit', kill);
  child.once('exit', (code, killedBy) => {
    process.off('exit', kill);
    if (!child.killed) onLost(new Error(`${file} ended before its time (${killedBy ?? `exit code ${code}`})`));
  });
  const ready = await nextMessage<Ready>(child, signal);
  return {
    ready,
    child: {
      pid: child.pid,
      ask: (message) => {
        child.send(message as object);
        return nextMessage(child, signal);
      },
      kill,
    },
  };
}

async function nextMessage<Message>(child: ChildProcess, signal: AbortSignal): Promise<Message> {
  const [message] = await once(child, 'message', { signal });
  return message as Message;
}

/** In the child: what the parent gave it. */
export function settings<Settings>(): Settings {
  return JSON.parse(process.argv[2] ?? '{}') as Settings;
}

/** In the child: says that it is ready, then answers the parent's messages until the parent is gone. */
export function serveParent(ready: unknown, answer: (message: string) => unknown): void {
  process.on('disconnect', () => process.exit());
  // A terminal sends Ctrl-C to the whole group; the parent decides when its children end.
  process.on('SIGINT', () => {});
  process.on('message', (message) => process.send?.(answer(String(message)) as object));
  process.send?.(ready as object);
}
