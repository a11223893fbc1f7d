/**
 * Turns: runs steps one after another, and lets all microtasks run between two of them.
 *
 * Promise: when a step begins, everything that earlier steps started through promises has run to its end. One turn of the event loop runs many steps:
 * callbacks queued by setImmediate before a turn run one by one, with the microtasks drained after each. A probe detects a runtime that does not do this; it
 * gets one turn per step.
 */

import { queueTask } from '../core/event-loop.js';

/** Steps per turn of the event loop. More of them bring no measurable gain. */
const longestBatch = 128;

let canBatch: Promise<boolean> | undefined;

/** Calls `step` until it returns false; rejects with what it throws. */
export async function inTurns(step: () => boolean): Promise<void> {
  canBatch ??= drainsBetweenTasks();
  const limit = (await canBatch) ? longestBatch : 1;
  await new Promise<void>((resolve, reject) => {
    let batch = 1;
    let queued = 0;
    let hasEnded = false;
    const end = (settle: () => void) => {
      hasEnded = true;
      settle();
    };
    const turn = () => {
      queued--;
      if (hasEnded) return;
      try {
        if (!step()) return end(resolve);
      } catch (error) {
        return end(() => reject(error));
      }
      if (queued === 0) queueBatch();
    };
    const queueBatch = () => {
      queued = batch;
      for (let index = 0; index < queued; index++) queueTask(turn);
      batch = Math.min(batch * 2, limit);
    };
    queueBatch();
  });
}

async function drainsBetweenTasks(): Promise<boolean> {
  let isDrained = false;
  const link = async (rest: number): Promise<void> => {
    await undefined;
    if (rest > 0) return link(rest - 1);
    isDrained = true;
  };
  return new Promise((resolve) => {
    queueTask(() => void link(5));
    queueTask(() => resolve(isDrained));
  });
}
