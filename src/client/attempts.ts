/**
 * Attempts: the attempts of one logical request, whatever transport sends them.
 *
 * Promise: each answer that the caller does not get is released, at the latest when the call is over. A request that meets a connection just being
 * closed is resent once at once, if it may run twice. A request that depends on its idempotency key is not sent a second time to a place that does
 * not get the key, or no longer knows it.
 */
import type { Call } from '../core/call.js';
import { HoldfastError, InDoubtError } from '../core/errors.js';
import { attemptHeader, deadlineHeaders } from '../policies/deadline-headers.js';
import type { EnginePlan, Origin } from './engine.js';
import { isLostConnection, noteFinal } from './handles.js';

/** What the engine needs to know about one logical request. */
export interface EngineRequest {
  readonly origin: string;
  readonly method: string;
  /** The idempotency key sent with each attempt. */
  readonly key: string | undefined;
  /** Whether its body can be sent again. */
  readonly isReplayable: boolean;
  readonly signal: AbortSignal | undefined;
}

/**
 * Sends one attempt with these headers added to its own. `leave` is called before a request that needs its key continues without it, and throws if
 * that has happened before.
 */
export type Send<Answer> = (
  call: Call,
  headers: Readonly<Record<string, string>>,
  leave: () => void,
) => Promise<Answer>;

/** Methods that may run twice: RFC 9110, 9.2.2, and QUERY. */
const repeatable = /^(?:GET|HEAD|OPTIONS|TRACE|PUT|DELETE|QUERY)$/;

/** Whether a request of this method may run twice even without an idempotency key. */
export function mayRunTwice(method: string): boolean {
  return repeatable.test(method);
}

/** The most immediate resends that an origin's answers can earn: about as many as it may have idle connections. */
const mostReconnections = 64;

const noHeaders: Readonly<Record<string, string>> = {};

/** The attempts of one logical request. It holds their answers until it is known which one the caller gets. */
export class Attempts<Answer> {
  private readonly plan: EnginePlan;
  private readonly origin: Origin;
  private readonly request: EngineRequest;
  private readonly send: Send<Answer>;
  private readonly discard: (answer: Answer) => void;
  private readonly answers: Answer[] = [];
  private readonly givenBack = new Set<unknown>();
  private lastError: unknown = undefined;
  /** When the first attempt began, by the clock of the calls. */
  private beganMs: number | undefined = undefined;
  private mayReconnect: boolean;
  /** Whether the request went on to a place that does not get its key, so that a second send would run it twice. */
  private hasLeft = false;
  private isOver = false;

  constructor(
    plan: EnginePlan,
    origin: Origin,
    request: EngineRequest,
    mayRepeat: boolean,
    send: Send<Answer>,
    discard: (answer: Answer) => void,
  ) {
    this.plan = plan;
    this.origin = origin;
    this.request = request;
    this.mayReconnect = mayRepeat;
    this.send = send;
    this.discard = discard;
  }

  async make(call: Call): Promise<Answer> {
    this.checkKey(call);
    // An answer that is held keeps its connection. If there is only one, the next attempt would wait for it.
    if (this.origin.isSequential) this.giveBackAllBut(undefined);
    let answer: Answer;
    try {
      answer = await this.sendSafely(call);
    } catch (error) {
      this.lastError = error;
      throw error;
    }
    if (this.hasLeft) noteFinal(answer);
    // A user's function may return the same answer again.
    this.givenBack.delete(answer);
    if (this.origin.idleConnections < mostReconnections) this.origin.idleConnections++;
    // Nobody waits for an answer that arrives after a timeout.
    if (this.isOver || call.aborted) this.giveBack(answer);
    else this.answers.push(answer);
    return answer;
  }

  private checkKey(call: Call): void {
    const { name, maxKeyAgeMs } = this.plan;
    this.checkLeft();
    const nowMs = call.clock.now();
    this.beganMs ??= nowMs;
    const ageMs = nowMs - this.beganMs;
    if (this.request.key === undefined || ageMs <= maxKeyAgeMs) return;
    const detail = `the idempotency key is ${Math.round(ageMs)} ms old ("maxKeyAge" is ${maxKeyAgeMs} ms), so the other side may have forgotten it; the request was not sent again`;
    throw new InDoubtError({ policy: name, reason: 'too-old', detail });
  }

  private readonly leave = (): void => {
    if (mayRunTwice(this.request.method)) return;
    this.checkLeft();
    this.hasLeft = true;
  };

  private checkLeft(): void {
    if (!this.hasLeft) return;
    const detail =
      'the request was redirected to another origin, which does not get its idempotency key, so it was not sent again';
    throw new InDoubtError({ policy: this.plan.name, reason: 'redirected', detail });
  }

  close(result: unknown): void {
    this.isOver = true;
    this.giveBackAllBut(result);
  }

  /**
   * Refuses a result whose answer has been released. A retry whose further attempt was refused, for instance by another client inside this one,
   * returns the previous answer, which may have been released for that attempt.
   */
  refuseGivenBack(result: unknown): void {
    if (!this.givenBack.has(result)) return;
    const message = `"${this.plan.name}" gave the response of an attempt back for a further one, which was refused`;
    throw new HoldfastError('ERR_ATTEMPTS_DISCARDED', message, { cause: this.lastError });
  }

  private giveBackAllBut(result: unknown): void {
    for (const answer of this.answers.splice(0)) if (answer !== result) this.giveBack(answer);
  }

  private giveBack(answer: Answer): void {
    this.givenBack.add(answer);
    this.plan.events.contain('discard', () => this.discard(answer));
  }

  /** Resends a request that met an idle connection just being closed. Done once, and it does not count as an attempt. */
  private async sendSafely(call: Call): Promise<Answer> {
    try {
      return await this.send(call, this.headersOf(call), this.leave);
    } catch (error) {
      const { origin, request, plan } = this;
      const repeats =
        this.mayReconnect && !this.hasLeft && origin.idleConnections > 0 && !call.aborted && isLostConnection(error);
      if (this.hasLeft) noteFinal(error);
      if (!repeats) throw error;
      this.mayReconnect = false;
      origin.idleConnections--;
      const { events, name } = plan;
      if (events.heard) events.emit({ type: 'reconnected', name, origin: request.origin, error });
      return await this.send(call, this.headersOf(call), this.leave);
    }
  }

  private headersOf(call: Call): Readonly<Record<string, string>> {
    const { propagate } = this.plan;
    if (propagate === 'none') return noHeaders;
    const headers = deadlineHeaders(call.remainingMs, propagate);
    // Only if a retry is at work: the header keeps the called service from retrying as well.
    const isRepeated = call.attempt > 1 || call.isRetried();
    return isRepeated ? { ...headers, [attemptHeader]: String(call.attempt) } : headers;
  }
}
