/**
 * Service model: a server as queueing theory sees it, with workers, a queue and service times.
 *
 * Promise: at most `workers` requests are served at once; the others wait, first come, first served. A request whose caller has given up is still served, as
 * by most servers, and counted as wasted. It uses only a clock and a random source, so the same model runs in a simulated world and in a real server.
 * After: Kleinrock, "Queueing Systems" vol. 1: G/G/c, and G/G/c/K with a queue limit.
 */
import { type Clock, systemClock, Timer } from '../core/clock.js';
import { checkArgument, checkOptions, having, integer, withDefault } from '../core/options.js';
import { type Distribution, distribution, type Sampler } from './distribution.js';
import type { SeededRandom } from './random.js';

/** Options of {@link serviceModel}. */
export interface ServiceModelOptions {
  /** Requests served at once. From 1. */
  readonly workers: number;
  /** How long a worker takes for a request. */
  readonly serviceTime: Distribution;
  /** Requests that may wait. From 0; default 100 000, in effect unbounded, as in most servers. */
  readonly queue?: number | undefined;
  /** The source of chance; each request draws its service time from it. */
  readonly random: SeededRandom;
  /** The source of time. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** The times of one request, in milliseconds. */
export interface ServiceTimes {
  /** From `serve` until a worker was free. */
  readonly waitedMs: number;
  /** What the worker took. */
  readonly servedMs: number;
}

/** A server that queues. */
export interface ServiceModel {
  /** Requests being served. */
  readonly busy: number;
  /** Requests waiting. */
  readonly queued: number;
  /** Requests served to their end, wasted ones among them. */
  readonly completed: number;
  /** Requests served whose caller had given up by then. */
  readonly wasted: number;
  /** Requests turned away because the queue was full. */
  readonly refused: number;
  /**
   * Waits for a worker and then for its work.
   * @param signal - Aborts when the caller gives up. The work goes on; the signal only decides whether it was wasted.
   * @throws {@link ServiceBusyError} `ERR_SERVICE_BUSY`, at once, when the queue is full.
   */
  serve(signal?: AbortSignal): Promise<ServiceTimes>;
  /** Changes how long the next requests take: a server that degrades, or recovers. */
  setServiceTime(serviceTime: Distribution): void;
}

/** `ERR_SERVICE_BUSY`: the queue of a {@link serviceModel} is full. */
export class ServiceBusyError extends Error {
  override readonly name = 'ServiceBusyError';
  readonly code = 'ERR_SERVICE_BUSY';

  constructor(workers: number, queue: number) {
    super(`the server is busy: ${workers} requests are being served and ${queue} wait`);
  }
}

/**
 * A server with a fixed number of workers and a queue, for overload scenarios.
 *
 * Call `serve` in a handler of `simulate`, or in a real HTTP server. It models waiting only, neither CPU nor memory.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, when an option is wrong.
 * @example
 * ```ts
 * import assert from 'node:assert';
 * import { seededRandom, serviceModel, virtualClock } from 'holdfast/testing';
 *
 * const clock = virtualClock();
 * const server = serviceModel({ workers: 1, serviceTime: '10ms', random: seededRandom(1), clock });
 * const both = Promise.all([server.serve(), server.serve()]);
 * await clock.advance('20ms');
 * assert.deepEqual(await both, [
 *   { waitedMs: 0, servedMs: 10 },
 *   { waitedMs: 10, servedMs: 10 },
 * ]);
 * ```
 */
export function serviceModel(options: ServiceModelOptions): ServiceModel {
  const checked = checkOptions('serviceModel', options, {
    workers: integer({ min: 1 }),
    serviceTime: distribution(),
    queue: withDefault(integer({ min: 0 }), 100_000),
    random: {
      allowed: 'a source of chance such as seededRandom(1)',
      parse: (value) => (typeof value === 'function' && 'gamma' in value ? (value as SeededRandom) : undefined),
    },
    clock: withDefault(
      having<Clock>('a clock such as systemClock', 'now', 'wallNow', 'schedule', 'cancel'),
      systemClock,
    ),
  });
  return new QueueingServer(checked);
}

class QueueingServer implements ServiceModel {
  busy = 0;
  completed = 0;
  wasted = 0;
  refused = 0;
  readonly clock: Clock;
  readonly #workers: number;
  readonly #queueLimit: number;
  readonly #random: SeededRandom;
  #serviceTime: Sampler;
  /** Entries before `#firstIndex` have been taken. The array is cut when these are half of it. */
  #waiting: (Job | undefined)[] = [];
  #firstIndex = 0;

  constructor(options: {
    readonly workers: number;
    readonly serviceTime: Sampler;
    readonly queue: number;
    readonly random: SeededRandom;
    readonly clock: Clock;
  }) {
    this.clock = options.clock;
    this.#workers = options.workers;
    this.#queueLimit = options.queue;
    this.#random = options.random;
    this.#serviceTime = options.serviceTime;
  }

  get queued(): number {
    return this.#waiting.length - this.#firstIndex;
  }

  serve(signal?: AbortSignal): Promise<ServiceTimes> {
    return new Promise((resolve, reject) => {
      if (this.busy < this.#workers) this.#begin(new Job(this, resolve, reject, signal));
      else if (this.queued < this.#queueLimit) this.#waiting.push(new Job(this, resolve, reject, signal));
      else {
        this.refused++;
        reject(new ServiceBusyError(this.busy, this.queued));
      }
    });
  }

  setServiceTime(serviceTime: Distribution): void {
    this.#serviceTime = checkArgument('setServiceTime', 'serviceTime', serviceTime, distribution());
  }

  finish(job: Job): void {
    this.busy--;
    this.completed++;
    if (job.isAbandoned) this.wasted++;
    while (this.busy < this.#workers && this.queued > 0) this.#begin(this.#takeFirst());
  }

  #begin(job: Job): void {
    let serviceMs: number;
    try {
      serviceMs = this.#serviceTime(this.#random);
    } catch (error) {
      job.fail(error);
      return;
    }
    this.busy++;
    job.begin(serviceMs);
  }

  /** Somebody must be waiting. */
  #takeFirst(): Job {
    const first = this.#waiting[this.#firstIndex]!;
    this.#waiting[this.#firstIndex++] = undefined;
    if (this.#firstIndex * 2 > this.#waiting.length) {
      this.#waiting = this.#waiting.slice(this.#firstIndex);
      this.#firstIndex = 0;
    }
    return first;
  }
}

class Job extends Timer {
  readonly #server: QueueingServer;
  readonly #resolve: (times: ServiceTimes) => void;
  readonly #reject: (error: unknown) => void;
  readonly #signal: AbortSignal | undefined;
  readonly #arrivedAtMs: number;
  #begunAtMs = 0;

  constructor(
    server: QueueingServer,
    resolve: (times: ServiceTimes) => void,
    reject: (error: unknown) => void,
    signal: AbortSignal | undefined,
  ) {
    super();
    this.#server = server;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#signal = signal;
    this.#arrivedAtMs = server.clock.now();
  }

  get isAbandoned(): boolean {
    return this.#signal?.aborted === true;
  }

  begin(serviceMs: number): void {
    this.#begunAtMs = this.#server.clock.now();
    this.#server.clock.schedule(this, this.#begunAtMs + serviceMs);
  }

  fail(error: unknown): void {
    this.#reject(error);
  }

  override expire(): void {
    const endedAtMs = this.#server.clock.now();
    this.#server.finish(this);
    this.#resolve({ waitedMs: this.#begunAtMs - this.#arrivedAtMs, servedMs: endedAtMs - this.#begunAtMs });
  }
}
