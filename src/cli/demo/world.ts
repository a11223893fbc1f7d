/** What the acts of the demo play on: processes of this machine, or a simulated world. */
import type { Clock } from '../../core/clock.js';
import type { SeededRandom } from '../../testing/random.js';
import type { Counts, Weather } from './bank.js';
import type { Path, UserRequest } from './shop.js';

export interface World {
  readonly clock: Clock;
  readonly random: SeededRandom;
  /** After this time a user leaves. */
  readonly patienceMs: number;
  sleep(ms: number): Promise<void>;
  /** One try of a user's browser, at one of the two workers of a path, which take turns. Rejects when it fails. */
  ask(path: Path, request: UserRequest, signal: AbortSignal): Promise<unknown>;
  setWeather(weather: Weather): Promise<void>;
  /** Both banks forget what waits before them. */
  restartBanks(): Promise<void>;
  counts(path: Path): Promise<Counts>;
  /** Kills one of the two workers of a path without warning, and starts it again after this time. */
  killWorker(path: Path, downMs: number): Promise<void>;
  /** Stops the process that wrote last into the ledger of a path, for this time; it knows nothing of it. */
  freezeOwner(path: Path, frozenMs: number): Promise<void>;
  startJobs(): Promise<void>;
  stopJobs(): Promise<void>;
}
