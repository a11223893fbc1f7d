/**
 * Held: a value in the memory of this process, with the instants, by this process's clock, that decide how it may be used.
 */
import type { KeyWatch } from './backing.js';

export type Early = 'adaptive' | 'xfetch' | 'off';

/** When a value stops being fresh, being usable during a refresh, and being usable instead of an error. */
export interface Windows {
  readonly freshMs: number;
  readonly staleMs: number;
  readonly errorMs: number;
}

/** A value to be held. */
export interface Placing<V> {
  readonly value: V;
  /** The version of the store's entry; 0 if the value is not in the store. */
  readonly version: number;
  /** Its windows, counted from its fill. */
  readonly filled: Windows & { readonly loadMs: number; readonly tags: ReadonlyMap<string, number> };
  /** When it was filled, by this process's clock. */
  readonly filledAtMs: number;
}

/** A refresh begins within this last part of the time to live. */
const widestShare = 0.3;

export class Held<V> {
  readonly text: string;
  readonly value: V;
  /** Returned by every hit. Created once, so that a hit allocates nothing. */
  readonly promise: Promise<V>;
  readonly version: number;
  readonly freshMs: number;
  readonly staleMs: number;
  readonly errorMs: number;
  readonly loadMs: number;
  readonly tags: ReadonlyMap<string, number>;
  /** Until then a hit needs no further check. */
  checkMs = 0;
  /** The turn of the event loop in which a hit last passed that check. */
  fineInTurn = -1;
  /** The latest time at which the store must be asked again, because a change may have been missed. */
  boundMs: number;
  /** The key or a tag has changed, and the store has not been asked since. */
  isSuspect = false;
  /** After a failed load: no new load begins before this. */
  retryAtMs = Number.NEGATIVE_INFINITY;
  failures = 0;
  /** No background refresh begins before this: another process is refreshing, or a refresh has just failed. */
  quietUntilMs = Number.NEGATIVE_INFINITY;
  readonly watches: KeyWatch[] = [];
  /** The earliest time of a refresh. */
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

  /** Whether it may be used without asking the store. */
  isTrusted(nowMs: number): boolean {
    return !this.isSuspect && nowMs < this.boundMs;
  }

  /** Makes the next hit ask the store first. */
  suspect(): void {
    this.isSuspect = true;
    this.checkMs = Number.NEGATIVE_INFINITY;
    this.fineInTurn = -1;
  }

  /** Prevents refreshes until then. */
  quiet(untilMs: number): void {
    this.quietUntilMs = untilMs;
    if (!this.isSuspect) this.checkMs = Math.max(this.checkMs, Math.min(untilMs, this.freshMs, this.boundMs));
  }

  plan(): void {
    this.checkMs = Math.min(this.earlyMs, this.verifyMs, this.freshMs);
  }

  /** The store is asked a little before `boundMs`, while hits are still served. */
  get verifyMs(): number {
    return this.placedMs + 0.8 * (this.boundMs - this.placedMs);
  }

  /** Whether a value that is fresh until then is this one, and not one loaded since. */
  isSameFill(freshMs: number): boolean {
    return freshMs - this.freshMs < this.ttlMs / 3;
  }

  /** XFetch: the nearer the expiry and the slower the load, the likelier a refresh. After: Vattani, Chierichetti, Lowenstein (VLDB 2015). */
  drawsRefresh(nowMs: number, random: () => number): boolean {
    return nowMs - this.loadMs * Math.log(1 - random()) >= this.freshMs;
  }
}

function earlyWindowMs(early: Early, ttlMs: number, loadMs: number, random: () => number): number {
  if (early === 'off') return 0;
  const widestMs = widestShare * ttlMs;
  // Earlier than 16 load times before expiry, the odds of XFetch are below one in eight million.
  if (early === 'xfetch') return Math.min(widestMs, 16 * loadMs);
  return Math.min(widestMs, 1.5 * loadMs * (1 + 0.5 * random()));
}
