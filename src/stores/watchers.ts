/**
 * Watchers: the watches of each key, for every store that can report changes.
 *
 * Promise: after `close`, a listener is not called again. A listener that throws affects neither the verb that called it nor other listeners.
 */
import { Timer } from '../core/clock.js';
import { StoreError } from '../core/errors.js';
import { asMicrotask } from '../core/event-loop.js';
import type { StoreChange, StoreWatch } from './store.js';

const changed: StoreChange = { kind: 'changed' };
const gap: StoreChange = { kind: 'gap' };

/** One watch. Its timer is for stores that wait for a server's confirmation before the watch is ready. */
export class Watcher extends Timer implements StoreWatch {
  readonly key: string;
  readonly ready: Promise<void>;
  private state: 'starting' | 'ready' | 'over' = 'starting';
  private readonly store: string;
  private readonly onChange: (change: StoreChange) => void;
  private onEnd: (() => void) | undefined = undefined;
  private resolve!: () => void;
  private reject!: (error: unknown) => void;

  constructor(store: string, key: string, onChange: (change: StoreChange) => void) {
    super();
    this.store = store;
    this.key = key;
    this.onChange = onChange;
    this.ready = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    // A caller that does not use `ready` must not get an unhandled rejection from it.
    this.ready.catch(() => {});
  }

  get isStarting(): boolean {
    return this.state === 'starting';
  }

  get isReady(): boolean {
    return this.state === 'ready';
  }

  /** Sets what to do when the watch is over, for whatever reason. */
  whenOver(onEnd: () => void): void {
    this.onEnd = onEnd;
  }

  begin(): void {
    if (this.state !== 'starting') return;
    this.state = 'ready';
    this.resolve();
  }

  fail(error: unknown): void {
    this.reject(error);
    this.end();
  }

  /** Only stores that schedule it have a time limit for it. */
  override expire(): void {
    const detail = 'the server did not confirm the subscription in time';
    this.fail(this.error('timeout', detail));
  }

  close(): void {
    this.fail(this.error('closed', 'the watch was closed'));
  }

  changed(): void {
    this.tell(changed);
  }

  gap(): void {
    if (this.state === 'ready') this.tell(gap);
  }

  private tell(change: StoreChange): void {
    if (this.state === 'over') return;
    try {
      this.onChange(change);
    } catch (error) {
      // Reported as an uncaught exception, as for any callback; the verb that called the listener goes on.
      asMicrotask(() => {
        throw error;
      });
    }
  }

  private end(): void {
    if (this.state === 'over') return;
    this.state = 'over';
    this.onEnd?.();
  }

  private error(reason: 'timeout' | 'closed', detail: string): StoreError {
    return new StoreError({ store: this.store, operation: 'watch', reason, applied: 'no', detail });
  }
}

/** The most watches of one store at a time: more are a leak in the caller. */
const mostWatches = 100_000;

/** The watchers of a store, or of a channel, by key. */
export class Watchers {
  private readonly byKey = new Map<string, Set<Watcher>>();
  private count = 0;

  get size(): number {
    return this.count;
  }

  get isFull(): boolean {
    return this.count >= mostWatches;
  }

  add(watcher: Watcher, key: string = watcher.key): void {
    const others = this.byKey.get(key);
    if (others === undefined) this.byKey.set(key, new Set([watcher]));
    else others.add(watcher);
    this.count++;
  }

  delete(watcher: Watcher, key: string = watcher.key): void {
    const all = this.byKey.get(key);
    if (!all?.delete(watcher)) return;
    this.count--;
    if (all.size === 0) this.byKey.delete(key);
  }

  has(key: string): boolean {
    return this.byKey.has(key);
  }

  /** A copy, because a listener may close a watch or begin another. */
  all(): Watcher[] {
    return [...this.byKey.values()].flatMap((watchers) => [...watchers]);
  }

  tell(key: string): void {
    const watchers = this.byKey.get(key);
    if (watchers !== undefined) for (const watcher of [...watchers]) watcher.changed();
  }

  /** Tells every watcher to read once more, and closes it. */
  closeAll(): void {
    for (const watcher of this.all()) {
      watcher.gap();
      watcher.close();
    }
  }
}
