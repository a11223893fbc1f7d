/**
 * Event heap: timers ordered by instant and, within an instant, by rank.
 *
 * Promise: adding, moving and removing a timer allocates nothing and takes logarithmic time. A timer is in the heap once or not at all. Parallel arrays keep
 * the instants as plain doubles. The `slotIndex` of a timer, unused outside of a wheel, is its position here.
 */
import type { Timer } from '../core/clock.js';

export class EventHeap<Owner> {
  readonly #timers: Timer[] = [];
  readonly #owners: Owner[] = [];
  readonly #instants: number[] = [];
  readonly #ranks: number[] = [];

  get size(): number {
    return this.#timers.length;
  }

  /** The instant of the first timer, or Infinity. */
  get nextAtMs(): number {
    return this.#timers.length === 0 ? Number.POSITIVE_INFINITY : this.#instants[0]!;
  }

  /** The owner of the first timer; the heap must not be empty. */
  get nextOwner(): Owner {
    return this.#owners[0]!;
  }

  has(timer: Timer): boolean {
    return timer.slotIndex >= 0 && this.#timers[timer.slotIndex] === timer;
  }

  /** Adds a timer, or moves it if it is in the heap. Among equal instants the lower rank comes first. */
  add(timer: Timer, atMs: number, rank: number, owner: Owner): void {
    this.remove(timer);
    this.#rise(this.#timers.length, timer, atMs, rank, owner);
  }

  remove(timer: Timer): boolean {
    if (!this.has(timer)) return false;
    this.#takeOut(timer.slotIndex);
    return true;
  }

  /** Removes and returns the first timer; the heap must not be empty. */
  takeFirst(): Timer {
    const first = this.#timers[0]!;
    this.#takeOut(0);
    return first;
  }

  countOf(owner: Owner): number {
    return this.#owners.filter((one) => one === owner).length;
  }

  /** Removes all timers of an owner and returns them with their instants, earliest first. */
  takeAllOf(owner: Owner): { timer: Timer; atMs: number }[] {
    const taken: { timer: Timer; atMs: number; rank: number }[] = [];
    for (let index = 0; index < this.#timers.length; index++) {
      if (this.#owners[index] !== owner) continue;
      taken.push({ timer: this.#timers[index]!, atMs: this.#instants[index]!, rank: this.#ranks[index]! });
    }
    for (const { timer } of taken) this.remove(timer);
    return taken.sort((left, right) => left.atMs - right.atMs || left.rank - right.rank);
  }

  #takeOut(index: number): void {
    this.#timers[index]!.slotIndex = -1;
    const timer = this.#timers.pop()!;
    const owner = this.#owners.pop()!;
    const atMs = this.#instants.pop()!;
    const rank = this.#ranks.pop()!;
    if (index === this.#timers.length) return;
    // The last one fills the gap. It may belong above or below it.
    const hole = this.#sinkHole(index, atMs, rank);
    this.#rise(hole, timer, atMs, rank, owner);
  }

  /** Moves children up into the hole while they come before the given place in time; returns where the hole ends. */
  #sinkHole(from: number, atMs: number, rank: number): number {
    let index = from;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= this.#timers.length) return index;
      const right = child + 1;
      if (right < this.#timers.length && this.#isBefore(right, this.#instants[child]!, this.#ranks[child]!))
        child = right;
      if (!this.#isBefore(child, atMs, rank)) return index;
      this.#put(index, this.#timers[child]!, this.#instants[child]!, this.#ranks[child]!, this.#owners[child]!);
      index = child;
    }
  }

  #rise(from: number, timer: Timer, atMs: number, rank: number, owner: Owner): void {
    let index = from;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!comesBefore(atMs, rank, this.#instants[parent]!, this.#ranks[parent]!)) break;
      this.#put(index, this.#timers[parent]!, this.#instants[parent]!, this.#ranks[parent]!, this.#owners[parent]!);
      index = parent;
    }
    this.#put(index, timer, atMs, rank, owner);
  }

  #put(index: number, timer: Timer, atMs: number, rank: number, owner: Owner): void {
    timer.slotIndex = index;
    this.#timers[index] = timer;
    this.#instants[index] = atMs;
    this.#ranks[index] = rank;
    this.#owners[index] = owner;
  }

  #isBefore(index: number, atMs: number, rank: number): boolean {
    return comesBefore(this.#instants[index]!, this.#ranks[index]!, atMs, rank);
  }
}

function comesBefore(leftMs: number, leftRank: number, rightMs: number, rightRank: number): boolean {
  return leftMs < rightMs || (leftMs === rightMs && leftRank < rightRank);
}
