/** Turns: work on large data yields to the event loop now and then. */
import { queueTask } from '../../core/event-loop.js';

/** Copying this much takes about a millisecond; each step of work on more gets a turn of the event loop of its own. */
export const largeBytes = 1_048_576;

export function nextTurn(): Promise<void> {
  return new Promise((resolve) => queueTask(resolve));
}
