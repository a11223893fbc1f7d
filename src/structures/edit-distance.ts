/**
 * Edit distance: how many letters must be added, dropped or changed to turn one word into another.
 * After: Wagner and Fischer, "The string-to-string correction problem" (1974).
 */
export function editDistance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      const change = row[j - 1]! + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min(change, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[to.length]!;
}

/** The candidate nearest to a word, ignoring case; undefined if more than two fifths of the letters differ. */
export function nearestName(name: string, candidates: readonly string[]): string | undefined {
  let nearest: string | undefined;
  let smallest = Number.POSITIVE_INFINITY;
  // A long key is not a typing error, and comparing it would take long.
  if (name.length > 64) return undefined;
  for (const candidate of candidates) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (distance >= smallest || distance > Math.max(name.length, candidate.length) * 0.4) continue;
    smallest = distance;
    nearest = candidate;
  }
  return nearest;
}
