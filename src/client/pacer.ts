/**
 * Pacer: lets the requests to one origin start at the rate that the origin announces, so that they slow down before the next 429 instead of because
 * of it.
 *
 * Promise: nothing is delayed until responses ask for it. While others are served, a refusal stops nobody but the request that was refused. A pause
 * never lasts longer than `maxPause`, whatever a header says. The latest statement about the quota counts while it can still be true, so one wrong
 * response cannot block for ever. Waiters are served in order, and none starts so late that its deadline would end it: in a lasting overload all
 * would, and none would succeed. There is no timer without a waiter.
 * After: RFC 9110, 10.2.3 (Retry-After); draft-ietf-httpapi-ratelimit-headers.
 */
import type { Call } from '../core/call.js';
import type { Clock } from '../core/clock.js';
import { isAbandoned, RateLimitedError } from '../core/errors.js';
import type { Events } from '../core/events.js';
import type { Outcome } from '../core/outcome.js';
import { type Guard, type Permit, type PolicyTraits, type Refusal, refuse } from '../core/policy.js';
import { retryHintOf } from '../policies/retry/retry-after.js';
import { UsualTime } from '../policies/usual-time.js';
import { Waiter, type WaitingRoom } from '../policies/waiter.js';
import { hasRetryAfter, headOf } from './handles.js';
import { type Quota, quotaOf } from './rate-limit-headers.js';

/** A pacer's settings, in milliseconds and counts. */
export interface PacerPlan {
  readonly name: string;
  readonly events: Events;
  /** The longest time for which a header can stop all requests. */
  readonly maxPauseMs: number;
  /** The longest delay of one request; beyond it the request is refused with that time. */
  readonly maxWaitMs: number;
  /** Requests that may wait at once. */
  readonly maxQueue: number;
}

/**
 * No request starts before `fromMs`. Then one does per `intervalMs`, and one more for each that has ended, until nobody waits. If all started at once,
 * the service or a limit inside would turn most of them away after their wait.
 */
interface Pause {
  readonly fromMs: number;
  readonly intervalMs: number;
  /** Requests that have started since `fromMs`, including those that a policy inside has refused, less all that have ended. */
  unended: number;
  /** When it is over if nobody waits then. */
  untilMs: number;
  /** Whether refusals caused it, so that a request that is served ends the wait. A used-up quota stays used up until a response states another. */
  readonly isByRefusals: boolean;
}

/** What is left of the service's quota as far as known; counted down with each start. */
interface Left {
  /** Requests that may start without delay. */
  free: number;
  /** Requests that may start in total. */
  remaining: number;
  readonly resetsAtMs: number;
  /** The number of the request that was answered with this. */
  readonly number: number;
  /** When this information becomes too old to use. */
  readonly untilMs: number;
}

/** So many refusals in a row stop an origin that has served all requests before. One may be about a single user, or come from a single instance. */
const fewestRefusals = 5;
/** The share of the usual number of refusals in a row that is kept after each served request: half after 70. */
const runKept = 0.99;

/** The share of a quota that is granted without delay. The rest is spread over the time until the reset, or that which a request may wait. */
const spreadShare = 0.5;
/** A reset is counted from the start of the request, or up to this share of itself later: when within the request the service counted is not known. */
const resetTolerance = 0.1;

export class Pacer implements Guard, WaitingRoom {
  readonly name: string;
  readonly traits: PolicyTraits;
  private readonly plan: PacerPlan;
  private readonly origin: string;
  private readonly waiters = new Set<Waiter>();
  private pause: Pause | undefined = undefined;
  private left: Left | undefined = undefined;
  private lastRemaining = 0;
  private fullQuota = 0;
  private running = 0;
  /** Requests made so far. */
  private starts = 0;
  /** Requests refused since the last one that was served. */
  private refusals = 0;
  /** About the most refusals between two served requests lately. */
  private usualRefusals = 0;
  private readonly usualTime = new UsualTime();
  private lastStartMs = Number.NEGATIVE_INFINITY;

  constructor(plan: PacerPlan, origin: string, clock: Clock | undefined) {
    this.plan = plan;
    this.origin = origin;
    this.name = plan.name;
    this.traits = { kind: 'pacer', summary: 'starts requests as fast as the other side says it takes them', clock };
  }

  admit(call: Call): Permit | Refusal | Promise<Permit | Refusal> {
    const nowMs = call.admissionMs();
    const { size } = this.waiters;
    const startMs = size === 0 ? this.nextStartMs(nowMs) : this.startOfNewcomerMs(nowMs);
    if (size === 0 && startMs <= nowMs) return this.start(nowMs, call);
    const { maxWaitMs, maxQueue } = this.plan;
    const delayMs = Math.max(0, startMs - nowMs);
    const waits = size < maxQueue && delayMs <= maxWaitMs && this.isInTime(call, nowMs + delayMs);
    if (!waits) return this.refusal(delayMs);
    this.tell(delayMs, false);
    const place = new Waiter(this, call, call.clock, nowMs).join(this.waiters);
    this.due();
    return place;
  }

  /** Whether this pacer holds no state worth keeping. */
  get isIdle(): boolean {
    return this.running === 0 && this.waiters.size === 0;
  }

  /** @internal Starts the waiters whose time has come, in order. The first remaining one gets a timer. */
  due(): void {
    for (const waiter of this.waiters) {
      const { clock, sinceMs } = waiter;
      const nowMs = clock.now();
      const startMs = this.nextStartMs(nowMs, sinceMs);
      const isTooLong = startMs - sinceMs > this.plan.maxWaitMs;
      // A later response may have postponed the start.
      const isTooLate = !this.isInTime(waiter.call!, startMs);
      if (startMs > nowMs && !isTooLong && !isTooLate) return clock.schedule(waiter, startMs);
      this.remove(waiter);
      waiter.answer(startMs > nowMs || isTooLate ? this.refusal(startMs - nowMs) : this.start(nowMs, waiter.call!));
    }
  }

  /** @internal Removes a waiter. The next one may become the first. */
  takeOut(waiter: Waiter): void {
    this.remove(waiter);
    this.due();
  }

  /** A request has ended, or was not made after all. */
  ended(outcome: Outcome | undefined, { startedMs, number, call: { clock, aborted } }: PacerPermit): void {
    this.running--;
    if (outcome !== undefined || aborted) this.noteEnd(clock);
    const head = outcome === undefined ? undefined : headOf(outcome);
    this.learnDuration(outcome, head?.status, startedMs, clock);
    if (outcome === undefined) {
      // It was refused further inside, or its caller left. If the service counted it anyway, the next response says so.
      this.starts--;
      if (this.left !== undefined) {
        this.left.free++;
        this.left.remaining++;
      }
    }
    if (outcome !== undefined && head !== undefined) {
      const nowMs = clock.now();
      const wallNowMs = clock.wallNow();
      const { status, headers } = head;
      if (status === 429 || status === 503 || (status === 403 && hasRetryAfter(headers))) {
        const hint = retryHintOf(outcome, wallNowMs);
        if (typeof hint === 'number') this.noteRefusal(hint, nowMs);
      } else if (status < 500) this.noteServed(nowMs);
      const quota = quotaOf(headers, wallNowMs);
      if (quota !== undefined) this.learn(quota, startedMs, number, nowMs);
    }
    this.due();
  }

  private learnDuration(
    outcome: Outcome | undefined,
    status: number | undefined,
    startedMs: number,
    clock: Clock,
  ): void {
    // A refusal by the service comes quickly, and does not tell how long a request takes that is served.
    if (status !== undefined && status < 400) this.usualTime.noteSuccess(clock.now() - startedMs);
    else if (outcome?.ok === false && isAbandoned(outcome.error)) this.usualTime.noteGivenUp(clock.now() - startedMs);
  }

  /** Whether a request that starts then can be expected to end before its deadline. */
  private isInTime(call: Call, startMs: number): boolean {
    return startMs + this.usualTime.ms < call.deadlineMs;
  }

  private refusal(delayMs: number): Refusal {
    this.tell(delayMs, true);
    return refuse(new RateLimitedError({ policy: this.name, retryAfterMs: delayMs }));
  }

  private tell(delayMs: number, refused: boolean): void {
    const { events, name } = this.plan;
    if (events.heard) events.emit({ type: 'paced', name, origin: this.origin, delayMs, refused });
  }

  /** A refusal says when that request may come back. Only when the service refuses all does that hold for the others. */
  private noteRefusal(askedMs: number, nowMs: number): void {
    this.refusals++;
    if (this.refusals >= Math.max(fewestRefusals, 2 * this.usualRefusals)) this.pauseFor(askedMs, nowMs, true);
  }

  /** A request has made room for another. One that was refused further inside has not. */
  private noteEnd(clock: Clock): void {
    const { pause } = this;
    if (pause === undefined || clock.now() < pause.fromMs) return;
    pause.untilMs = pause.fromMs;
    pause.unended--;
  }

  private noteServed(nowMs: number): void {
    this.usualRefusals = Math.max(this.refusals, this.usualRefusals * runKept);
    this.refusals = 0;
    if (this.pause?.isByRefusals) this.endPause(this.pause, nowMs);
  }

  /** Those that wait begin to return now. */
  private endPause(pause: Pause, nowMs: number): void {
    if (nowMs < pause.fromMs) this.pause = { ...pause, fromMs: nowMs, untilMs: nowMs };
  }

  private pauseFor(askedMs: number, nowMs: number, isByRefusals: boolean): void {
    const pauseMs = Math.min(askedMs, this.plan.maxPauseMs);
    const fromMs = nowMs + pauseMs;
    // A response to an earlier request does not shorten what a later one has asked for.
    if (this.pause !== undefined && this.pause.fromMs >= fromMs) return;
    const intervalMs = pauseMs / 100;
    this.pause = { fromMs, intervalMs, unended: 0, untilMs: fromMs + 10 * intervalMs, isByRefusals };
  }

  /** @param number - That of the request that was answered with this quota. */
  private learn(stated: Quota, startedMs: number, number: number, nowMs: number): void {
    const { remaining, limit } = stated;
    // If the limit is not stated, the remaining quota when it last grew stands for it.
    if (remaining > this.lastRemaining) this.fullQuota = remaining;
    this.lastRemaining = remaining;
    const quota = limit ?? this.fullQuota;
    // The service may have counted when the request began: those that have started since are assumed not to be counted.
    const left = Math.max(0, remaining - (this.starts - number));
    const isUsedUp = this.pause?.isByRefusals === false && nowMs < this.pause.fromMs;
    const isOlder = this.left !== undefined && number < this.left.number && nowMs < this.left.untilMs;
    // After a long answer the quota may have been renewed, or a later request may have been answered before.
    const ageMs = stated.isInstant ? 0 : nowMs - startedMs;
    if (ageMs >= stated.resetMs || (isOlder && !(isUsedUp && left > 0))) return;
    const resetMs = stated.resetMs - Math.max(0, ageMs - stated.resetMs * resetTolerance);
    if (remaining === 0) this.pauseFor(resetMs, nowMs, false);
    // The other response was about another quota, such as that of another user, or the quota has been renewed.
    if (left > 0 && this.pause?.isByRefusals === false) this.endPause(this.pause, nowMs);
    this.left = {
      free: Math.max(0, left - quota * spreadShare),
      remaining: left,
      resetsAtMs: nowMs + resetMs,
      number,
      untilMs: nowMs + Math.min(resetMs, this.plan.maxPauseMs),
    };
  }

  private start(nowMs: number, call: Call): Permit {
    this.running++;
    this.starts++;
    this.lastStartMs = nowMs;
    const { left, pause } = this;
    if (pause !== undefined) pause.unended++;
    if (left !== undefined) {
      left.free--;
      left.remaining--;
    }
    return new PacerPermit(this, this.starts, nowMs, call);
  }

  /** The earliest instant at which a request may start that has waited since then. */
  private nextStartMs(nowMs: number, sinceMs = nowMs): number {
    const { pause, left, lastStartMs } = this;
    let startMs = nowMs;
    if (pause !== undefined) {
      if (nowMs >= pause.untilMs && this.waiters.size === 0) this.pause = undefined;
      else startMs = Math.max(startMs, pause.fromMs + pause.unended * pause.intervalMs);
    }
    if (left !== undefined) {
      if (nowMs >= left.untilMs) this.left = undefined;
      else if (left.free < 1) {
        // A request that the quota allows is not refused for the spread.
        const latestMs = left.remaining < 1 ? left.untilMs : Math.min(left.untilMs, sinceMs + this.plan.maxWaitMs);
        startMs = Math.max(startMs, Math.min(lastStartMs + this.intervalMs(left, nowMs), latestMs));
      }
    }
    return startMs;
  }

  private intervalMs({ remaining, resetsAtMs }: Left, nowMs: number): number {
    const { maxPauseMs, maxWaitMs } = this.plan;
    const toResetMs = resetsAtMs - nowMs;
    // Spread over a longer time than they may wait, requests would be refused although the quota allows them.
    const spreadMs = remaining < 1 ? toResetMs : Math.min(toResetMs, maxWaitMs) / (remaining + 1);
    return Math.min(spreadMs, maxPauseMs);
  }

  /** An estimate of when a new request would start, behind those that wait. */
  private startOfNewcomerMs(nowMs: number): number {
    const nextMs = this.nextStartMs(nowMs);
    const { pause, left } = this;
    const { size } = this.waiters;
    const afterPauseMs = nextMs + (pause === undefined ? 0 : returnMs(pause, size));
    if (left === undefined) return afterPauseMs;
    // When the quota information expires it delays nobody any more, however many wait.
    const byQuotaMs = Math.min(nextMs + size * this.intervalMs(left, nowMs), left.untilMs);
    return Math.max(afterPauseMs, byQuotaMs);
  }

  private remove(waiter: Waiter): void {
    this.waiters.delete(waiter);
    waiter.clock.cancel(waiter);
    waiter.call?.detach(waiter);
  }
}

/** How long so many requests take to return after a pause, about: at first one per interval, then, as others end, ever more. */
function returnMs({ intervalMs }: Pause, requests: number): number {
  return intervalMs * Math.min(requests, 10 * Math.log2(1 + requests / 10));
}

class PacerPermit implements Permit {
  /** The number of its request. */
  readonly number: number;
  readonly startedMs: number;
  readonly call: Call;
  private readonly pacer: Pacer;

  constructor(pacer: Pacer, number: number, startedMs: number, call: Call) {
    this.pacer = pacer;
    this.number = number;
    this.startedMs = startedMs;
    this.call = call;
  }

  settle(outcome: Outcome): void {
    this.pacer.ended(outcome, this);
  }

  release(): void {
    this.pacer.ended(undefined, this);
  }
}
