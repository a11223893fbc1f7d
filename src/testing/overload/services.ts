/**
 * Services that can be overloaded, in virtual time. Both go on with requests whose callers have gone, as most servers do.
 */
import { type Clock, Timer } from '../../core/clock.js';
import type { SeededRandom } from '../random.js';
import { serviceModel } from '../service-model.js';

/** The parameters of a service. */
export interface Shape {
  readonly workers: number;
  readonly meanMs: number;
  /** The shape of the gamma distribution of its service times: their coefficient of variation is 1 / sqrt(shape). */
  readonly gamma: number;
  /** A pool of workers with a first-come-first-served queue, or all requests at once, each slower the more there are. */
  readonly kind: 'pool' | 'thrash';
}

export interface Service {
  readonly completed: number;
  /** Takes a request. The work behind it goes on when the signal aborts. */
  serve(signal?: AbortSignal): Promise<unknown>;
  /** Multiplies the time that requests take from now on. */
  slowDown(factor: number): void;
}

export function serviceOf(shape: Shape, clock: Clock, random: SeededRandom): Service {
  return shape.kind === 'pool' ? new Pool(shape, clock, random) : new Thrashing(shape, clock, random);
}

class Pool implements Service {
  private readonly model: ReturnType<typeof serviceModel>;
  private factor = 1;

  constructor({ workers, meanMs, gamma }: Shape, clock: Clock, random: SeededRandom) {
    const serviceTime = (chance: SeededRandom) => chance.gamma(meanMs, gamma) * this.factor;
    this.model = serviceModel({ workers, serviceTime, queue: 10_000_000, random, clock });
  }

  get completed(): number {
    return this.model.completed;
  }

  serve(): Promise<unknown> {
    return this.model.serve();
  }

  slowDown(factor: number): void {
    this.factor = factor;
  }
}

/** The work that each request above the number of workers adds to all work, per worker: 20 in flight do 200/s, 100 do 111/s, 1,000 do 18/s. */
const contention = 0.2;

interface Job {
  readonly endsAtWork: number;
  readonly resolve: () => void;
}

/** Processor sharing with contention: n requests on c workers are served at the rate of c / (1 + 0.2 (n - c) / c) workers. */
class Thrashing extends Timer implements Service {
  completed = 0;
  private readonly shape: Shape;
  private readonly clock: Clock;
  private readonly random: SeededRandom;
  private factor = 1;
  /** A heap by `endsAtWork`. */
  private readonly jobs: Job[] = [];
  /** The work done, in milliseconds of a worker, for a request that has been there from the start. */
  private work = 0;
  private workAtMs = 0;

  constructor(shape: Shape, clock: Clock, random: SeededRandom) {
    super();
    this.shape = shape;
    this.clock = clock;
    this.random = random;
    this.workAtMs = clock.now();
  }

  serve(): Promise<void> {
    return new Promise((resolve) => {
      this.catchUp();
      const { meanMs, gamma } = this.shape;
      const endsAtWork = this.work + this.random.gamma(meanMs, gamma) * this.factor;
      this.push({ endsAtWork, resolve });
      this.arm();
    });
  }

  slowDown(factor: number): void {
    this.factor = factor;
  }

  override expire(): void {
    this.catchUp();
    const job = this.pop();
    this.work = Math.max(this.work, job.endsAtWork);
    this.completed++;
    job.resolve();
    if (this.jobs.length > 0) this.arm();
  }

  private get speed(): number {
    const { workers } = this.shape;
    const running = this.jobs.length;
    return running <= workers ? 1 : workers / (1 + (contention * (running - workers)) / workers) / running;
  }

  private catchUp(): void {
    const nowMs = this.clock.now();
    if (this.jobs.length > 0) this.work += (nowMs - this.workAtMs) * this.speed;
    this.workAtMs = nowMs;
  }

  private arm(): void {
    const leftMs = Math.max(0, this.jobs[0]!.endsAtWork - this.work) / this.speed;
    this.clock.schedule(this, this.workAtMs + leftMs);
  }

  private push(job: Job): void {
    const { jobs } = this;
    let index = jobs.length;
    for (; index > 0; ) {
      const parent = (index - 1) >> 1;
      if (jobs[parent]!.endsAtWork <= job.endsAtWork) break;
      jobs[index] = jobs[parent]!;
      index = parent;
    }
    jobs[index] = job;
  }

  private pop(): Job {
    const { jobs } = this;
    const first = jobs[0]!;
    const last = jobs.pop()!;
    if (jobs.length === 0) return first;
    let index = 0;
    for (let child = 1; child < jobs.length; child = 2 * index + 1) {
      if (child + 1 < jobs.length && jobs[child + 1]!.endsAtWork < jobs[child]!.endsAtWork) child++;
      if (jobs[child]!.endsAtWork >= last.endsAtWork) break;
      jobs[index] = jobs[child]!;
      index = child;
    }
    jobs[index] = last;
    return first;
  }
}
