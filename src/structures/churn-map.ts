/**
 * Churn map: a Map for what comes and goes.
 *
 * Promise: what was taken out is held by nothing here. A Map alone does not keep that promise: V8 makes its table anew every few additions,
 * with a reference from the old table to the new one, and each table holds what was in it when it was replaced. Once one of them has come
 * into old space, all later ones are taken for alive until the next full collection. Here they hold an empty box.
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

  /** Adds what is not there. */
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
