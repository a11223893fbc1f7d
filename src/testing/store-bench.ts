/**
 * Store bench: the tools of a case of the store conformance suite.
 *
 * Promise: a claim that does not hold ends the case with an error that names the law. All opened stores are closed.
 */

import type { StoreError } from '../core/errors.js';
import { isBytes } from '../core/kinds.js';
import type { ClosableStore, Entry, Refused, Store, StoreWriteOptions, Written } from '../stores/store.js';

export type Case = readonly [name: string, body: (bench: Bench) => Promise<void>];

/** The settings of the store that a case opens. */
export interface ConformanceSettings {
  /** The store's option `prefix`, different for every case. */
  readonly prefix: string;
  /** The store's option `maxValueBytes`. */
  readonly maxValueBytes: number;
}

export const minute = 60_000;

/** The number of clients in cases about concurrency. */
const clientCount = 4;

/** The tools of a case. */
export class Bench {
  /** Different for every case and every run, so that a server can be used again. */
  readonly prefix = `conformance-${globalThis.crypto.randomUUID()}`;
  private readonly opened: Store[] = [];
  /** The milliseconds that the cases have let pass, if they do not wait in real time. */
  private passedMs = 0;
  private readonly law: number;
  private readonly make: (settings: ConformanceSettings) => Store | Promise<Store>;
  private readonly isShared: boolean;
  private readonly passTime: ((ms: number) => Promise<void>) | undefined;
  private readonly maxValueBytes: number;

  constructor(
    law: number,
    make: (settings: ConformanceSettings) => Store | Promise<Store>,
    isShared: boolean,
    passTime: ((ms: number) => Promise<void>) | undefined,
    maxValueBytes: number,
  ) {
    this.law = law;
    this.make = make;
    this.isShared = isShared;
    this.passTime = passTime;
    this.maxValueBytes = maxValueBytes;
  }

  async open(prefix = this.prefix): Promise<Store> {
    const store = await this.make({ prefix, maxValueBytes: this.maxValueBytes });
    this.opened.push(store);
    return store;
  }

  /** Clients of the same entries: several stores if they share a server, else one store several times. */
  async clients(): Promise<Store[]> {
    const first = await this.open();
    const others = Array.from({ length: clientCount - 1 }, () => (this.isShared ? this.open() : first));
    return [first, ...(await Promise.all(others))];
  }

  /** Another client of the same entries: the same store if it does not share them. */
  async other(store: Store): Promise<Store> {
    return this.isShared ? this.open() : store;
  }

  /** Closes one of the stores. False if it cannot be closed. */
  async closes(store: Store): Promise<boolean> {
    await closeAll([store]);
    return (store as Partial<ClosableStore>).close !== undefined;
  }

  async close(): Promise<void> {
    await closeAll(this.opened.splice(0));
  }

  async pass(ms: number): Promise<void> {
    if (this.passTime === undefined) await new Promise((resolve) => globalThis.setTimeout(resolve, ms));
    else await this.passTime(ms);
    this.passedMs += ms;
  }

  /** Milliseconds on a scale that no store sees: real time, or the time that was let pass. */
  now(): number {
    return this.passTime === undefined ? globalThis.performance.now() : this.passedMs;
  }

  /** Throws an error that a law is broken, unless the claim holds. */
  claim(holds: boolean, broken: () => string): asserts holds {
    if (!holds) throw new Error(`law ${this.law} of stores is broken: ${broken()}`);
  }

  /** The error of a case. A TypeError comes from what the store returned, or from the store itself; before there is one, from `make`. */
  brokenBy(error: unknown): unknown {
    if (!(error instanceof TypeError) || this.opened.length === 0) return error;
    const detail = 'a verb threw this, or resolved to something that the contract does not have';
    return new Error(`law ${this.law} of stores is broken: ${detail}: ${error}`, { cause: error });
  }

  same(got: unknown, expected: unknown, what: string): void {
    this.claim(show(got) === show(expected), () => `${what}: expected ${show(expected)}, got ${show(got)}`);
  }

  /** Claims that the verb rejects with a `StoreError` that says that nothing was done; it must neither resolve nor throw synchronously. */
  async refuses(verb: () => Promise<unknown>, reason: StoreError['reason'], what: string): Promise<void> {
    const error = await this.failureOf(verb, what);
    const { code, applied, reason: given } = error as Partial<StoreError>;
    this.claim(code === 'ERR_STORE', () => `${what}: expected a StoreError, got ${show(error)}`);
    this.same({ reason: given, applied }, { reason, applied: 'no' }, `${what}: the StoreError`);
  }

  async failureOf(verb: () => Promise<unknown>, what: string): Promise<unknown> {
    let promise: Promise<unknown>;
    try {
      promise = verb();
    } catch (error) {
      this.claim(false, () => `${what}: the verb must reject, it threw ${show(error)}`);
    }
    const outcome = await promise.then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    );
    this.claim('error' in outcome, () => `${what}: expected a failure, got ${show(outcome)}`);
    return outcome.error;
  }

  /** A write that must succeed. */
  async put(store: Store, key: string, value: string, options: Partial<StoreWriteOptions> = {}): Promise<number> {
    const answer = await store.write(key, bytes(value), { ttlMs: minute, ...options });
    this.claim(answer?.ok, () => `write "${value}" with ${show(options)} must succeed, got ${show(answer)}`);
    const { version } = answer;
    this.claim(
      Number.isSafeInteger(version) && version > 0,
      () => `a version must be a positive safe integer: ${version}`,
    );
    return version;
  }

  /** A write that must be refused; returns the entry in the way. */
  async blocked(store: Store, key: string, ifVersion: number): Promise<Entry | undefined> {
    const answer: Written | Refused = await store.write(key, bytes('blocked'), { ttlMs: minute, ifVersion });
    this.claim(!answer.ok, () => `a write if ${ifVersion} must be refused, got ${show(answer)}`);
    return answer.entry;
  }

  async holds(store: Store, key: string, value: string | undefined, version?: number): Promise<void> {
    this.showsEntry(await store.read(key), value, version, 'a read');
  }

  showsEntry(entry: Entry | undefined, value: string | undefined, version: number | undefined, what: string): void {
    if (entry?.value !== undefined && !isBytes(entry.value)) {
      this.claim(false, () => `${what}: the value must be a Uint8Array, got ${show(entry.value)}`);
    }
    this.same(entry && text(entry.value), value, `${what}: the value`);
    if (version !== undefined) this.same(entry?.version, version, `${what}: the version`);
  }
}

/** Runs a case and then closes its stores. What the case has found comes before what closing says. */
export async function runAndClose(bench: { close(): Promise<void> }, run: () => Promise<void>): Promise<void> {
  try {
    await run();
  } catch (error) {
    await bench.close().catch(() => {});
    throw error;
  }
  await bench.close();
}

/** Closes each of the stores that can be closed; rejects with what the first says that fails. */
export async function closeAll(stores: Iterable<Store>): Promise<void> {
  const failures: unknown[] = [];
  for (const store of stores) {
    try {
      await (store as Partial<ClosableStore>).close?.();
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}

export function bytes(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

export function text(value: Uint8Array): string {
  return new TextDecoder().decode(value);
}

export function isSame(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((byte, index) => byte === other[index]);
}

/** A short text that distinguishes `1` from `'1'`. */
export function show(value: unknown): string {
  if (value instanceof Error) return String(value);
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  if (typeof value !== 'object' && typeof value !== 'string') return String(value);
  const shown =
    JSON.stringify(value, (_, inner) => (inner instanceof Uint8Array ? text(inner) : inner)) ?? String(value);
  return shown.length > 300 ? `${shown.slice(0, 300)}...` : shown;
}
