/**
 * Debts: invalidations that the store could not take, written as soon as it is back.
 *
 * Promise: nothing with a debt is trusted: a reader of a key or a tag first settles what is owed for it. Debts are bounded, and
 * are lost when the process ends.
 * After: FusionCache, auto-recovery.
 */
import { type Clock, callbackTimer } from '../../core/clock.js';

/** Writes one debt; resolves when the store has it. */
export type Payment = () => Promise<unknown>;

const most = 10_000;
const retryMs = 1_000;

export class Debts {
  /** One debt per key or tag is enough: each says that the current entry is invalid. */
  private readonly owed = new Map<string, Payment>();
  private readonly paying = new Map<string, Promise<unknown>>();
  private readonly clock: Clock;
  private readonly timer = callbackTimer(() => void this.payAll());
  private isArmed = false;
  private isClosed = false;

  constructor(clock: Clock) {
    // Nobody waits for it, so it does not keep the process alive.
    this.clock = clock.background ?? clock;
  }

  get isEmpty(): boolean {
    return this.owed.size === 0;
  }

  /** False if the debt is not accepted, because there are too many or the cache is closed. */
  owe(id: string, payment: Payment): boolean {
    if (this.isClosed || (this.owed.size >= most && !this.owed.has(id))) return false;
    this.owed.set(id, payment);
    this.arm();
    return true;
  }

  /** What is currently owed for it. */
  of(id: string): Payment | undefined {
    return this.owed.get(id);
  }

  /** Drops the debt that was owed when the write that makes it needless began. A debt that came after that stays. */
  cancel(id: string, payment: Payment | undefined): void {
    if (this.owed.get(id) === payment) this.owed.delete(id);
  }

  /** Writes the debts of these keys or tags; rejects while the store cannot take them. */
  async settle(ids: Iterable<string>): Promise<void> {
    for (const id of ids) while (this.owed.has(id)) await this.pay(id);
  }

  /** Tries to write every debt once more, and gives up. */
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
