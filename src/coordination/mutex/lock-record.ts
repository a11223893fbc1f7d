/**
 * Lock record: the value under the key of a lock: its holders, and for how long each may hold it.
 *
 * Promise: it contains no time of a client's clock. A holder's remaining time counts from when the record was written, by the store's clock. When many
 * clients write, it may end late, by the time between a read and the write; never early. A holder's fence is the version of the write that let it
 * in. A writer does not know that version in advance, so the next rewrite of the record puts it down.
 */
import { StoreError } from '../../core/errors.js';
import { Slab } from '../../core/slab.js';
import type { Entry } from '../../stores/store.js';
import type { LockMode } from './line.js';

/** A holder of the key. */
export interface Holder {
  readonly owner: string;
  readonly mode: LockMode;
  /** The lease that a renewal gives it. */
  readonly leaseMs: number;
  /** The time that is left of its lease. */
  readonly leftMs: number;
  /** Renewals so far. A reader that sees the same number for a whole lease knows that the lease is over. */
  readonly renewals: number;
  /** The version of the write that let it in; undefined in that write itself. */
  readonly fence: number | undefined;
}

/** The claim of a writer: new readers must let it go first. */
export interface Claim {
  readonly owner: string;
  readonly leftMs: number;
}

export interface LockRecord {
  readonly holders: readonly Holder[];
  readonly claim?: Claim | undefined;
}

/** A record and its version in the store; 0: there is none. */
export interface Seen {
  readonly version: number;
  readonly record: LockRecord;
  /** When it was read, by this process's clock. */
  readonly atMs: number;
}

export const nothing: Seen = { version: 0, record: { holders: [] }, atMs: 0 };

/** Created on first use: creating them on load would slow down every import. */
let encoder: InstanceType<typeof TextEncoder> | undefined;
let decoder: InstanceType<typeof TextDecoder> | undefined;

const slab = /* @__PURE__ */ new Slab();

export function encodeRecord(record: LockRecord): Uint8Array {
  encoder ??= new TextEncoder();
  const text = JSON.stringify(record);
  const bytes = slab.take(text.length);
  // Text beyond ASCII takes more bytes than characters, so it would not fit. No record written here contains any.
  return encoder.encodeInto(text, bytes).read === text.length ? bytes : encoder.encode(text);
}

/** The record of an entry as of now: with all fences filled in, and without expired holders. */
export function readRecord(key: string, { value, version, ageMs, ttlMs }: Entry, atMs: number): Seen {
  const { holders, claim } = parse(key, value);
  // The record of a lock that was handed over lives for less time than its holder's lease, until the holder has taken it.
  const left = (ms: number) => Math.min(ms - ageMs, ttlMs);
  return {
    version,
    atMs,
    record: {
      holders: holders
        .map((holder) => ({ ...holder, leftMs: left(holder.leftMs), fence: holder.fence ?? version }))
        .filter(({ leftMs }) => leftMs > 0),
      claim: claim !== undefined && left(claim.leftMs) > 0 ? { ...claim, leftMs: left(claim.leftMs) } : undefined,
    },
  };
}

/** A record just written, as a reader would find it. */
export function withFences(record: LockRecord, version: number): LockRecord {
  const { holders, claim } = record;
  return { holders: holders.map((holder) => ({ ...holder, fence: holder.fence ?? version })), claim };
}

/** How long the record is needed. */
export function ttlOf({ holders, claim }: LockRecord): number {
  return holders.reduce((longestMs, { leftMs }) => Math.max(longestMs, leftMs), Math.max(1, claim?.leftMs ?? 0));
}

function parse(key: string, value: Uint8Array): LockRecord {
  let parsed: unknown;
  try {
    decoder ??= new TextDecoder();
    parsed = JSON.parse(decoder.decode(value));
  } catch {
    // The error below covers it.
  }
  if (isRecord(parsed)) return parsed;
  const detail = `"${key}" holds something that is no record of a lock; give the store a "prefix" of its own`;
  throw new StoreError({ store: 'lock', operation: 'read', reason: 'schema', applied: 'no', detail });
}

/** Whatever its parts are, a record that is not understood must not be taken for one without holders: the lock would count as free. */
function isRecord(value: unknown): value is LockRecord {
  const { holders, claim } = (value ?? {}) as Partial<Unchecked<LockRecord>>;
  return Array.isArray(holders) && holders.every(isHolder) && (claim === undefined || isClaim(claim));
}

function isHolder(value: unknown): value is Holder {
  const { mode, leaseMs, renewals, fence } = (value ?? {}) as Partial<Unchecked<Holder>>;
  const isNumbered = Number.isFinite(leaseMs) && Number.isFinite(renewals);
  return (
    isClaim(value) &&
    isNumbered &&
    (mode === 'exclusive' || mode === 'shared') &&
    (fence === undefined || Number.isFinite(fence))
  );
}

function isClaim(value: unknown): value is Claim {
  const { owner, leftMs } = (value ?? {}) as Partial<Unchecked<Claim>>;
  return typeof owner === 'string' && Number.isFinite(leftMs);
}

type Unchecked<T> = { readonly [Name in keyof T]: unknown };
