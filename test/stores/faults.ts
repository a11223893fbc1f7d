/**
 * Faults that every store with a server meets: what a verb answers while one lasts, and what the key must hold when it is over.
 * After each, an owner who repeats his verb is told what became of it, versions go on above, and every verb works again.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Store, StoreError, type StoreFailure } from 'holdfast';
import { type FaultProxy, faultProxy, type ProxyFault } from 'holdfast/testing';
import { expect } from 'vitest';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { bytes } from './support.ts';

const ttlMs = 600_000;
const timeout = 150;

/** What a fault works with. */
export interface Place<Connection> {
  readonly server: ServerProcess;
  readonly proxy: FaultProxy;
  /** The connection of the store that is looked at, through the proxy. */
  readonly own: Connection;
  /** The store that is looked at; its `timeout` is short. */
  readonly store: Store;
  /** Of the store. */
  readonly prefix: string;
  /** Reaches the server without the proxy. */
  readonly admin: Connection;
  /** Opens another such connection. */
  open(): Promise<Connection>;
}

export interface Fault<Connection> {
  readonly fault: string;
  /** Of the server, where it needs one that differs. */
  readonly settings?: readonly string[];
  /** Whether it strikes the server, with all who are at it. */
  readonly strikes: 'network' | 'server';
  strike(place: Place<Connection>): Promise<unknown>;
  heal?(place: Place<Connection>): Promise<unknown>;
  /** What a write answers meanwhile: its failure, or that it is done. */
  readonly verbs: Failure | 'done';
  /** What a removal answers. By default as a write. */
  readonly removal?: Failure | 'done';
  /** What a read answers: a failure of one of these reasons with `applied: 'no'`, or that it is done. By default as a write. */
  readonly read?: readonly StoreFailure[] | 'done';
  /** Whether what failed is there when the fault is over. `'lost'`: nothing is there at all. */
  readonly afterwards: 'done' | 'not done' | 'either' | 'lost';
  /** The value is of 100 kB. */
  readonly isLarge?: boolean;
}

interface Failure {
  readonly reason: readonly StoreFailure[];
  readonly applied: readonly StoreError['applied'][];
}

export const anyway: Failure['applied'] = ['no', 'unknown'];
export const unknown: Failure['applied'] = ['unknown'];
export const no: Failure['applied'] = ['no'];

/** A connection that breaks; how the client says so differs. */
const broken: Failure = { reason: ['closed', 'failed', 'timeout'], applied: unknown };
const late: Failure = { reason: ['timeout'], applied: unknown };

function network(fault: ProxyFault): Pick<Fault<unknown>, 'strikes' | 'strike' | 'heal'> {
  return { strikes: 'network', strike: ({ proxy }) => proxy.inject(fault), heal: ({ proxy }) => proxy.heal() };
}

/** By a reset: what is on its way stays lost. */
async function healByReset({ proxy }: Place<unknown>): Promise<void> {
  proxy.reset();
  await proxy.heal();
}

/** @param settings - With which the server keeps all that it has answered. */
export const commonFaults = (settings: readonly string[] = []): readonly Fault<unknown>[] => [
  {
    fault: 'a server that is killed and keeps everything',
    settings,
    strikes: 'server',
    strike: ({ server }) => server.kill(),
    heal: ({ server }) => server.start(),
    verbs: { reason: ['timeout', 'closed', 'failed'], applied: anyway },
    afterwards: 'not done',
  },
  {
    fault: 'a server that is frozen and wakes',
    strikes: 'server',
    strike: async ({ server }) => server.freeze(),
    heal: async ({ server }) => server.wake(),
    verbs: late,
    afterwards: 'done',
  },
  {
    fault: 'a server that is frozen and then killed',
    settings,
    strikes: 'server',
    strike: async ({ server }) => server.freeze(),
    async heal({ server }) {
      // It is woken to be killed, and may be quick.
      await server.kill();
      await server.start();
    },
    verbs: late,
    afterwards: 'either',
  },
  {
    fault: 'a request that is lost',
    ...network({ kind: 'cut', direction: 'requests', afterBytes: 0 }),
    verbs: broken,
    afterwards: 'not done',
  },
  {
    fault: 'a request that is cut in the middle',
    ...network({ kind: 'cut', direction: 'requests', afterBytes: 50 }),
    verbs: broken,
    afterwards: 'not done',
  },
  {
    fault: 'a large request that is cut in the middle',
    ...network({ kind: 'cut', direction: 'requests', afterBytes: 40_000 }),
    isLarge: true,
    verbs: broken,
    ...{ removal: 'done', read: 'done' },
    afterwards: 'not done',
  },
  {
    fault: 'a reply that is lost after the verb was done',
    ...network({ kind: 'cut', direction: 'replies', afterBytes: 0 }),
    verbs: broken,
    afterwards: 'done',
  },
  {
    fault: 'a reply that is cut after a byte',
    ...network({ kind: 'cut', direction: 'replies', afterBytes: 1 }),
    verbs: broken,
    afterwards: 'done',
  },
  {
    fault: 'a reply that is cut in the middle',
    ...network({ kind: 'cut', direction: 'replies', afterBytes: 2 }),
    verbs: broken,
    afterwards: 'done',
  },
  {
    fault: 'a large reply that is cut in the middle',
    ...network({ kind: 'cut', direction: 'replies', afterBytes: 40_000 }),
    isLarge: true,
    verbs: 'done',
    read: broken.reason,
    afterwards: 'done',
  },
  {
    fault: 'a blackhole that ends',
    ...network({ kind: 'blackhole' }),
    verbs: late,
    afterwards: 'done',
  },
  {
    fault: 'a blackhole that ends by a reset',
    ...network({ kind: 'blackhole' }),
    heal: healByReset,
    verbs: late,
    afterwards: 'not done',
  },
  {
    fault: 'a connection that is half open',
    ...network({ kind: 'half-open' }),
    verbs: broken,
    afterwards: 'not done',
  },
  {
    fault: 'a server that refuses connections',
    ...network({ kind: 'refuse' }),
    async strike({ proxy, store }) {
      await proxy.inject({ kind: 'refuse' });
      // The client has noticed.
      const told = () => store.write('other', bytes('lost'), { ttlMs }).catch(({ applied }: StoreError) => applied);
      await until(told, (applied) => applied === 'no');
    },
    verbs: { reason: ['timeout', 'closed'], applied: no },
    afterwards: 'not done',
  },
  {
    fault: 'a network that is slower than the timeout',
    ...network({ kind: 'latency', delay: 2 * timeout }),
    verbs: late,
    afterwards: 'done',
  },
  {
    fault: 'a network that drips',
    ...network({ kind: 'drip', bytes: 1, every: 100, direction: 'requests' }),
    // What is on its way drips on, fault or none.
    heal: healByReset,
    verbs: late,
    afterwards: 'not done',
  },
  {
    fault: 'a network that is slow',
    ...network({ kind: 'latency', delay: 20 }),
    verbs: 'done',
    afterwards: 'done',
  },
  {
    fault: 'replies that come byte by byte',
    ...network({ kind: 'drip', bytes: 1, every: 1, direction: 'replies' }),
    verbs: 'done',
    afterwards: 'done',
  },
];

/** How a column of the matrix opens what it needs. */
export interface Column<Connection> {
  /** A server with these settings, for this row alone or for all that need no other. */
  server(settings: readonly string[] | undefined): Promise<ServerProcess>;
  /** Ends it, if it was for this row alone. */
  leave(server: ServerProcess): Promise<void>;
  connect(port: number): Connection | Promise<Connection>;
  close(connection: Connection): unknown;
  storeOf(connection: Connection, options: { readonly timeout: number; readonly prefix: string }): Store;
}

let rows = 0;

type Verb = 'write' | 'remove' | 'read';

/** Strikes at a write, a removal and a read, one after the other, and checks all that is said of the fault. */
export async function endure<Connection>(row: Fault<Connection>, column: Column<Connection>): Promise<void> {
  const server = await column.server(row.settings);
  const proxy = await faultProxy({ port: server.port });
  const [own, admin] = [await column.connect(proxy.port), await column.connect(server.port)];
  const connections = [own, admin];
  // Rows may have a server in common.
  const prefix = `row-${++rows}`;
  const store = column.storeOf(own, { timeout, prefix });
  const patient = column.storeOf(own, { timeout: 10_000, prefix });
  const open = async () => {
    const connection = await column.connect(server.port);
    connections.push(connection);
    return connection;
  };
  const place: Place<Connection> = { server, proxy, own, store, prefix, admin, open };
  const value = row.isLarge ? 'x'.repeat(100_000) : '';
  const values = { old: `old${value}`, new: `new${value}` };
  try {
    let last = 0;
    for (const verb of ['write', 'remove', 'read'] as const) {
      last = await put(patient, values.old, last);
      // What is struck is the verb, not its first call ever. A connection that an earlier fault has struck may be found out only now.
      await answered(() => patient.read('key'));
      await answered(() => patient.remove('other'));
      await row.strike(place);
      const wanted = wantedOf(row, verb);
      // A busy machine may need more than the short timeout for what is answered.
      const isLate = wanted !== 'done' && wanted.reason.includes('timeout');
      const outcome = await settle(isLate ? store : patient, verb, values.new, last);
      await row.heal?.(place);
      check(wanted, verb, outcome);
      const allowed = expected(row, verb, wanted);
      await until(
        () => held(patient),
        (found) => allowed.includes(found),
      );
      await repeat(patient, verb, values.new, last);
    }
    last = await put(patient, values.new, last);
    expect(await held(patient)).toBe('new');
    expect(await patient.remove('key', { ifVersion: last })).toBe(true);
  } finally {
    await proxy.close();
    for (const connection of connections) await column.close(connection);
    await column.leave(server);
  }
}

/** Asks until the answer will do. Rows run at the same time, which `expect.poll` does not know how to. */
export async function until<T>(ask: () => Promise<T>, holds: (answer: T) => boolean, withinMs = 60_000): Promise<T> {
  const endsAtMs = performance.now() + withinMs;
  for (;;) {
    const answer = await ask();
    if (holds(answer)) return answer;
    if (performance.now() > endsAtMs) throw new Error(`${withinMs} ms later the answer is still ${String(answer)}`);
    await sleep(10);
  }
}

/** Repeats a verb until it is answered, as soon as there is a connection again. */
export async function answered<T>(verb: () => Promise<T>): Promise<T> {
  const outcome = await until(
    () =>
      verb().then(
        (answer) => ({ answer }),
        (error: unknown) => ({ error }),
      ),
    (one) => 'answer' in one || !(one.error instanceof StoreError),
  );
  if ('error' in outcome) throw outcome.error;
  return outcome.answer;
}

/** Writes, and says by which version, which must be above the last. */
async function put(store: Store, value: string, last: number): Promise<number> {
  const answer = await answered(() => store.write('key', bytes(value), { ttlMs }));
  const version = answer.ok ? answer.version : 0;
  expect(version).toBeGreaterThan(last);
  return version;
}

async function settle(store: Store, verb: Verb, value: string, ifVersion: number): Promise<unknown> {
  const beganMs = performance.now();
  const promise =
    verb === 'write'
      ? store.write('key', bytes(value), { ttlMs, ifVersion })
      : verb === 'remove'
        ? store.remove('key', { ifVersion })
        : store.read('key');
  const outcome = await promise.catch((error: unknown) => error);
  // In time, and a good deal for a machine that is busy.
  expect(performance.now() - beganMs).toBeLessThan(timeout + 30_000);
  return outcome;
}

function wantedOf({ verbs, removal = verbs, read }: Fault<never>, verb: Verb): Failure | 'done' {
  if (verb === 'remove') return removal;
  if (verb === 'write') return verbs;
  const reason = read ?? (verbs === 'done' ? 'done' : verbs.reason);
  return reason === 'done' ? 'done' : { reason, applied: no };
}

function check(wanted: Failure | 'done', verb: Verb, outcome: unknown): void {
  if (wanted === 'done') return expect(outcome).not.toBeInstanceOf(Error);
  expect(outcome).toBeInstanceOf(StoreError);
  const { reason, applied, operation } = outcome as StoreError;
  expect([verb, wanted.reason]).toEqual([operation, expect.arrayContaining([reason])]);
  expect(wanted.applied).toContain(applied);
}

function expected({ afterwards }: Fault<never>, verb: Verb, wanted: Failure | 'done'): string[] {
  const done = { write: 'new', remove: 'nothing', read: 'old' }[verb];
  if (afterwards === 'lost') return ['nothing'];
  if (wanted === 'done' || afterwards === 'done') return [done];
  return afterwards === 'either' ? ['old', done] : ['old'];
}

async function held(store: Store): Promise<string> {
  try {
    const entry = await store.read('key');
    return entry === undefined ? 'nothing' : new TextDecoder().decode(entry.value.subarray(0, 3));
  } catch {
    return 'a failure';
  }
}

/** The owner knows himself in what is in the way, and what was lost is done now. */
async function repeat(store: Store, verb: Verb, value: string, ifVersion: number): Promise<void> {
  if (verb === 'write') {
    const again = await answered(() => store.write('key', bytes(value), { ttlMs, ifVersion }));
    const inTheWay = again.ok ? 'nothing' : again.entry && new TextDecoder().decode(again.entry.value);
    expect(['nothing', value, undefined]).toContain(inTheWay);
  } else if (verb === 'remove') {
    await answered(() => store.remove('key', { ifVersion }));
    expect(await held(store)).toBe('nothing');
  }
}
