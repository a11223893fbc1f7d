/**
 * Timer wheel: holds any number of timers; adding and removing one, and finding those that are due, takes constant time.
 *
 * Promise: a timer is handed out by the first `advance` that reaches its tick, never before. Ticks count modulo 2^32, so a process may run for ever; a timer
 * is at most 2^31 - 1 ticks ahead.
 * After: Varghese and Lauck, "Hashed and hierarchical timing wheels" (1987), scheme 7.
 */

const levelBits = 6;
const slotsPerLevel = 64;
const slotMask = 0b111111;
/** Six levels of six bits are more than the 32 bits of a tick, so the last level holds only the two remaining bits. */
const levels = 6;
const lastLevelMask = 0b11;

/** The fields of a node: the timer itself is the node, so nothing is allocated. Only the wheel writes these fields. */
export interface WheelNode {
  /** The slot of the node, or -1. */
  slotIndex: number;
  tick: number;
  previousInSlot: WheelNode | undefined;
  nextInSlot: WheelNode | undefined;
}

export class TimerWheel<Node extends WheelNode> {
  /** Every tick up to and including this one has been handed out. */
  private current: number;
  private count = 0;
  // Each slot has one list head and no tail: most of the cost of adding is storing a reference to a young object in an old one.
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

  /** Adds a node, or moves it if it is in the wheel. A past tick counts as the next one. */
  add(node: Node, tick: number): void {
    this.remove(node);
    node.tick = ((tick - this.current) | 0) > 0 ? tick | 0 : (this.current + 1) | 0;
    this.link(node);
    // Not earlier: at the end of the stack `link` may throw. A wheel that counted a node it does not hold would search for it for ever.
    this.count++;
  }

  /** Removes a node; does nothing if it is not in the wheel. */
  remove(node: Node): boolean {
    if (node.slotIndex < 0) return false;
    this.unlink(node);
    this.count--;
    return true;
  }

  /** The next tick at which `advance` has something to do; undefined if the wheel is empty. */
  nextTick(): number | undefined {
    if (this.count === 0) return undefined;
    let nearest = Number.POSITIVE_INFINITY;
    for (let level = 0; level < levels; level++) {
      if (this.countsPerLevel[level] !== 0) nearest = Math.min(nearest, this.ticksToLevel(level));
    }
    return (this.current + nearest) | 0;
  }

  /**
   * Hands out, tick by tick, each node whose tick is not after `tick`. Nodes of one tick come in the order in which they were added, if they were on the same
   * level. Nodes may be added and removed during the call.
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

  /** Ticks until the nearest filled slot of a level is due: to be expired on level 0, to be redistributed on the others. */
  private ticksToLevel(level: number): number {
    const mask = maskOf(level);
    const digit = digitOf(this.current, level);
    let step = 1;
    while (this.heads[(level << levelBits) + ((digit + step) & mask)] === undefined) step++;
    const span = 2 ** (levelBits * level);
    return step * span - ((this.current >>> 0) % span);
  }

  /** Redistributes the due slots to the levels below, from the top down. */
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
      // The callback may have removed the next one.
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
