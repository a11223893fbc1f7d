/** Faults: what the buttons of the page do to both paths. */
import { fair } from './bank.js';
import { paths } from './shop.js';
import type { World } from './world.js';

export const faults = ['failing', 'slow', 'fair', 'kill'] as const;
export type Fault = (typeof faults)[number];

/** How long a worker that was killed stays down. */
const downMs = 1_000;

export class Buttons {
  /** Whether one was pressed in this act, so that it is no longer the act that was designed. */
  wasPressed = false;
  private readonly world: World;
  /** What has been pressed and is not over: a worker that is down, a message on its way to the bank. */
  private readonly running = new Set<Promise<void>>();

  constructor(world: World) {
    this.world = world;
  }

  press(fault: Fault): void {
    this.wasPressed = true;
    const done: Promise<unknown> =
      fault === 'kill'
        ? Promise.all(paths.map((path) => this.world.killWorker(path, downMs)))
        : this.world.setWeather({
            failing: fault === 'failing' ? 0.25 : 0,
            meanMs: fault === 'slow' ? 3 * fair.meanMs : fair.meanMs,
          });
    // The demo may end meanwhile.
    const forget = () => void this.running.delete(settled);
    const settled = done.then(forget, forget);
    this.running.add(settled);
  }

  /** Ends what was done in the last act, or between the acts: nothing of it reaches the next one. */
  async reset(): Promise<void> {
    await Promise.all(this.running);
    // The bank handles messages in order: what is pressed from here on takes effect after the restart, in the next act.
    this.wasPressed = this.running.size > 0;
    await this.world.restartBanks();
  }
}
