/** Gate: at most so many loads at once; the others wait in line, each until it is its turn or it is given up. */
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

  /** Resolves when it is its turn; rejects with the signal's reason. Who got in calls `leave`. */
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
        ...{ previousInQueue: undefined, nextInQueue: undefined },
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
