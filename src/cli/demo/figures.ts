/** Figures: what is measured on both paths while an act plays, and at its end. */
import type { Counts } from './bank.js';
import { type Path, paths } from './shop.js';
import { type Visitors, Visits } from './users.js';
import type { World } from './world.js';

/** What has happened on one path since the act began. */
export interface Seen {
  readonly visits: Visits;
  readonly elapsedMs: number;
  /** How much a counter of the bank has grown. */
  grown(counter: 'calls' | 'loads' | 'charged' | 'doubled' | 'overlaps' | 'refused'): number;
}

export interface Figure {
  readonly what: string;
  readonly unit: 'percent' | 'ms' | 'times' | 'count';
  /** NaN: nobody was served. */
  readonly of: (seen: Seen) => number;
}

/** A figure that is compared at the end of the act. */
export interface Measure extends Figure {
  /** `none` counts what must never happen, whatever the bank does and whoever is killed. */
  readonly aim: 'more' | 'less' | 'none';
  /** Why the two paths differ. */
  readonly cause: string;
}

export interface Pair {
  readonly naked: number;
  readonly protected: number;
}

export type Row = Omit<Measure, 'of'> & Pair;

/** Whether the protected path was better. If neither path has a result, nothing was shown. */
export function isBetter({ naked, protected: guarded, aim }: Row): boolean {
  if (aim === 'none') return guarded === 0;
  if (Number.isNaN(naked)) return !Number.isNaN(guarded);
  return aim === 'more' ? guarded > naked : guarded < naked || guarded === 0;
}

/** Measures one act, with its own visitors. */
export class Gauge {
  readonly visitors: Visitors = { naked: new Visits(), protected: new Visits() };
  private readonly world: World;
  private readonly before: Record<Path, Counts>;
  private readonly beganMs: number;

  private constructor(world: World, before: Record<Path, Counts>) {
    this.world = world;
    this.before = before;
    this.beganMs = world.clock.now();
  }

  static async begin(world: World): Promise<Gauge> {
    return new Gauge(world, await countsOf(world));
  }

  /** The figures with their values until now. */
  async read<F extends Figure>(figures: readonly F[]): Promise<(F & Pair)[]> {
    const elapsedMs = this.world.clock.now() - this.beganMs;
    const now = await countsOf(this.world);
    const seenOn = (path: Path): Seen => ({
      visits: this.visitors[path],
      elapsedMs,
      grown: (counter) => now[path][counter] - this.before[path][counter],
    });
    const seen = { naked: seenOn('naked'), protected: seenOn('protected') };
    return figures.map((figure) => ({
      ...figure,
      naked: figure.of(seen.naked),
      protected: figure.of(seen.protected),
    }));
  }
}

async function countsOf(world: World): Promise<Record<Path, Counts>> {
  const [naked, guarded] = await Promise.all(paths.map((path) => world.counts(path)));
  return { naked: naked!, protected: guarded! };
}
