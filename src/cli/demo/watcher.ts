/** Watcher: samples the demo four times a second, for the page. */
import type { Page, PathFigures } from './page.js';
import type { RealWorld } from './real-world.js';
import { type Path, paths } from './shop.js';
import { cellsOf } from './table.js';
import type { Visitors } from './users.js';
import type { Result } from './verdict.js';

const everyMs = 250;

interface Seen extends Record<Path, { readonly served: number; readonly calls: number }> {
  readonly atMs: number;
}

export class Watcher {
  private readonly world: RealWorld;
  private readonly page: Page;
  private readonly beganMs = performance.now();
  private timer: NodeJS.Timeout | undefined = undefined;
  private seen: Seen | undefined = undefined;
  /** Those of the act that plays. */
  private visitors: Visitors | undefined = undefined;
  /** One sample at a time: on a busy machine the bank may take longer to answer than the interval. */
  private isLooking = false;

  constructor(world: RealWorld, page: Page) {
    this.world = world;
    this.page = page;
  }

  begin(act: string, visitors: Visitors): void {
    this.page.send({ event: 'act', data: act });
    this.seen = undefined;
    this.visitors = visitors;
    // It fails only when the demo is about to end.
    this.timer = setInterval(() => this.look(visitors).catch(() => {}), everyMs);
  }

  row(result: Result): void {
    this.page.send({ event: 'row', data: cellsOf(result) });
  }

  end(): void {
    clearInterval(this.timer);
    this.visitors = undefined;
  }

  private async look(visitors: Visitors): Promise<void> {
    if (this.isLooking) return;
    this.isLooking = true;
    const [naked, guarded] = await Promise.all(paths.map((path) => this.world.counts(path)));
    this.isLooking = false;
    if (visitors !== this.visitors) return;
    const now: Seen = {
      atMs: performance.now(),
      naked: { served: visitors.naked.served, calls: naked!.calls },
      protected: { served: visitors.protected.served, calls: guarded!.calls },
    };
    const before = this.seen;
    this.seen = now;
    if (before === undefined) return;
    const perSecond = (path: Path, count: 'served' | 'calls') =>
      ((now[path][count] - before[path][count]) * 1_000) / (now.atMs - before.atMs);
    const figuresOf = (path: Path): PathFigures => ({
      served: perSecond(path, 'served'),
      waiting: visitors[path].waiting,
      calls: perSecond(path, 'calls'),
    });
    const atSeconds = Math.round((now.atMs - this.beganMs) / 100) / 10;
    const { breakers } = this.world;
    this.page.send({
      event: 'figures',
      data: { atSeconds, naked: figuresOf('naked'), protected: figuresOf('protected'), breakers },
    });
  }
}
