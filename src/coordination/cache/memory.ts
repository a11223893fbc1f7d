/**
 * Memory: what this process holds of a cache, bounded.
 *
 * Promise: lru-cache decides what has to go, by the order of use; who is there is found without it. What was found fine
 * once is fine for the rest of that turn of the event loop, in which it is moved and looked at no more.
 */
import { LRUCache } from 'lru-cache';
import type { Turns } from '../../core/turn-clock.js';
import type { Held } from './held.js';

export interface MemoryOptions<V> {
  readonly max: number;
  /** Undefined: values are not measured. */
  readonly maxBytes: number | undefined;
  readonly clock: Turns;
  /** Hears of all that is no longer held, whyever. */
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

  /** Without using it: it goes when it would have gone. */
  peek(text: string): Held<V> | undefined {
    return this.byText.get(text);
  }

  get(text: string): Held<V> | undefined {
    return this.byUse.get(text);
  }

  /** Uses what was found: whether it may be shown with nothing to think of. */
  isFine(held: Held<V>): boolean {
    return held.fineInTurn === this.clock.turn || this.isFineNow(held);
  }

  /** @param bytes - How much of `maxBytes` it takes, where that is set. */
  set(held: Held<V>, bytes: number | undefined): void {
    this.byText.set(held.text, held);
    this.byUse.set(held.text, held, bytes === undefined ? {} : { size: bytes });
    // What is too big is not put there, and then lru-cache says of nothing that it is gone.
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
