/** Turns: work on what is large is put down now and then, so that everything else goes on. */
import { queueTask } from '../../core/event-loop.js';

/** To copy so much takes a millisecond or so; what is done with more has a turn of the event loop for each step. */
export const largeBytes = 1_048_576;

export function nextTurn(): Promise<void> {
  return new Promise((resolve) => queueTask(resolve));
}
