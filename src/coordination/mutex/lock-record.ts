/**
 * Lock record: what a store holds under the key of a lock: who has it, and for how long.
 *
 * Promise: no client's clock goes in. What is left of a holder's time is counted from when the record was written, by the store's clock; it
 * ends late by the time between reading and writing where many write, never early. A holder's fence is the version of the write that let it
 * in: the first to rewrite the record puts it down, since who writes does not know the version in advance.
 */
import { StoreError } from '../../core/errors.js';
import { Slab } from '../../core/slab.js';
import type { Entry } from '../../stores/store.js';
import type { LockMode } from './line.js';

/** One who holds the key. */
export interface Holder {
  readonly owner: string;
  readonly mode: LockMode;
  /** How long its lease is when it is renewed. */
  readonly leaseMs: number;
  /** What is left of it. */
  readonly leftMs: number;
  /** Renewals so far: who sees the same number for as long as a lease knows that it is over. */
  readonly renewals: number;
  /** The version of the write that let it in; undefined in that very write. */
  readonly fence: number | undefined;
}

/** A writer that readers must let pass. */
export interface Claim {
  readonly owner: string;
  readonly leftMs: number;
}

export interface LockRecord {
  readonly holders: readonly Holder[];
  readonly claim?: Claim | undefined;
}

/** A record and the version it has in the store; 0: there is none. */
export interface Seen {
  readonly version: number;
  readonly record: LockRecord;
  /** When it was seen, on this process's clock. */
  readonly atMs: number;
}

export const nothing: Seen = { version: 0, record: { holders: [] }, atMs: 0 };

/** Made when they are first needed: making them takes time of every import. */
let encoder: InstanceType<typeof TextEncoder> | undefined;
let decoder: InstanceType<typeof TextDecoder> | undefined;

const slab = /* @__PURE__ */ new Slab();

export function encodeRecord(record: LockRecord): Uint8Array {
  encoder ??= new TextEncoder();
  const text = JSON.stringify(record);
  const bytes = slab.take(text.length);
  // What is not ASCII takes more bytes than there are; nothing that is written here is.
  return encoder.encodeInto(text, bytes).read === text.length ? bytes : encoder.encode(text);
}

/** What an entry says now: with all fences, and without those whose time is over. */
export function readRecord(key: string, { value, version, ageMs, ttlMs }: Entry, atMs: number): Seen {
  const { holders, claim } = parse(key, value);
  // What was handed over lives shorter than it says, until its owner has taken it.
  const left = (ms: number) => Math.min(ms - ageMs, ttlMs);
  return {
    ...{ version, atMs },
    record: {
      holders: holders
        .map((holder) => ({ ...holder, leftMs: left(holder.leftMs), fence: holder.fence ?? version }))
        .filter(({ leftMs }) => leftMs > 0),
      claim: claim !== undefined && left(claim.leftMs) > 0 ? { ...claim, leftMs: left(claim.leftMs) } : undefined,
    },
  };
}

/** A record that was written just now, as a reader would find it. */
export function withFences(record: LockRecord, version: number): LockRecord {
  const { holders, claim } = record;
  return { holders: holders.map((holder) => ({ ...holder, fence: holder.fence ?? version })), claim };
}

/** Until when the record is needed. */
export function ttlOf({ holders, claim }: LockRecord): number {
  return holders.reduce((longestMs, { leftMs }) => Math.max(longestMs, leftMs), Math.max(1, claim?.leftMs ?? 0));
}

function parse(key: string, value: Uint8Array): LockRecord {
  let parsed: Partial<LockRecord> | null = null;
  try {
    decoder ??= new TextDecoder();
    parsed = JSON.parse(decoder.decode(value));
  } catch {
    // Said below.
  }
  if (Array.isArray(parsed?.holders)) return parsed as LockRecord;
  const detail = `"${key}" holds something that is no record of a lock; give the store a "prefix" of its own`;
  throw new StoreError({ store: 'lock', operation: 'read', reason: 'schema', applied: 'no', detail });
}
