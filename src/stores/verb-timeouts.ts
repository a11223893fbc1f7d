/**
 * Verb timeouts: one timer for all verbs of a store that waits for a server, and the aborts of those who asked.
 *
 * Promise: a verb is told within a few milliseconds of its end, or some more where the event loop was busy, never before; the timer is gone one
 * `timeout` after the last verb has begun, at the latest, and keeps no process alive meanwhile, which the client's connection does. All wait
 * equally long, so the first to begin is the first to end. A timer for each, set and taken back, would cost a fifth of a round trip.
 */
import { addAbortListener, removeAbortListener } from '../core/abort-listeners.js';
import { type Clock, Timer } from '../core/clock.js';

/** What is under way; it is its own list node. */
export abstract class TimedVerb {
  endsAtMs = 0;
  previous: TimedVerb | undefined = undefined;
  next: TimedVerb | undefined = undefined;
  isListed = false;
  signal: AbortSignal | undefined = undefined;
  onAbort: (() => void) | undefined = undefined;
  /** Ends it. */
  abstract timedOut(): void;
  /** Ends it with the caller's own reason. */
  abstract aborted(reason: unknown): void;
}

/** A timer that fires on time is late by less. */
const lateMs = 5;
/** Enough for a round trip to a server that is near. */
const graceMs = 20;

export class VerbTimeouts extends Timer {
  private first: TimedVerb | undefined = undefined;
  private last: TimedVerb | undefined = undefined;
  private readonly clock: Clock;
  private readonly timeoutMs: number;
  private readonly onBusy: () => void;
  private readonly onIdle: () => void;
  private isArmed = false;
  private isClosed = false;
  private hadGrace = false;

  /** @param onBusy - Called before the first verb begins; `onIdle` some time after the last has ended. */
  constructor(clock: Clock, timeoutMs: number, onBusy: () => void = () => {}, onIdle: () => void = () => {}) {
    super();
    this.clock = clock.background ?? clock;
    this.timeoutMs = timeoutMs;
    this.onBusy = onBusy;
    this.onIdle = onIdle;
  }

  /** Whether one verb is under way, and no other. */
  get hasOne(): boolean {
    return this.first !== undefined && this.first === this.last;
  }

  begin(verb: TimedVerb, signal: AbortSignal | undefined): void {
    verb.endsAtMs = this.clock.now() + this.timeoutMs;
    verb.isListed = true;
    verb.previous = this.last;
    if (this.last === undefined) this.first = verb;
    else this.last.next = verb;
    this.last = verb;
    if (signal !== undefined) {
      verb.signal = signal;
      verb.onAbort = () => verb.aborted(signal.reason);
      addAbortListener(signal, verb.onAbort);
    }
    if (this.isArmed) return;
    this.onBusy();
    this.isArmed = true;
    this.clock.schedule(this, verb.endsAtMs);
  }

  end(verb: TimedVerb): void {
    if (!verb.isListed) return;
    verb.isListed = false;
    if (verb.previous === undefined) this.first = verb.next;
    else verb.previous.next = verb.next;
    if (verb.next === undefined) this.last = verb.previous;
    else verb.next.previous = verb.previous;
    // One that somebody still holds would hold all that came after it.
    verb.previous = undefined;
    verb.next = undefined;
    if (verb.signal !== undefined) removeAbortListener(verb.signal, verb.onAbort!);
    if (this.isClosed) this.restIfIdle();
  }

  /** From now on it rests as soon as nothing is under way. */
  close(): void {
    this.isClosed = true;
    this.restIfIdle();
  }

  /** In the order in which they have begun. What it does may end the verb. */
  each(visit: (verb: TimedVerb) => void): void {
    for (let verb = this.first; verb !== undefined; ) {
      const { next } = verb;
      visit(verb);
      verb = next;
    }
  }

  override expire(): void {
    const nowMs = this.clock.now();
    // A timer that is this late means that the event loop was busy: answers may be there, and are read after the timers; what was asked for
    // in the turn that was long may have gone out at its end.
    if (this.first !== undefined && nowMs - this.first.endsAtMs > lateMs && !this.hadGrace) {
      this.hadGrace = true;
      this.clock.schedule(this, nowMs + graceMs);
      return;
    }
    this.hadGrace = false;
    while (this.first !== undefined && this.first.endsAtMs <= nowMs) {
      const { first } = this;
      this.end(first);
      first.timedOut();
    }
    if (this.first === undefined) this.restIfIdle();
    else this.clock.schedule(this, this.first.endsAtMs);
  }

  private restIfIdle(): void {
    if (!this.isArmed || this.first !== undefined) return;
    this.isArmed = false;
    this.clock.cancel(this);
    this.onIdle();
  }
}
