/** Users: they arrive at a given rate, whether or not earlier users have been answered, and at the same instants on both paths. */
import { callbackTimer } from '../../core/clock.js';
import { type Path, paths, type UserRequest } from './shop.js';
import type { World } from './world.js';

/** How long a paying user keeps trying, with the same key. */
const payersPatienceMs = 8_000;
const againMs = 250;

/** The results of the users of one path. */
export class Visits {
  came = 0;
  served = 0;
  waiting = 0;
  readonly latenciesMs: number[] = [];

  /** Those who were not served and do not wait any more. */
  get left(): number {
    return this.came - this.served - this.waiting;
  }

  /** The share of served users among those who do not wait any more; NaN if all wait. */
  get share(): number {
    return this.served / (this.came - this.waiting);
  }

  /** The 99th percentile of the served users' response times; NaN if nobody was served. */
  get p99Ms(): number {
    const sorted = this.latenciesMs.toSorted((left, right) => left - right);
    return sorted[Math.ceil(sorted.length * 0.99) - 1] ?? Number.NaN;
  }
}

export type Visitors = Readonly<Record<Path, Visits>>;

export interface Crowd {
  readonly perSecond: number;
  readonly forMs: number;
  readonly request: (number: number) => UserRequest;
  /** How many times each user clicks, at the same moment. */
  readonly clicks?: number;
}

/** Sends a crowd, and resolves when the last user has been answered or has left. */
export async function send(world: World, visitors: Visitors, crowd: Crowd): Promise<void> {
  const { perSecond, forMs, request, clicks = 1 } = crowd;
  const draw = world.random.fork(`crowd ${visitors.naked.came}`);
  const visits: Promise<void>[] = [];
  const beganMs = world.clock.now();
  for (let number = 0, atMs = 0; ; number++) {
    atMs += draw.exponential(1_000 / perSecond);
    if (atMs >= forMs) break;
    const waitMs = beganMs + atMs - world.clock.now();
    if (waitMs > 0) await world.sleep(waitMs);
    const asked = request(number);
    for (const path of paths) {
      for (let click = 0; click < clicks; click++) visits.push(visit(world, visitors[path], path, asked));
    }
  }
  await Promise.all(visits);
}

/** One user. Never rejects. */
async function visit(world: World, visits: Visits, path: Path, request: UserRequest): Promise<void> {
  const { clock } = world;
  const beganMs = clock.now();
  const isPaying = request.kind === 'order';
  const controller = new AbortController();
  const leaves = callbackTimer(() => controller.abort(new Error('the user has left')));
  clock.schedule(leaves, beganMs + (isPaying ? payersPatienceMs : world.patienceMs));
  visits.came++;
  visits.waiting++;
  try {
    while (!controller.signal.aborted) {
      const isServed = await world.ask(path, request, controller.signal).then(
        () => true,
        () => false,
      );
      if (isServed) {
        visits.served++;
        visits.latenciesMs.push(clock.now() - beganMs);
        return;
      }
      if (!isPaying) return;
      // An interrupted user leaves: the code that sends the crowd may no longer be waiting for this one.
      await world.sleep(againMs).catch((reason) => controller.abort(reason));
    }
  } finally {
    clock.cancel(leaves);
    visits.waiting--;
  }
}
