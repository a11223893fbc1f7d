/**
 * Held: a value in the memory of this process, with the instants of this process's clock that decide how it may be used.
 */
import type { KeyWatch } from './backing.js';

export type Early = 'adaptive' | 'xfetch' | 'off';

/** When a value stops being fresh, being usable while it is refreshed, and being usable in place of an error. */
export interface Windows {
  readonly freshMs: number;
  readonly staleMs: number;
  readonly errorMs: number;
}

/** What is to be held. */
export interface Placing<V> {
  readonly value: V;
  /** Of the store's entry; 0 when it is not in the store. */
  readonly version: number;
  /** Its windows, counted from its fill. */
  readonly filled: Windows & { readonly loadMs: number; readonly tags: ReadonlyMap<string, number> };
  /** By this process's clock. */
  readonly filledAtMs: number;
}

/** A refresh begins within this last share of the time to live. */
const widestShare = 0.3;

export class Held<V> {
  readonly text: string;
  readonly value: V;
  /** What every hit is given: made once, so that a hit allocates nothing. */
  readonly promise: Promise<V>;
  readonly version: number;
  readonly freshMs: number;
  readonly staleMs: number;
  readonly errorMs: number;
  readonly loadMs: number;
  readonly tags: ReadonlyMap<string, number>;
  /** Until then a hit has nothing to think of. */
  checkMs = 0;
  /** The turn of the event loop in which that was found out. */
  fineInTurn = -1;
  /** When the store must be asked again at the latest, because a change may have been missed. */
  boundMs: number;
  /** Something happened to the key or a tag, and the store has not been asked since. */
  isSuspect = false;
  /** After a failed load: nobody tries again before. */
  retryAtMs = Number.NEGATIVE_INFINITY;
  failures = 0;
  /** No background refresh begins before: somebody else does it, or it has just failed. */
  quietUntilMs = Number.NEGATIVE_INFINITY;
  readonly watches: KeyWatch[] = [];
  /** From then on a refresh may begin. */
  readonly earlyMs: number;
  readonly ttlMs: number;
  private readonly placedMs: number;

  constructor(
    text: string,
    { value, version, filled, filledAtMs }: Placing<V>,
    placedMs: number,
    boundMs: number,
    early: Early,
    random: () => number,
  ) {
    this.text = text;
    this.value = value;
    this.promise = Promise.resolve(value);
    this.version = version;
    this.ttlMs = filled.freshMs;
    this.freshMs = filledAtMs + filled.freshMs;
    this.staleMs = filledAtMs + filled.staleMs;
    this.errorMs = filledAtMs + filled.errorMs;
    this.loadMs = filled.loadMs;
    this.tags = filled.tags;
    this.placedMs = placedMs;
    this.boundMs = boundMs;
    this.earlyMs = this.freshMs - earlyWindowMs(early, filled.freshMs, filled.loadMs, random);
    this.plan();
  }

  /** Whether it may still be used without asking the store. */
  isTrusted(nowMs: number): boolean {
    return !this.isSuspect && nowMs < this.boundMs;
  }

  /** The next hit asks the store first. */
  suspect(): void {
    this.isSuspect = true;
    this.checkMs = Number.NEGATIVE_INFINITY;
    this.fineInTurn = -1;
  }

  /** Lets nobody try a refresh until then. */
  quiet(untilMs: number): void {
    this.quietUntilMs = untilMs;
    if (!this.isSuspect) this.checkMs = Math.max(this.checkMs, Math.min(untilMs, this.freshMs, this.boundMs));
  }

  plan(): void {
    this.checkMs = Math.min(this.earlyMs, this.verifyMs, this.freshMs);
  }

  /** The store is asked a little before it must be, while hits are still served. */
  get verifyMs(): number {
    return this.placedMs + 0.8 * (this.boundMs - this.placedMs);
  }

  /** Whether a value that is fresh until then is this very one, and not one that was loaded since. */
  isSameFill(freshMs: number): boolean {
    return freshMs - this.freshMs < this.ttlMs / 3;
  }

  /** XFetch: the nearer the end and the dearer the load, the likelier. After: Vattani, Chierichetti, Lowenstein (VLDB 2015). */
  drawsRefresh(nowMs: number, random: () => number): boolean {
    return nowMs - this.loadMs * Math.log(1 - random()) >= this.freshMs;
  }
}

function earlyWindowMs(early: Early, ttlMs: number, loadMs: number, random: () => number): number {
  if (early === 'off') return 0;
  const widestMs = widestShare * ttlMs;
  // Beyond 16 loads the odds of XFetch are below one in eight million.
  if (early === 'xfetch') return Math.min(widestMs, 16 * loadMs);
  return Math.min(widestMs, 1.5 * loadMs * (1 + 0.5 * random()));
}
