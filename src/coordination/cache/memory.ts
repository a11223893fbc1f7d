/**
 * Memory: the values that this process holds for a cache, bounded.
 *
 * Promise: lru-cache decides which entries are evicted, by the order of use; what is held is looked up in a map of its own. A hit that has passed its check
 * passes for the rest of that turn of the event loop without another one, and without being moved in the order of use.
 */
import { LRUCache } from 'lru-cache';
import type { Turns } from '../../core/turn-clock.js';
import type { Held } from './held.js';

export interface MemoryOptions<V> {
  readonly max: number;
  /** Undefined: values are not measured. */
  readonly maxBytes: number | undefined;
  readonly clock: Turns;
  /** Called with every value that is no longer held, for whatever reason. */
  readonly onDropped: (held: Held<V>) => void;
}

export class Memory<V> {
  private readonly byText = new Map<string, Held<V>>();
  private readonly byUse: LRUCache<string, Held<V>>;
  private readonly clock: Turns;
  private readonly onDropped: (held: Held<V>) => void;

  constructor({ max, maxBytes, clock, onDropped }: MemoryOptions<V>) {
    this.clock = clock;
    this.onDropped = onDropped;
    this.byUse = new LRUCache<string, Held<V>>({
      max,
      ...(maxBytes === undefined ? {} : { maxSize: maxBytes }),
      dispose: (held) => this.drop(held),
    });
  }

  get size(): number {
    return this.byText.size;
  }

  /** Does not count as a use, so it does not delay the eviction. */
  peek(text: string): Held<V> | undefined {
    return this.byText.get(text);
  }

  get(text: string): Held<V> | undefined {
    return this.byUse.get(text);
  }

  /** Counts as a use. Whether the value may be served without any further check. */
  isFine(held: Held<V>): boolean {
    return held.fineInTurn === this.clock.turn || this.isFineNow(held);
  }

  /** @param bytes - Its share of `maxBytes`, if that is set. */
  set(held: Held<V>, bytes: number | undefined): void {
    this.byText.set(held.text, held);
    this.byUse.set(held.text, held, bytes === undefined ? {} : { size: bytes });
    // lru-cache does not store a value that is too large, and then calls no `dispose` for it.
    if (this.byUse.peek(held.text) !== held) this.drop(held);
  }

  delete(text: string): void {
    this.byUse.delete(text);
  }

  clear(): void {
    this.byUse.clear();
  }

  private drop(held: Held<V>): void {
    if (this.byText.get(held.text) === held) this.byText.delete(held.text);
    this.onDropped(held);
  }

  private isFineNow(held: Held<V>): boolean {
    this.byUse.get(held.text);
    if (this.clock.now() >= held.checkMs) return false;
    const { turn } = this.clock;
    if (turn !== undefined && turn > 0) held.fineInTurn = turn;
    return true;
  }
}
