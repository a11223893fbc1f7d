/**
 * Churn map: a Map for entries that come and go.
 *
 * Promise: a removed value is not kept alive by this map. A plain Map does not promise that: V8 replaces its table every few additions, the old table refers
 * to the new one, and each table still holds what was in it when it was replaced. Once one of them is in old space, all later ones count as alive until the
 * next full collection. Here such a table holds an empty box only.
 */
interface Box<Value> {
  value: Value | undefined;
}

export class ChurnMap<Key, Value> {
  private readonly boxes = new Map<Key, Box<Value>>();

  get size(): number {
    return this.boxes.size;
  }

  get(key: Key): Value | undefined {
    return this.boxes.get(key)?.value;
  }

  /** Adds an entry for a key that is not there. */
  add(key: Key, value: Value): void {
    this.boxes.set(key, { value });
  }

  delete(key: Key): void {
    const box = this.boxes.get(key);
    if (box === undefined) return;
    box.value = undefined;
    this.boxes.delete(key);
  }

  values(): Value[] {
    return Array.from(this.boxes.values(), ({ value }) => value as Value);
  }
}
