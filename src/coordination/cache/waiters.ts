/**
 * Waiters: the callers that wait for the answer of one flight, each until its own signal aborts.
 *
 * Promise: one caller's abort rejects no other. The flight is aborted when its last caller has gone, unless a caller without a signal waits.
 */
import { addAbortListener, removeAbortListener } from '../../core/abort-listeners.js';
import { rejectLater } from '../../core/outcome.js';

export class Waiters<V> {
  promise!: Promise<V>;
  isSettled!: boolean;
  /** A caller without a signal waits, or the flight goes on for later callers: no abort ends it. */
  private isPinned: boolean;
  private callers = 0;
  private resolve!: (value: V) => void;
  private reject!: (error: unknown) => void;
  private readonly flight: { abort(reason: unknown): void };

  constructor(flight: { abort(reason: unknown): void }, isPinned: boolean) {
    this.flight = flight;
    this.isPinned = isPinned;
    this.open();
  }

  /** From here on, new callers wait for another answer. */
  open(): void {
    this.isSettled = false;
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    // A refresh that fails need not be handled by anybody; the events report it.
    this.promise.catch(() => {});
  }

  /** The answer, for one more caller. */
  join(signal: AbortSignal | undefined): Promise<V> {
    if (signal !== undefined) return this.joinUntil(signal);
    this.isPinned = true;
    return this.promise;
  }

  /** Whatever goes on after that goes on for later callers, so no abort ends it. */
  settle(value: V): void {
    this.isSettled = true;
    this.isPinned = true;
    this.resolve(value);
  }

  fail(error: unknown): void {
    this.isSettled = true;
    this.reject(error);
  }

  private joinUntil(signal: AbortSignal): Promise<V> {
    if (signal.aborted) return rejectLater(signal.reason);
    this.callers++;
    return new Promise((resolve, reject) => {
      const leave = () => {
        reject(signal.reason);
        this.callers--;
        if (this.callers === 0 && !this.isPinned) this.flight.abort(signal.reason);
      };
      const stay = () => removeAbortListener(signal, leave);
      addAbortListener(signal, leave);
      this.promise.then(
        (value) => {
          stay();
          resolve(value);
        },
        (error) => {
          stay();
          reject(error);
        },
      );
    });
  }
}
