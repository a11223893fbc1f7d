/**
 * Waiters: those who wait for the answer of one flight, each until his own signal says otherwise.
 *
 * Promise: one caller's abort rejects nobody else; when the last has gone, and nobody is left who cannot go, the flight is aborted.
 */
import { addAbortListener, removeAbortListener } from '../../core/abort-listeners.js';
import { rejectLater } from '../../core/outcome.js';

export class Waiters<V> {
  promise!: Promise<V>;
  isSettled!: boolean;
  /** Somebody waits who will not go, or it goes on for the sake of those to come. */
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

  /** Whoever comes from here on waits for another answer. */
  open(): void {
    this.isSettled = false;
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    // Of a refresh that fails nobody need hear but the events.
    this.promise.catch(() => {});
  }

  /** The answer for one more caller. */
  join(signal: AbortSignal | undefined): Promise<V> {
    if (signal !== undefined) return this.joinUntil(signal);
    this.isPinned = true;
    return this.promise;
  }

  /** What goes on after that goes on for those to come. */
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
