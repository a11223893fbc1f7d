/** Gate: bounds how many loads run at once. The others queue, each until its turn comes or it is aborted. */
import { LinkedQueue, type QueueNode } from '../../structures/linked-queue.js';

interface Waiter extends QueueNode<Waiter> {
  go(): void;
}

export class Gate {
  private free: number;
  private readonly waiters = new LinkedQueue<Waiter>();

  constructor(limit: number) {
    this.free = limit;
  }

  /** Resolves when it is the caller's turn, undefined if that is now; rejects with the signal's reason. The caller must call `leave` after its turn. */
  enter(signal: AbortSignal): Promise<void> | undefined {
    if (this.free > 0) {
      this.free--;
      return undefined;
    }
    if (signal.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const give = () => {
        this.waiters.remove(waiter);
        reject(signal.reason);
      };
      const waiter: Waiter = {
        previousInQueue: undefined,
        nextInQueue: undefined,
        go() {
          signal.removeEventListener('abort', give);
          resolve();
        },
      };
      this.waiters.add(waiter);
      signal.addEventListener('abort', give);
    });
  }

  leave(): void {
    const { first } = this.waiters;
    if (first === undefined) this.free++;
    else {
      this.waiters.remove(first);
      first.go();
    }
  }
}
