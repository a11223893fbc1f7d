/**
 * Timer wheel: holds any number of timers, adds and removes one in constant time, finds those that are due.
 *
 * Promise: a timer is handed out in the first `advance` that reaches its tick, never before. Ticks are counted modulo
 * 2^32, so that a process may run for ever; a timer lies at most 2^31 - 1 ticks ahead.
 * After: Varghese and Lauck, "Hashed and hierarchical timing wheels" (1987), scheme 7.
 */

const levelBits = 6;
const slotsPerLevel = 64;
const slotMask = 0b111111;
/** Six levels of six bits are more than the 32 bits of a tick; the last level holds the two bits that are left. */
const levels = 6;
const lastLevelMask = 0b11;

/** What a wheel links: the timer itself, so that nothing is allocated. Only the wheel writes these fields. */
export interface WheelNode {
  /** The slot the node lies in, or -1. */
  slotIndex: number;
  tick: number;
  previousInSlot: WheelNode | undefined;
  nextInSlot: WheelNode | undefined;
}

export class TimerWheel<Node extends WheelNode> {
  /** Every tick up to and with this one has been handed out. */
  private current: number;
  private count = 0;
  // One list head per slot and no tail: a store of a young object into an old one is what adding mostly costs.
  private readonly heads: (WheelNode | undefined)[] = new Array(levels * slotsPerLevel).fill(undefined);
  private readonly countsPerLevel: number[] = new Array(levels).fill(0);

  constructor(tick: number) {
    this.current = tick | 0;
  }

  get size(): number {
    return this.count;
  }

  /** Moves an empty wheel to a tick, so that a long idle time costs nothing. */
  rebase(tick: number): void {
    if (this.count === 0) this.current = tick | 0;
  }

  /** Adds a node, or moves it if it lies in the wheel. A tick that is past counts as the next one. */
  add(node: Node, tick: number): void {
    this.remove(node);
    node.tick = ((tick - this.current) | 0) > 0 ? tick | 0 : (this.current + 1) | 0;
    this.count++;
    this.link(node);
  }

  /** Takes a node out; one that is not in the wheel is left as it is. */
  remove(node: Node): boolean {
    if (node.slotIndex < 0) return false;
    this.unlink(node);
    this.count--;
    return true;
  }

  /** The next tick at which `advance` has something to do; undefined when the wheel is empty. */
  nextTick(): number | undefined {
    if (this.count === 0) return undefined;
    let nearest = Number.POSITIVE_INFINITY;
    for (let level = 0; level < levels; level++) {
      if (this.countsPerLevel[level] !== 0) nearest = Math.min(nearest, this.ticksToLevel(level));
    }
    return (this.current + nearest) | 0;
  }

  /**
   * Hands out, by tick, each node whose tick is not after `tick`; those of one tick in the order of their adding, as
   * far as they lay on the same level. Nodes may be added and removed meanwhile.
   */
  advance(tick: number, expire: (node: Node) => void): void {
    const target = tick | 0;
    for (let next = this.nextTick(); next !== undefined && ((target - next) | 0) >= 0; next = this.nextTick()) {
      this.current = next;
      this.cascade();
      this.expireSlot(next & slotMask, expire);
    }
    if (((target - this.current) | 0) > 0) this.current = target;
  }

  private link(node: WheelNode): void {
    const { tick } = node;
    const level = ((31 - Math.clz32(tick - this.current)) / levelBits) | 0;
    const slotIndex = (level << levelBits) + digitOf(tick, level);
    const head = this.heads[slotIndex];
    node.slotIndex = slotIndex;
    node.nextInSlot = head;
    if (head !== undefined) head.previousInSlot = node;
    this.heads[slotIndex] = node;
    this.countsPerLevel[level]!++;
  }

  private unlink(node: WheelNode): void {
    const { slotIndex, previousInSlot, nextInSlot } = node;
    if (previousInSlot === undefined) this.heads[slotIndex] = nextInSlot;
    else previousInSlot.nextInSlot = nextInSlot;
    if (nextInSlot !== undefined) nextInSlot.previousInSlot = previousInSlot;
    node.slotIndex = -1;
    node.previousInSlot = undefined;
    node.nextInSlot = undefined;
    this.countsPerLevel[slotIndex >> levelBits]!--;
  }

  /** Ticks until the nearest filled slot of a level is due: to be expired on level 0, to be spread on the others. */
  private ticksToLevel(level: number): number {
    const mask = maskOf(level);
    const digit = digitOf(this.current, level);
    let step = 1;
    while (this.heads[(level << levelBits) + ((digit + step) & mask)] === undefined) step++;
    const span = 2 ** (levelBits * level);
    return step * span - ((this.current >>> 0) % span);
  }

  /** Spreads the slots whose time has come over the levels below, from the top down. */
  private cascade(): void {
    for (let level = levels - 1; level > 0; level--) {
      const lowerBits = (1 << (levelBits * level)) - 1;
      if ((this.current & lowerBits) !== 0) continue;
      const slotIndex = (level << levelBits) + digitOf(this.current, level);
      for (let node = lastOf(this.heads[slotIndex]); node !== undefined; ) {
        const later = node.previousInSlot;
        this.unlink(node);
        this.link(node);
        node = later;
      }
    }
  }

  private expireSlot(slotIndex: number, expire: (node: Node) => void): void {
    let node = lastOf(this.heads[slotIndex]);
    while (node !== undefined) {
      const later: WheelNode | undefined = node.previousInSlot;
      this.unlink(node);
      this.count--;
      expire(node as Node);
      // The callback may have taken the next one out.
      node = later === undefined || later.slotIndex === slotIndex ? later : lastOf(this.heads[slotIndex]);
    }
  }
}

/** The node that was added first: lists grow at their head. */
function lastOf(head: WheelNode | undefined): WheelNode | undefined {
  let node = head;
  while (node?.nextInSlot !== undefined) node = node.nextInSlot;
  return node;
}

function maskOf(level: number): number {
  return level === levels - 1 ? lastLevelMask : slotMask;
}

function digitOf(tick: number, level: number): number {
  return (tick >>> (levelBits * level)) & maskOf(level);
}
