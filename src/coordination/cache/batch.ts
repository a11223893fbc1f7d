/**
 * Batch: keys requested together are looked up in one round trip, and those that must be loaded are loaded by one call.
 *
 * Promise: a key that is found, or that another process loads, delays no other key. Each key has its own outcome.
 */
import type { Clock } from '../../core/clock.js';
import type { Backing, Seen } from './backing.js';
import type { Flight } from './flight.js';
import type { Gate } from './gate.js';
import { callLoader, type ManyLoader } from './loader.js';

/** The settings that a batch takes from its cache. */
export interface BatchSettings<V, K> {
  readonly loader: ManyLoader<V, K> | undefined;
  readonly gate: Gate | undefined;
  readonly clock: Clock;
  readonly hardTimeoutMs: number;
}

interface Wanted<V, K> {
  readonly key: K;
  readonly signal: AbortSignal;
  /** When its flight gives up. */
  readonly endsMs: number;
  readonly resolve: (value: V) => void;
  readonly reject: (error: unknown) => void;
}

export class Batch<V, K> {
  private readonly settings: BatchSettings<V, K>;
  /** Flights that have not yet told whether they need a load. */
  private readonly undecided = new Map<Flight<V, K>, K>();
  private readonly wanted: Wanted<V, K>[] = [];
  private looks: Promise<ReadonlyMap<Flight<V, K>, Seen | undefined>> | undefined = undefined;

  constructor(settings: BatchSettings<V, K>) {
    this.settings = settings;
  }

  add(flight: Flight<V, K>, key: K): void {
    this.undecided.set(flight, key);
  }

  /** All flights have joined and may begin. */
  seal(backing: Backing | undefined): void {
    const flights = [...this.undecided.keys()];
    if (backing === undefined || flights.length < 2) return;
    this.looks = backing
      .readMany(flights.map(({ text }) => text))
      .then((seen) => new Map(flights.map((flight, index) => [flight, seen[index]])));
    this.looks.catch(() => {});
  }

  /** The entry that the store has for a flight; undefined if the flight must ask by itself. */
  lookOf(flight: Flight<V, K>): Promise<Seen | undefined> | undefined {
    return this.looks?.then((looks) => looks.get(flight));
  }

  /** Waits for the other flights and loads with them. Undefined if they have loaded without this one, or if there is no loader for many keys. */
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

  /** The flight needs no load, or not one with the others. */
  skip(flight: Flight<V, K>): void {
    if (this.undecided.delete(flight) && this.undecided.size === 0) void this.run();
  }

  private async run(): Promise<void> {
    const { wanted } = this;
    const { loader, gate, clock } = this.settings;
    if (wanted.length === 0) return;
    const controller = new AbortController();
    // A flight that gives up does not end the load of the others.
    const giveUp = () => {
      if (wanted.every(({ signal }) => signal.aborted)) controller.abort(wanted[0]!.signal.reason);
    };
    for (const { signal } of wanted) signal.addEventListener('abort', giveUp);
    giveUp();
    // Checked now, and while waiting for the turn at the gate: nobody may be left to load for.
    if (controller.signal.aborted) return;
    try {
      await gate?.enter(controller.signal);
    } catch {
      return;
    }
    try {
      const keys = wanted.map(({ key }) => key);
      // The last flight to join gives up last.
      const { endsMs } = wanted.at(-1)!;
      const terms = { signal: controller.signal, clock, endsMs, isBackground: false };
      const values = await callLoader(loader!, keys, terms);
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
