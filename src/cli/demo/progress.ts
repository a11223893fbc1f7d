/** Progress: shows how the figures of an act grow, redrawn in a terminal and as plain lines everywhere else. */
import type { Screen } from './screen.js';
import { figuresOf, lineOf, type Shown } from './table.js';

const redrawEveryMs = 250;
/** A line stays, so there are fewer. */
const lineEveryMs = 1_000;

/**
 * Shows them until the returned function is called.
 *
 * @param read - Measures until now. What it rejects with is ignored: the demo is about to end.
 */
export function showProgress(screen: Screen, read: () => Promise<readonly Shown[]>): () => void {
  let isReading = false;
  let isOver = false;
  const beganMs = performance.now();
  const draw = (figures: readonly Shown[]) => {
    if (isOver) return;
    if (screen.redraws) screen.live(figuresOf(figures, screen.width - 2).map((line) => `  ${line}`));
    else screen.print(`  ${secondsSince(beganMs)} s, naked and protected: ${lineOf(figures)}`);
  };
  const timer = setInterval(
    () => {
      // On a busy machine the bank may take longer to answer than the interval.
      if (isReading) return;
      isReading = true;
      read()
        .then(draw, () => {})
        .finally(() => {
          isReading = false;
        });
    },
    screen.redraws ? redrawEveryMs : lineEveryMs,
  );
  return () => {
    isOver = true;
    clearInterval(timer);
    screen.live([]);
  };
}

function secondsSince(beganMs: number): number {
  return Math.round((performance.now() - beganMs) / 1_000);
}
