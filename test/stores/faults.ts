/**
 * Faults that every store with a server meets: what a verb answers while the fault lasts, and what the key must hold afterwards. After each fault, an owner who
 * repeats the verb learns its outcome, versions continue above the old ones, and every verb works again.
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
  /** The connection of the store under test, which goes through the proxy. */
  readonly own: Connection;
  /** The store under test. Its `timeout` is short. */
  readonly store: Store;
  /** The timeout of that store. */
  readonly prefix: string;
  /** A store that reaches the server without the proxy. */
  readonly admin: Connection;
  /** Opens another such connection. */
  open(): Promise<Connection>;
}

export interface Fault<Connection> {
  readonly fault: string;
  /** The settings of the server, where the fault needs special ones. */
  readonly settings?: readonly string[];
  /** Whether the fault strikes the server, and so all its clients. */
  readonly strikes: 'network' | 'server';
  strike(place: Place<Connection>): Promise<unknown>;
  heal?(place: Place<Connection>): Promise<unknown>;
  /** What a write answers meanwhile: its failure, or that it was done. */
  readonly verbs: Failure | 'done';
  /** What a removal answers. The default is the answer of a write. */
  readonly removal?: Failure | 'done';
  /** What a read answers: a failure with one of these reasons and `applied: 'no'`, or that it was done. The default is the answer of a write. */
  readonly read?: readonly StoreFailure[] | 'done';
  /** Whether the effect of a failed verb is there when the fault is over. `'lost'`: nothing at all is there. */
  readonly afterwards: 'done' | 'not done' | 'either' | 'lost';
  /** The value has 100 kB. */
  readonly isLarge?: boolean;
}

interface Failure {
  readonly reason: readonly StoreFailure[];
  readonly applied: readonly StoreError['applied'][];
}

export const anyway: Failure['applied'] = ['no', 'unknown'];
export const unknown: Failure['applied'] = ['unknown'];
export const no: Failure['applied'] = ['no'];

/** A connection that breaks. Each client reports that in its own way. */
const broken: Failure = { reason: ['closed', 'failed', 'timeout'], applied: unknown };
const late: Failure = { reason: ['timeout'], applied: unknown };

function network(fault: ProxyFault): Pick<Fault<unknown>, 'strikes' | 'strike' | 'heal'> {
  return { strikes: 'network', strike: ({ proxy }) => proxy.inject(fault), heal: ({ proxy }) => proxy.heal() };
}

/** Ends the fault by a reset, so that what was in transit stays lost. */
async function healByReset({ proxy }: Place<unknown>): Promise<void> {
  proxy.reset();
  await proxy.heal();
}

/** @param settings - Settings with which the server keeps everything that it has answered. */
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
      // It is woken only to be killed, but it may be quick enough to answer first.
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
      // The client has noticed the broken connection.
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
    // What is already in transit continues to drip after the fault is healed.
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
  /** A server with these settings, for this row alone, or for all rows that need no special settings. */
  server(settings: readonly string[] | undefined): Promise<ServerProcess>;
  /** Ends the server, if it was started for this row alone. */
  leave(server: ServerProcess): Promise<void>;
  connect(port: number): Connection | Promise<Connection>;
  close(connection: Connection): unknown;
  storeOf(connection: Connection, options: { readonly timeout: number; readonly prefix: string }): Store;
}

let rows = 0;

type Verb = 'write' | 'remove' | 'read';

/** Strikes at a write, a removal and a read in turn, and checks everything that the row says about the fault. */
export async function endure<Connection>(row: Fault<Connection>, column: Column<Connection>): Promise<void> {
  const server = await column.server(row.settings);
  const proxy = await faultProxy({ port: server.port });
  const [own, admin] = [await column.connect(proxy.port), await column.connect(server.port)];
  const connections = [own, admin];
  // Several rows may share a server.
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
      // The fault must strike the verb, not the first call of a connection. A connection that an earlier fault has broken may only be noticed now.
      await answered(() => patient.read('key'));
      await answered(() => patient.remove('other'));
      await row.strike(place);
      const wanted = wantedOf(row, verb);
      // A busy machine may need more than the short timeout for an answer.
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

/** Asks until the answer is right. Rows run concurrently, which `expect.poll` does not support. */
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

/** Writes, and returns the version, which must be greater than the last one. */
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
  // It ends in time, with a generous allowance for a busy machine.
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

/** The owner recognises itself in the entry in the way, and what was lost is now done. */
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
