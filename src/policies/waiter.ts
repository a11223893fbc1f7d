/**
 * Waiter: a call in the queue of a guard. It is also the timer of its wait and the listener for its abort.
 *
 * Promise: a call that is aborted while it waits leaves the queue in the same tick and is answered with the reason.
 */
import type { Call, Dependent } from '../core/call.js';
import { type Clock, Timer } from '../core/clock.js';
import { type Permit, type Refusal, refuse } from '../core/policy.js';
import type { QueueNode } from '../structures/linked-queue.js';

/** The guard that owns the queue. */
export interface WaitingRoom {
  /** The waiter's scheduled instant has come. */
  due(waiter: Waiter): void;
  /** Removes a waiter from the queue. The code that does so also answers the waiter. */
  takeOut(waiter: Waiter): void;
}

export class Waiter extends Timer implements Dependent, QueueNode<Waiter> {
  owner: Call | undefined = undefined;
  previousDependent: Dependent | undefined = undefined;
  nextDependent: Dependent | undefined = undefined;
  previousInQueue: Waiter | undefined = undefined;
  nextInQueue: Waiter | undefined = undefined;
  readonly call: Call | undefined;
  readonly clock: Clock;
  readonly sinceMs: number;
  /** How much the waiter needs of what the guard hands out. */
  readonly cost: number;
  answer!: (answer: Permit | Refusal) => void;
  private readonly room: WaitingRoom;

  constructor(room: WaitingRoom, call: Call | undefined, clock: Clock, sinceMs: number, cost = 1) {
    super();
    this.room = room;
    this.call = call;
    this.clock = clock;
    this.sinceMs = sinceMs;
    this.cost = cost;
  }

  /** Joins the end of the queue. The promise resolves with the later answer. */
  join(queue: { add(waiter: Waiter): unknown }): Promise<Permit | Refusal> {
    queue.add(this);
    const promise = new Promise<Permit | Refusal>((resolve) => {
      this.answer = resolve;
    });
    // Last, because a call that is already aborted notifies its dependents at once.
    this.call?.attach(this);
    return promise;
  }

  override expire(): void {
    this.room.due(this);
  }

  onAbort(reason: unknown): void {
    this.room.takeOut(this);
    this.answer(refuse(reason));
  }
}
