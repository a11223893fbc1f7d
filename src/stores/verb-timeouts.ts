/**
 * Verb timeouts: one timer for all verbs of a store that waits for a server, and the listeners for the callers' aborts.
 *
 * Promise: a verb times out within a few milliseconds after its end, or a little later if the event loop was busy, never before. The timer is gone at most
 * one `timeout` after the last verb began. It does not keep the process alive; the client's connection does. All verbs wait equally long, so the first to
 * begin is the first to end. A timer for each verb, scheduled and cancelled, would cost a fifth of a round trip.
 */
import { addAbortListener, removeAbortListener } from '../core/abort-listeners.js';
import { type Clock, Timer } from '../core/clock.js';

/** A verb in progress; it is its own list node. */
export abstract class TimedVerb {
  endsAtMs = 0;
  previous: TimedVerb | undefined = undefined;
  next: TimedVerb | undefined = undefined;
  isListed = false;
  signal: AbortSignal | undefined = undefined;
  onAbort: (() => void) | undefined = undefined;
  /** Ends it with a timeout. */
  abstract timedOut(): void;
  /** Ends it with the reason of the caller's signal. */
  abstract aborted(reason: unknown): void;
}

/** A timer that fires on time is late by less than this. */
const lateMs = 5;
/** Enough for a round trip to a nearby server. */
const graceMs = 20;

export class VerbTimeouts extends Timer {
  private first: TimedVerb | undefined = undefined;
  private last: TimedVerb | undefined = undefined;
  private readonly clock: Clock;
  readonly timeoutMs: number;
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

  /** Whether exactly one verb is in progress. */
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
    // A removed verb that somebody still refers to must not keep all later ones alive.
    verb.previous = undefined;
    verb.next = undefined;
    if (verb.signal !== undefined) removeAbortListener(verb.signal, verb.onAbort!);
    if (this.isClosed) this.restIfIdle();
  }

  /** From now on, it calls `onIdle` as soon as no verb is in progress. */
  close(): void {
    this.isClosed = true;
    this.restIfIdle();
  }

  /** Visits the verbs in the order of their begin. The visitor may end the verb. */
  each(visit: (verb: TimedVerb) => void): void {
    for (let verb = this.first; verb !== undefined; ) {
      const { next } = verb;
      visit(verb);
      verb = next;
    }
  }

  override expire(): void {
    const nowMs = this.clock.now();
    // A timer that is this late means that the event loop was busy. Replies may have arrived, but are read after the timers; and what was written in the long
    // turn may have been sent only at its end.
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
