/**
 * Mutex bench: the tools of a case of the mutex conformance suite: locks of several processes, a store that can be made to fail, and time.
 *
 * Promise: a claim that does not hold ends the case with an error that names it. All opened stores are closed.
 */
import { type Mutex, mutex } from '../coordination/mutex/mutex.js';
import { type Semaphore, semaphore } from '../coordination/mutex/semaphore.js';
import { type Clock, callbackTimer } from '../core/clock.js';
import { StoreError } from '../core/errors.js';
import type { Store } from '../stores/store.js';
import { type ConformanceSettings, closeAll } from './store-bench.js';

/** The options of the suite, with their defaults. */
export interface Checked {
  readonly make: (settings: ConformanceSettings) => Store | Promise<Store>;
  readonly clock: Clock;
  readonly pass: ((ms: number) => Promise<void>) | undefined;
  readonly toleranceMs: number;
  readonly contenders: number;
  readonly sections: number;
}

/** The ttl of leases whose end a case waits for: as short as possible. */
export const ttlMs = 900;
/** The ttl of all others: so long that a busy machine does not end them. */
export const longTtlMs = 30_000;
const maxValueBytes = 2 ** 20;
/** A healthy store always replies within this time. */
export const patienceMs = 60_000;

/** The fate of a verb of a store that the case controls. */
type Fate = 'ok' | 'hung' | 'lost-reply' | 'never-arrives';

/** Stands between a lock and the real store, to inject faults. */
class Unsteady implements Store {
  fate: Fate = 'ok';
  /** Verbs that have begun. */
  calls = 0;
  readonly native: Store['native'];
  private readonly inner: Store;

  constructor(inner: Store) {
    this.inner = inner;
    this.native = this.nativeOf(inner.native);
  }

  read: Store['read'] = (key, options) => this.through('read', () => this.inner.read(key, options));
  write: Store['write'] = (key, value, options) => this.through('write', () => this.inner.write(key, value, options));
  remove: Store['remove'] = (key, options) => this.through('remove', () => this.inner.remove(key, options));

  /** Capabilities that change something are subject to the same faults as the verbs. */
  private nativeOf(native: Store['native']): Store['native'] {
    const { queue, guardedWrite } = native ?? {};
    const through = <T>(operation: string, verb: () => Promise<T>) => this.through(operation, verb);
    return {
      ...native,
      ...(guardedWrite && {
        guardedWrite: (key, value, options) => through('write', () => guardedWrite(key, value, options)),
      }),
      ...(queue && {
        queue: {
          enter: (key, ticket, value, options) => through('enter', () => queue.enter(key, ticket, value, options)),
          pass: (key, options) => through('remove', () => queue.pass(key, options)),
          leave: (key, tickets, options) => through('leave', () => queue.leave(key, tickets, options)),
          size: (key, options) => through('read', () => queue.size(key, options)),
        },
      }),
    };
  }

  private async through<T>(operation: string, verb: () => Promise<T>): Promise<T> {
    this.calls++;
    const { fate } = this;
    if (fate === 'hung') return new Promise<T>(() => {});
    const lost = { store: 'test', operation, reason: 'timeout', applied: 'unknown', detail: 'no answer came' } as const;
    if (fate === 'never-arrives') throw new StoreError(lost);
    const answer = await verb();
    if (fate === 'lost-reply') throw new StoreError(lost);
    return answer;
  }
}

/** The tools of a case. */
export class Bench {
  readonly contenders: number;
  readonly sections: number;
  readonly toleranceMs: number;
  private readonly prefix = `mutex-${globalThis.crypto.randomUUID()}`;
  private readonly opened = new Set<Store>();
  private readonly law: number;
  private readonly checked: Checked;

  constructor(law: number, checked: Checked) {
    this.law = law;
    this.checked = checked;
    this.contenders = checked.contenders;
    this.sections = checked.sections;
    this.toleranceMs = checked.toleranceMs;
  }

  async store(): Promise<Store> {
    const store = await this.checked.make({ prefix: this.prefix, maxValueBytes });
    this.opened.add(store);
    return store;
  }

  /** The locks of a separate process. */
  async locks(store?: Store, more: Partial<Parameters<typeof mutex>[0]> = {}): Promise<Mutex> {
    return mutex({
      store: store ?? (await this.store()),
      clock: this.checked.clock,
      ttl: longTtlMs,
      wait: '60s',
      ...more,
    });
  }

  async permits(permits: number): Promise<Semaphore> {
    return semaphore({ store: await this.store(), clock: this.checked.clock, ttl: longTtlMs, wait: '60s', permits });
  }

  /** The locks of a process whose leases a case lets expire. */
  briefLocks(store?: Store, more: Partial<Parameters<typeof mutex>[0]> = {}): Promise<Mutex> {
    return this.locks(store, { ttl: ttlMs, ...more });
  }

  async unsteady(): Promise<Unsteady> {
    return new Unsteady(await this.store());
  }

  get clock(): Clock {
    return this.checked.clock;
  }

  now(): number {
    return this.checked.clock.now();
  }

  async pass(ms: number): Promise<void> {
    if (this.checked.pass === undefined) await new Promise((resolve) => globalThis.setTimeout(resolve, ms));
    else await this.checked.pass(ms);
  }

  /** Resolves after this time on the clock of the locks, while the case waits for something else. */
  later(ms: number): Promise<void> {
    const { clock } = this.checked;
    return new Promise((resolve) => clock.schedule(callbackTimer(resolve), clock.now() + ms));
  }

  /** Waits for a promise; if time is virtual, lets it pass until then. */
  async settled<T>(promise: Promise<T>): Promise<T> {
    const { pass } = this.checked;
    let isOver = false;
    const over = promise.finally(() => {
      isOver = true;
    });
    over.catch(() => {});
    if (pass !== undefined) for (let ms = 0; !isOver && ms < patienceMs; ms++) await pass(1);
    else {
      const late = new Promise<never>((_, reject) => {
        const timer = globalThis.setTimeout(() => reject(new Error('it has not come to an end')), patienceMs);
        over.catch(() => {}).finally(() => globalThis.clearTimeout(timer));
      });
      return Promise.race([over, late]);
    }
    this.claim(isOver, () => 'it has not come to an end');
    return over;
  }

  async errorOf(promise: Promise<unknown>): Promise<unknown> {
    return this.settled(
      promise.then(
        () => undefined,
        (error: unknown) => error,
      ),
    );
  }

  claim(holds: boolean, broken: () => string): asserts holds {
    if (!holds) throw new Error(`case ${this.law} of locks is broken: ${broken()}`);
  }

  close(): Promise<void> {
    return closeAll(this.opened);
  }
}
