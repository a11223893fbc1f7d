/**
 * Batch: keys that were asked for together are looked up by one trip, and those that must be loaded are loaded by one call.
 *
 * Promise: a key that is found, or that somebody else loads, holds nobody up; each key has an outcome of its own.
 */
import type { Clock } from '../../core/clock.js';
import type { Backing, Seen } from './backing.js';
import type { Flight } from './flight.js';
import type { Gate } from './gate.js';
import { loadContext, type ManyLoader } from './loader.js';

/** What a batch needs of its cache. */
export interface BatchSettings<V, K> {
  readonly loader: ManyLoader<V, K> | undefined;
  readonly gate: Gate | undefined;
  readonly clock: Clock;
  readonly hardTimeoutMs: number;
}

interface Wanted<V, K> {
  readonly key: K;
  readonly signal: AbortSignal;
  /** When its flight gives it up. */
  readonly endsMs: number;
  readonly resolve: (value: V) => void;
  readonly reject: (error: unknown) => void;
}

export class Batch<V, K> {
  private readonly settings: BatchSettings<V, K>;
  /** Flights that have not said yet whether they need a load. */
  private readonly undecided = new Map<Flight<V, K>, K>();
  private readonly wanted: Wanted<V, K>[] = [];
  private looks: Promise<ReadonlyMap<Flight<V, K>, Seen | undefined>> | undefined = undefined;

  constructor(settings: BatchSettings<V, K>) {
    this.settings = settings;
  }

  add(flight: Flight<V, K>, key: K): void {
    this.undecided.set(flight, key);
  }

  /** All flights are there: they may begin. */
  seal(backing: Backing | undefined): void {
    const flights = [...this.undecided.keys()];
    if (backing === undefined || flights.length < 2) return;
    this.looks = backing
      .readMany(flights.map(({ text }) => text))
      .then((seen) => new Map(flights.map((flight, index) => [flight, seen[index]])));
    this.looks.catch(() => {});
  }

  /** What the store holds for a flight; undefined when it must ask by itself. */
  lookOf(flight: Flight<V, K>): Promise<Seen | undefined> | undefined {
    return this.looks?.then((looks) => looks.get(flight));
  }

  /** Waits for the others and loads with them. Undefined when the others have gone without it, or there is no loader for many. */
  load(flight: Flight<V, K>, signal: AbortSignal): Promise<V> | undefined {
    if (!this.undecided.has(flight) || this.settings.loader === undefined) return undefined;
    const key = this.undecided.get(flight) as K;
    const { clock, hardTimeoutMs } = this.settings;
    const loaded = new Promise<V>((resolve, reject) => {
      this.wanted.push({ key, signal, endsMs: clock.now() + hardTimeoutMs, resolve, reject });
    });
    this.skip(flight);
    return loaded;
  }

  /** The flight needs no load, or not with the others. */
  skip(flight: Flight<V, K>): void {
    if (this.undecided.delete(flight) && this.undecided.size === 0) void this.run();
  }

  private async run(): Promise<void> {
    const { wanted } = this;
    const { loader, gate, clock } = this.settings;
    if (wanted.length === 0) return;
    const controller = new AbortController();
    // One that is given up leaves the others their load.
    const giveUp = () => {
      if (wanted.every(({ signal }) => signal.aborted)) controller.abort(wanted[0]!.signal.reason);
    };
    for (const { signal } of wanted) signal.addEventListener('abort', giveUp);
    giveUp();
    // Here, and when its turn never comes: nobody is left to load for.
    if (controller.signal.aborted) return;
    try {
      await gate?.enter(controller.signal);
    } catch {
      return;
    }
    try {
      const keys = wanted.map(({ key }) => key);
      // Who came last gives up last.
      const { endsMs } = wanted.at(-1)!;
      const values = await loader!(keys, loadContext(controller.signal, clock, endsMs, false));
      if (!Array.isArray(values) || values.length !== wanted.length) {
        const got = Array.isArray(values) ? `${values.length} values` : typeof values;
        throw new TypeError(
          `"loadMany" must answer an array with a value or an Error for each of ${wanted.length} keys, got ${got}`,
        );
      }
      for (const [index, { resolve, reject }] of wanted.entries()) {
        const value = values[index] as V | Error;
        if (value instanceof Error) reject(value);
        else resolve(value);
      }
    } catch (error) {
      for (const { reject } of wanted) reject(error);
    } finally {
      gate?.leave();
    }
  }
}
