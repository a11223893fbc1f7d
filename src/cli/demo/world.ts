/** The world in which the demo's acts run: processes of this machine, or a simulation. */
import type { Clock } from '../../core/clock.js';
import type { SeededRandom } from '../../testing/random.js';
import type { Counts, Weather } from './bank.js';
import type { Path, UserRequest } from './shop.js';

export interface World {
  readonly clock: Clock;
  readonly random: SeededRandom;
  /** A user leaves after this time. */
  readonly patienceMs: number;
  sleep(ms: number): Promise<void>;
  /** One try of a user's browser, at one of the two workers of a path, in turn. Rejects when it fails. */
  ask(path: Path, request: UserRequest, signal: AbortSignal): Promise<unknown>;
  setWeather(weather: Weather): Promise<void>;
  /** Both banks drop their waiting calls and work as usual again. */
  restartBanks(): Promise<void>;
  counts(path: Path): Promise<Counts>;
  /** Kills one of the two workers of a path without warning, and restarts it after this time. If it is down, waits until it is back. */
  killWorker(path: Path, downMs: number): Promise<void>;
  /** Freezes the process that last wrote into the ledger of a path, for this time and without its notice. */
  freezeOwner(path: Path, frozenMs: number): Promise<void>;
  startJobs(): Promise<void>;
  stopJobs(): Promise<void>;
}
