/**
 * Local line: a lock of one process, without a store and without a lease that could expire.
 *
 * Promise: a release passes the lock on in the same instant, so no caller overtakes a waiter. The cost per waiter does not depend on how many wait.
 * Readers and writers are served in order of arrival, so neither starves.
 */
import type { Clock } from '../../core/clock.js';
import { LinkedQueue, type QueueNode } from '../../structures/linked-queue.js';
import { LeaseBase, type LeaseRelease } from './lease-handle.js';
import { Line, type LockMode, type LockView } from './line.js';

export class LocalLine extends Line {
  private readonly holders = new LinkedQueue<LocalLease>();
  private isExclusive = false;

  protected get waitClock(): Clock {
    return this.settings.clock;
  }

  takeNow(mode: LockMode): LocalLease | undefined {
    return this.waiters.size === 0 && this.hasRoom(mode) ? this.grant(mode) : undefined;
  }

  /** A lock that is free was already taken by `takeNow`. */
  async tryTake(): Promise<undefined> {}

  async view(): Promise<LockView> {
    const holders = [];
    for (let lease = this.holders.first; lease !== undefined; lease = lease.nextInQueue) {
      const { owner, fence, mode } = lease;
      holders.push({ owner, fence, mode, remainingMs: Number.POSITIVE_INFINITY });
    }
    // Hooks and listeners may call this after a holder has gone and before the next is let in.
    if (this.holders.size === 0 && this.waiters.size === 0) this.settings.onIdle(this);
    return { holders, queueLength: this.waiters.size };
  }

  async forceRelease(): Promise<boolean> {
    const { first } = this.holders;
    // A listener may acquire again in the same instant: the lease it gets then is not taken away.
    const newest = this.settings.nextLocalFence();
    for (let lease = first; lease !== undefined && lease.fence < newest; lease = this.holders.first) {
      this.drop(lease);
      lease.takeAway();
      this.settings.noteLost(lease, 'taken');
    }
    this.passOn();
    return first !== undefined;
  }

  /** @internal */
  giveBack(lease: LocalLease): void {
    this.drop(lease);
    this.settings.noteReleased(lease, 'released');
    this.passOn();
  }

  protected onArrival(): void {}

  /** Readers behind a writer that has left may now join the readers in front of it. */
  protected onDeparture(): void {
    this.passOn();
  }

  private hasRoom(mode: LockMode): boolean {
    const { size } = this.holders;
    return mode === 'exclusive' ? size === 0 : !this.isExclusive && size < this.settings.permits;
  }

  private passOn(): void {
    for (let first = this.waiters.first; first !== undefined; first = this.waiters.first) {
      if (!this.hasRoom(first.mode)) return;
      this.answer(first, this.grant(first.mode));
    }
    if (this.holders.size === 0) this.settings.onIdle(this);
  }

  private grant(mode: LockMode): LocalLease {
    const lease = new LocalLease(this, mode, this.settings.nextLocalFence(), this.settings.name);
    this.holders.add(lease);
    this.isExclusive = mode === 'exclusive';
    return lease;
  }

  private drop(lease: LocalLease): void {
    this.holders.remove(lease);
    this.isExclusive = false;
  }
}

class LocalLease extends LeaseBase implements QueueNode<LocalLease> {
  previousInQueue: LocalLease | undefined = undefined;
  nextInQueue: LocalLease | undefined = undefined;
  readonly fence: number;
  readonly mode: LockMode;
  protected readonly policy: string;
  private current: 'held' | 'lost' | 'released' = 'held';
  private readonly line: LocalLine;

  constructor(line: LocalLine, mode: LockMode, fence: number, policy: string) {
    super();
    this.line = line;
    this.mode = mode;
    this.fence = fence;
    this.policy = policy;
  }

  get key(): string {
    return this.line.key;
  }

  /** Fences are unique within a process. */
  get owner(): string {
    return `local:${this.fence}`;
  }

  get state(): 'held' | 'lost' | 'released' {
    return this.current;
  }

  remaining(): number {
    return this.current === 'held' ? Number.POSITIVE_INFINITY : 0;
  }

  async extend(duration?: Parameters<LeaseBase['extend']>[0]): Promise<number> {
    this.checkExtension(duration, {});
    this.assertHeld();
    return this.remaining();
  }

  release(): Promise<LeaseRelease> {
    if (this.current === 'held') {
      this.current = 'released';
      this.line.giveBack(this);
    }
    return this.current === 'lost' ? lost : released;
  }

  /** @internal */
  takeAway(): void {
    this.current = 'lost';
    this.noteLoss('taken');
  }
}

const released: Promise<LeaseRelease> = /* @__PURE__ */ Promise.resolve<LeaseRelease>('released');
const lost: Promise<LeaseRelease> = /* @__PURE__ */ Promise.resolve<LeaseRelease>('lost');
