/** A store in virtual time whose answers the test controls, and any number of processes that use it. */
import { memoryStore, mutex, type Store, type StoreChange, StoreError } from 'holdfast';
import { type VirtualClock, virtualClock } from 'holdfast/testing';
import { Locks } from '../../../src/coordination/mutex/locks.js';
import type { QueueEnterOptions, QueueTurn, StoreQueue, Written } from '../../../src/stores/store.js';

export type Verb = 'read' | 'write' | 'remove' | 'enter' | 'pass' | 'leave' | 'size' | 'guardedWrite';
/**
 * What happens to one verb: `'lost'`: it is done and the reply is not; `'dropped'`: it never arrives; `'refused'`: so, and the store says it; a promise: when it is
 * done; `reply`: when its reply comes; an error: what it fails with.
 */
export type Fate =
  | 'ok'
  | 'lost'
  | 'dropped'
  | 'refused'
  | 'hung'
  | Promise<unknown>
  | { readonly reply: Promise<unknown> }
  | Error;

/** What a store can do besides the verbs. */
export interface Abilities {
  readonly watches?: boolean;
  /** The store has a queue, and a guard after a restart, as Redis has. */
  readonly queues?: boolean;
  readonly inner?: Store;
}

interface Place {
  readonly ticket: string;
  readonly value: Uint8Array;
  readonly options: QueueEnterOptions;
  readonly endsAtMs: number;
}

const claimMs = 1_000;

/** A store whose verbs go wrong as told. If the options say so, it reports changes or has a queue. */
export function unsteady(
  clock: VirtualClock,
  { watches = false, queues = false, inner = memoryStore({ clock }) }: Abilities = {},
) {
  const watchers = new Map<string, Set<(change: StoreChange) => void>>();
  const state = {
    ...{ calls: 0, watching: 0, verbs: [] as Verb[], times: [] as number[] },
    fate: (_verb: Verb, _key: string): Fate => 'ok',
    /** When changes begin to be reported. */
    ready: Promise.resolve(),
    /** The options that writes were given. */
    signals: [] as (AbortSignal | undefined)[],
    /** Whether those in the queue are told of their turn. */
    isTold: true,
    /** When the server has started anew. Undefined means that nobody has asked since. */
    beganMs: undefined as number | undefined,
    lines: new Map<string, Place[]>(),
  };
  const failure = (operation: string, applied: 'no' | 'unknown') =>
    new StoreError({ store: 'unsteady', operation, reason: 'timeout', applied, detail: 'no answer' });
  let last: Promise<unknown> = Promise.resolve();
  /** What takes several steps here is one step in a real store. */
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const answer = last.then(work);
    last = answer.catch(() => {});
    return answer;
  };
  const through = async <T>(verb: Verb, key: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> => {
    state.calls++;
    state.verbs.push(verb);
    state.times.push(clock.now());
    const fate = state.fate(verb, key);
    if (fate === 'hung') {
      return new Promise<T>((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
    }
    if (fate === 'dropped') throw failure(verb, verb === 'read' ? 'no' : 'unknown');
    if (fate === 'refused') throw failure(verb, 'no');
    if (fate instanceof Error) throw fate;
    if (fate instanceof Promise) await fate;
    const answer = await (queues ? inTurn(work) : work());
    const isChanged = typeof answer === 'boolean' ? answer : (answer as { ok?: boolean } | undefined)?.ok === true;
    if (isChanged) for (const tell of watchers.get(key) ?? []) queueMicrotask(() => tell({ kind: 'changed' }));
    if (fate === 'lost') throw failure(verb, 'unknown');
    if (typeof fate === 'object' && 'reply' in fate) await fate.reply;
    return answer;
  };

  const quietFor = (quietMs = 0) => {
    if (quietMs === 0) return 0;
    state.beganMs ??= clock.now();
    return Math.max(0, state.beganMs + quietMs - clock.now());
  };
  const lineOf = (key: string) => {
    const line = state.lines.get(key) ?? [];
    state.lines.set(key, line);
    return line;
  };
  const takeOut = (key: string, tickets: readonly string[]) => {
    const others = lineOf(key).filter(({ ticket }) => !tickets.includes(ticket));
    state.lines.set(key, others);
  };
  /** Hands the key to the first waiter, unless that is the one who asks. Returns who is then first. */
  const passOn = async (key: string, own?: string): Promise<string | undefined> => {
    const line = lineOf(key);
    for (let first = line[0]; first !== undefined; first = line[0]) {
      const { ticket, value, options, endsAtMs } = first;
      if (ticket === own) return ticket;
      line.shift();
      if (endsAtMs <= clock.now()) continue;
      await inner.write(key, value, { ttlMs: Math.min(claimMs, options.ttlMs) });
      const second = line[0];
      queueMicrotask(() => {
        options.onTurn?.('granted');
        second?.options.onTurn?.('next');
      });
      return ticket;
    }
    return undefined;
  };
  const queue: StoreQueue = {
    enter: (key, ticket, value, options) =>
      through('enter', key, async () => {
        const held = await inner.read(key);
        const isMine = held !== undefined && `${held.value}` === `${value}`;
        const isFree = held === undefined || isMine;
        const quietForMs = isFree ? quietFor(options.quietMs) : 0;
        if (isFree && quietForMs === 0 && (isMine || ((await passOn(key, ticket)) ?? ticket) === ticket)) {
          takeOut(key, [ticket]);
          return (await inner.write(key, value, { ttlMs: options.ttlMs })) as Written;
        }
        if (options.placeMs > 0) {
          const line = lineOf(key);
          const index = line.findIndex((place) => place.ticket === ticket);
          const place = { ticket, value, options, endsAtMs: clock.now() + options.placeMs };
          line.splice(index < 0 ? line.length : index, 1, place);
        }
        return { ok: false, entry: await inner.read(key), quietForMs, isTold: state.isTold };
      }),
    pass: (key, { ifVersion, quietMs } = {}) =>
      through('pass', key, async () => {
        const held = await inner.read(key);
        if (held === undefined || (ifVersion !== undefined && held.version !== ifVersion)) return false;
        if (quietFor(quietMs) > 0 || (await passOn(key)) === undefined) await inner.remove(key);
        return true;
      }),
    leave: (key, tickets) =>
      through('leave', key, () => {
        if (tickets.length > 1_000) throw new RangeError('that is more than a server takes at once');
        takeOut(key, tickets);
        return inner.read(key);
      }),
    size: (key) => through('size', key, async () => lineOf(key).length),
  };
  const store: Store = {
    read: (key, options) => through('read', key, () => inner.read(key, options)),
    write: (key, value, options) => {
      state.signals.push(options.signal);
      return through('write', key, () => inner.write(key, value, options), options.signal);
    },
    remove: (key, options) => through('remove', key, () => inner.remove(key, options)),
    native:
      watches || queues
        ? {
            ...(queues && {
              queue,
              guardedWrite: (key, value, { quietMs, ...options }) =>
                through('guardedWrite', key, async () => {
                  const held = await inner.read(key);
                  if (options.ifVersion !== undefined && (held?.version ?? 0) !== options.ifVersion) {
                    return { ok: false, entry: held, quietForMs: 0 };
                  }
                  const quietForMs = quietFor(quietMs);
                  if (quietForMs > 0) return { ok: false, entry: held, quietForMs };
                  return (await inner.write(key, value, options)) as Written;
                }),
            }),
            ...(watches && {
              watch(key, onChange) {
                state.watching++;
                const all = watchers.get(key) ?? new Set();
                watchers.set(key, all);
                let isOpen = true;
                const ready = state.ready.then(() => {
                  if (isOpen) all.add(onChange);
                });
                const close = () => {
                  if (isOpen) state.watching--;
                  isOpen = false;
                  all.delete(onChange);
                };
                // A watch that fails is over.
                ready.catch(close);
                return { ready, close };
              },
            }),
          }
        : undefined,
  };
  return { store, inner, state };
}

/** Any number of processes on one store. */
export function bench(options: Omit<Abilities, 'inner'> = {}) {
  const clock = virtualClock();
  const { store, inner, state } = unsteady(clock, options);
  const process = (more: Partial<Parameters<typeof mutex>[0]> = {}) =>
    mutex({ store, clock, ttl: '3s', random: () => 0.5, ...more });
  return { clock, store, inner, state, process };
}

/** The engine of one process, and the keys that it remembers. */
export function engine(store: Store | undefined, clock: VirtualClock, { queue = 10 } = {}) {
  const locks = new Locks({
    ...{ kind: 'mutex', name: 'mutex', on: undefined, clock, random: () => 0.5, store, stack: false },
    ...{ ttl: 3_000, margin: 300, renewEvery: undefined, wait: 1_000, queue, permits: Number.POSITIVE_INFINITY },
  });
  return { locks, lines: (locks as unknown as { readonly lines: Map<string, unknown> }).lines };
}

/** Lets virtual time pass until a promise has settled. */
export async function until<T>(clock: VirtualClock, promise: Promise<T>, mostMs = 60_000): Promise<T> {
  let isSettled = false;
  const settled = promise.finally(() => {
    isSettled = true;
  });
  settled.catch(() => {});
  for (let passedMs = 0; !isSettled && passedMs < mostMs; passedMs++) await clock.advance(1);
  if (!isSettled) throw new Error(`not settled after ${mostMs} ms`);
  return settled;
}

/** A store that is this many milliseconds away, and so are its hints. */
export function distant(store: Store, clock: VirtualClock, ms: number): Store {
  const trip = async <T>(work: () => Promise<T>): Promise<T> => {
    await clock.sleep(ms);
    const answer = await work();
    await clock.sleep(ms);
    return answer;
  };
  const { queue } = store.native!;
  return {
    read: (...args) => trip(() => store.read(...args)),
    write: (...args) => trip(() => store.write(...args)),
    remove: (...args) => trip(() => store.remove(...args)),
    native: queue && {
      queue: {
        enter(key, ticket, value, { onTurn, ...options }) {
          const late = onTurn && ((turn: QueueTurn) => void clock.sleep(ms).then(() => onTurn(turn)));
          return trip(() => queue.enter(key, ticket, value, { ...options, onTurn: late }));
        },
        pass: (...args) => trip(() => queue.pass(...args)),
        leave: (...args) => trip(() => queue.leave(...args)),
        size: (...args) => trip(() => queue.size(...args)),
      },
    },
  };
}
