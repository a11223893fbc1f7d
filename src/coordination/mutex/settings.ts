/** The settings that all lines of one lock object share: its checked options, and its events. */
import type { Clock } from '../../core/clock.js';
import { LockUnavailableError, StoreError } from '../../core/errors.js';
import { Events, type HoldfastEvent } from '../../core/events.js';
import type { Store } from '../../stores/store.js';
import type { LeaseBase, LeaseRelease, LossReason } from './lease-handle.js';
import type { Line } from './line.js';

/** The checked options of a lock object. */
export interface CheckedLockOptions {
  readonly kind: 'mutex' | 'semaphore' | 'leader';
  readonly name: string;
  readonly on: ((event: HoldfastEvent) => void) | undefined;
  readonly clock: Clock;
  readonly random: () => number;
  readonly store: Store | undefined;
  readonly ttl: number;
  readonly margin: number;
  readonly renewEvery: number | undefined;
  readonly wait: number;
  readonly queue: number;
  readonly stack: boolean;
  /** How many may share a key: the permits of a semaphore; unlimited for readers. */
  readonly permits: number;
  /** Each caller has its own place in the store's queue. */
  readonly fair?: boolean;
  readonly afterRestart?: 'grant' | 'wait';
}

/** The least estimate: a coarse clock may measure 0, from which no factor leads back. */
const shortestTripMs = 0.1;

export class LockSettings {
  readonly name: string;
  readonly kind: CheckedLockOptions['kind'];
  readonly clock: Clock;
  /** For timers that must not keep the process alive. */
  readonly background: Clock;
  readonly random: () => number;
  readonly events: Events;
  readonly store: Store | undefined;
  readonly ttlMs: number;
  readonly marginMs: number;
  readonly renewEveryMs: number | undefined;
  readonly waitMs: number;
  readonly queue: number;
  readonly stack: boolean;
  readonly permits: number;
  readonly isFair: boolean;
  /** How long a store grants nothing after a restart; undefined: it need not wait. */
  readonly quietMs: number | undefined;
  /** Estimates the store's response time; starts with that of a nearby store. */
  tripMs = 1;
  private readonly lines: Map<string, Line>;
  private lastLocalFence: number;

  constructor(options: CheckedLockOptions, lines: Map<string, Line>) {
    this.name = options.name;
    this.kind = options.kind;
    this.clock = options.clock;
    this.background = options.clock.background ?? options.clock;
    this.random = options.random;
    this.events = new Events(options.name, options.on);
    this.store = options.store;
    this.ttlMs = options.ttl;
    this.marginMs = options.margin;
    this.renewEveryMs = options.renewEvery;
    this.waitMs = options.wait;
    this.queue = options.queue;
    this.stack = options.stack;
    this.permits = options.permits;
    this.isFair = options.fair === true;
    this.quietMs = options.afterRestart === 'wait' ? options.ttl : undefined;
    this.lines = lines;
    // Fences then grow from one run of the program to the next, unless it grants a million locks per second.
    this.lastLocalFence = Math.floor(options.clock.wallNow()) * 1000;
  }

  nextLocalFence(): number {
    return ++this.lastLocalFence;
  }

  /** Keeps the estimate near the median: one reply that was held up for long counts no more than one that took a little longer than usual. */
  noteTrip(ms: number): void {
    this.tripMs = Math.max(shortestTripMs, ms < this.tripMs ? (this.tripMs + ms) / 2 : this.tripMs * 1.25);
  }

  onIdle(line: Line): void {
    if (this.lines.get(line.key) === line) this.lines.delete(line.key);
  }

  /** @param sinceMs - When its owner began to wait; undefined if it did not wait. */
  noteAcquired(lease: LeaseBase, sinceMs?: number): void {
    const { events, name } = this;
    if (!events.heard) return;
    const nowMs = this.clock.now();
    lease.acquiredMs = nowMs;
    const waitedMs = nowMs - (sinceMs ?? nowMs);
    events.emit({ type: 'lock-acquired', name, key: lease.key, fence: lease.fence, waitedMs });
  }

  noteReleased(lease: LeaseBase, result: LeaseRelease): void {
    const { events, name } = this;
    if (!events.heard) return;
    const nowMs = this.clock.now();
    // It may have been acquired before anybody listened.
    const heldMs = nowMs - (lease.acquiredMs ?? nowMs);
    events.emit({ type: 'lock-released', name, key: lease.key, fence: lease.fence, heldMs, result });
  }

  noteLost(lease: LeaseBase, reason: LossReason): void {
    const { events, name } = this;
    if (events.heard) events.emit({ type: 'lock-lost', name, key: lease.key, fence: lease.fence, reason });
  }

  noteForced(key: string): void {
    const { events, name } = this;
    if (events.heard) events.emit({ type: 'lock-force-released', name, key });
  }

  noteUnavailable(key: string, waitedMs: number, error: unknown): void {
    const { events, name } = this;
    if (!events.heard) return;
    const reason =
      error instanceof LockUnavailableError ? error.reason : error instanceof StoreError ? 'store' : 'aborted';
    events.emit({ type: 'lock-unavailable', name, key, reason, waitedMs, error });
  }
}
