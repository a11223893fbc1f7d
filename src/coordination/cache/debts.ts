/**
 * Debts: invalidations that the store could not take, written as soon as it is back.
 *
 * Promise: nothing that is owed is trusted: who reads a key or a tag settles first what is owed of it; what is owed is bounded, and
 * dies with the process.
 * After: FusionCache, auto-recovery.
 */
import { type Clock, callbackTimer } from '../../core/clock.js';

/** How one is written: resolves when the store has it. */
export type Payment = () => Promise<unknown>;

const most = 10_000;
const retryMs = 1_000;

export class Debts {
  /** The newest of each is enough: all say that what is there is void. */
  private readonly owed = new Map<string, Payment>();
  private readonly paying = new Map<string, Promise<unknown>>();
  private readonly clock: Clock;
  private readonly timer = callbackTimer(() => void this.payAll());
  private isArmed = false;
  private isClosed = false;

  constructor(clock: Clock) {
    // Nobody waits: it keeps no process alive.
    this.clock = clock.background ?? clock;
  }

  get isEmpty(): boolean {
    return this.owed.size === 0;
  }

  /** Whether it is taken on: there may be too many. */
  owe(id: string, payment: Payment): boolean {
    if (this.isClosed || (this.owed.size >= most && !this.owed.has(id))) return false;
    this.owed.set(id, payment);
    this.arm();
    return true;
  }

  /** What is owed of it now. */
  of(id: string): Payment | undefined {
    return this.owed.get(id);
  }

  /** What was owed when that was begun which makes it needless. Another one, that came meanwhile, is still owed. */
  cancel(id: string, payment: Payment | undefined): void {
    if (this.owed.get(id) === payment) this.owed.delete(id);
  }

  /** Writes what is owed of these before anybody trusts them; rejects while the store cannot. */
  async settle(ids: Iterable<string>): Promise<void> {
    for (const id of ids) while (this.owed.has(id)) await this.pay(id);
  }

  /** Tries once more, for all, and gives up. */
  async close(): Promise<void> {
    await this.payAll();
    this.isClosed = true;
    this.clock.cancel(this.timer);
  }

  private async payAll(): Promise<void> {
    this.isArmed = false;
    try {
      await this.settle([...this.owed.keys()]);
    } catch {
      this.arm();
    }
  }

  private pay(id: string): Promise<unknown> {
    const there = this.paying.get(id);
    if (there !== undefined) return there;
    const payment = this.owed.get(id)!;
    const paying = payment().then(
      () => {
        this.paying.delete(id);
        this.cancel(id, payment);
      },
      (error) => {
        this.paying.delete(id);
        throw error;
      },
    );
    this.paying.set(id, paying);
    return paying;
  }

  private arm(): void {
    if (this.isArmed || this.isClosed || this.isEmpty) return;
    this.isArmed = true;
    this.clock.schedule(this.timer, this.clock.now() + retryMs);
  }
}
