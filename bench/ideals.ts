/** Ideals: what the policies would cost if written by hand for one call, without options and events. */

type Task = () => Promise<unknown>;

/** No layer at all: it only turns a synchronous throw into a rejection. */
export function idealEmpty(task: Task): Promise<unknown> {
  try {
    return task();
  } catch (error) {
    return Promise.reject(error);
  }
}

export async function idealRetry(task: Task, attempts = 3): Promise<unknown> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await task();
    } catch (error) {
      if (attempt >= attempts) throw error;
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 100 * 2 ** (attempt - 1)));
    }
  }
}

/**
 * Timeout: one clock read, a deferred promise, a doubly linked list of deadlines, one armed timer for all of them. All waits in a list have the same
 * length, so the head of the list always ends first.
 */
export class IdealTimeout {
  private readonly afterMs: number;
  private readonly head: Waiter;
  private timer: NodeJS.Timeout | undefined;

  constructor(afterMs: number) {
    this.afterMs = afterMs;
    this.head = new Waiter(0);
    this.head.previous = this.head;
    this.head.next = this.head;
  }

  run(task: Task): Promise<unknown> {
    const waiter = this.begin(performance.now());
    const promise = new Promise((resolve, reject) => {
      waiter.resolve = resolve;
      waiter.reject = reject;
    });
    task().then(
      (value) => {
        if (waiter.leave()) waiter.resolve(value);
      },
      (error) => {
        if (waiter.leave()) waiter.reject(error);
      },
    );
    return promise;
  }

  begin(nowMs: number): Waiter {
    const waiter = new Waiter(nowMs + this.afterMs);
    const { head } = this;
    const last = head.previous!;
    waiter.previous = last;
    waiter.next = head;
    last.next = waiter;
    head.previous = waiter;
    // The timer keeps running when the list becomes empty: disarming it per call would cost more than the call.
    this.timer ??= setTimeout(this.expire, this.afterMs).unref();
    return waiter;
  }

  private readonly expire = () => {
    const nowMs = performance.now();
    const { head } = this;
    for (let waiter = head.next!; waiter !== head && waiter.endsAtMs <= nowMs; waiter = head.next!) {
      waiter.leave();
      waiter.reject(expired);
    }
    const nearest = head.next!;
    this.timer = nearest === head ? undefined : setTimeout(this.expire, Math.max(1, nearest.endsAtMs - nowMs));
  };
}

/** Shared, because creating an error with its stack would cost more than everything else. */
const expired = new Error('expired');

class Waiter {
  readonly endsAtMs: number;
  previous: Waiter | undefined = undefined;
  next: Waiter | undefined = undefined;
  resolve: (value: unknown) => void = nothing;
  reject: (error: unknown) => void = nothing;

  constructor(endsAtMs: number) {
    this.endsAtMs = endsAtMs;
  }

  /** Returns false if the time has already passed. */
  leave(): boolean {
    if (this.next === undefined) return false;
    this.previous!.next = this.next;
    this.next.previous = this.previous;
    this.previous = undefined;
    this.next = undefined;
    return true;
  }
}

/**
 * Circuit breaker: one clock read per call, sums over ten time buckets, no layer. It opens for five seconds when half of at least twenty calls in the
 * last thirty seconds failed.
 */
export class IdealBreaker {
  private readonly buckets = new Array<number>(20).fill(0);
  private epoch = 0;
  private calls = 0;
  private failures = 0;
  private openUntilMs = 0;

  run(task: Task): Promise<unknown> {
    if (this.isOpen()) return idealRefusal();
    return task().then(this.succeeded, this.failed);
  }

  isOpen(): boolean {
    return this.openUntilMs > 0 && performance.now() < this.openUntilMs;
  }

  count(failed: boolean, nowMs: number): void {
    const epoch = Math.floor(nowMs / 3000);
    if (epoch !== this.epoch) this.moveTo(epoch);
    const at = 2 * (epoch % 10);
    this.calls++;
    this.buckets[at]!++;
    if (!failed) return;
    this.failures++;
    this.buckets[at + 1]!++;
    if (this.calls >= 20 && 2 * this.failures >= this.calls) this.openUntilMs = nowMs + 5000;
  }

  private readonly succeeded = (value: unknown) => {
    this.count(false, performance.now());
    return value;
  };

  private readonly failed = (error: unknown) => {
    this.count(true, performance.now());
    throw error;
  };

  private moveTo(epoch: number): void {
    for (let next = Math.max(this.epoch, epoch - 10) + 1; next <= epoch; next++) {
      const at = 2 * (next % 10);
      this.calls -= this.buckets[at]!;
      this.failures -= this.buckets[at + 1]!;
      this.buckets.fill(0, at, at + 2);
    }
    this.epoch = epoch;
  }
}

/** An error without a stack, rejected one microtask late: by then a handler is attached, which saves Node its bookkeeping. */
export function idealRefusal(): Promise<never> {
  return new Promise((_, reject) => {
    resolved.then(() => reject(Object.create(Error.prototype)));
  });
}

const resolved = Promise.resolve();

/** The same with a real error that says for how long. */
export function idealErrorOfRefusal(untilMs: number): Promise<never> {
  const error = withoutStack(`"ideal" is open for another ${Math.round(untilMs - performance.now())} ms`);
  return new Promise((_, reject) => {
    resolved.then(() => reject(error));
  });
}

function withoutStack(message: string): Error {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 0;
  const error = new Error(message);
  Error.stackTraceLimit = limit;
  return error;
}

/** At most `limit` calls at once; the others wait in a linked list. */
export class IdealSlots {
  private free: number;
  private first: Turn | undefined = undefined;
  private last: Turn | undefined = undefined;

  constructor(limit: number) {
    this.free = limit;
  }

  async run(task: Task): Promise<unknown> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((begin) => this.append({ begin, next: undefined }));
    try {
      return await task();
    } finally {
      this.giveBack();
    }
  }

  private append(turn: Turn): void {
    if (this.last === undefined) this.first = turn;
    else this.last.next = turn;
    this.last = turn;
  }

  private giveBack(): void {
    const { first } = this;
    if (first === undefined) {
      this.free++;
      return;
    }
    this.first = first.next;
    if (this.first === undefined) this.last = undefined;
    first.begin();
  }
}

interface Turn {
  readonly begin: () => void;
  next: Turn | undefined;
}

/**
 * Bulkhead, retry, circuit breaker and timeout, written into one another: one promise, one clock read, one list node. With calls, the operation
 * receives the call of its attempt, which ends with that attempt; one call around all attempts ends all of them.
 */
export class IdealFour {
  private free: number;
  private readonly hasCalls: boolean;
  private readonly breaker = new IdealBreaker();
  private readonly timeout = new IdealTimeout(1000);

  constructor(limit: number, hasCalls = false) {
    this.free = limit;
    this.hasCalls = hasCalls;
  }

  run(task: Task): Promise<unknown> {
    if (this.free === 0) return idealRefusal();
    this.free--;
    const call = this.hasCalls ? new IdealCall(undefined, 1) : undefined;
    return new Promise((resolve, reject) => this.attempt(task, call, 1, resolve, reject));
  }

  private attempt(
    task: (call?: IdealCall) => Promise<unknown>,
    call: IdealCall | undefined,
    attempt: number,
    resolve: (value: unknown) => void,
    reject: (error: unknown) => void,
  ): void {
    if (this.breaker.isOpen()) {
      this.free++;
      idealRefusal().catch(reject);
      return;
    }
    const nowMs = performance.now();
    const waiter = this.timeout.begin(nowMs);
    const inner = call === undefined ? undefined : new IdealCall(call, attempt);
    waiter.reject = (error) => {
      inner?.abort(error);
      this.breaker.count(true, performance.now());
      if (attempt < 3) {
        const again = () => this.attempt(task, call, attempt + 1, resolve, reject);
        setTimeout(again, Math.random() * 100 * 2 ** (attempt - 1));
        return;
      }
      this.free++;
      reject(error);
    };
    task(inner).then(
      (value) => {
        if (!waiter.leave()) return;
        this.breaker.count(false, nowMs);
        this.free++;
        resolve(value);
      },
      (error) => {
        if (waiter.leave()) waiter.reject(error);
      },
    );
  }
}

/** What an operation knows about its execution: the same fields as ours, and of the behaviour only the abort. */
class IdealCall {
  readonly parent: IdealCall | undefined;
  readonly attempt: number;
  readonly options: object | undefined = undefined;
  deadlineMs: number | undefined = undefined;
  hasAborted = false;
  reason: unknown = undefined;
  private controller: AbortController | undefined = undefined;
  private inner: IdealCall | undefined = undefined;

  constructor(parent: IdealCall | undefined, attempt: number) {
    this.parent = parent;
    this.attempt = attempt;
    // Attempts run one after the other, so an abort only has to reach the last one.
    if (parent !== undefined) parent.inner = this;
  }

  get signal(): AbortSignal {
    this.controller ??= new AbortController();
    return this.controller.signal;
  }

  abort(reason: unknown): void {
    if (this.hasAborted) return;
    this.hasAborted = true;
    this.reason = reason;
    this.controller?.abort(reason);
    this.inner?.abort(reason);
  }
}

/** Admits a call and counts once: it references its breaker until it has been used. */
export class IdealPermit {
  private breaker: IdealBreaker | undefined;
  readonly generation: number;

  constructor(breaker: IdealBreaker, generation: number) {
    this.breaker = breaker;
    this.generation = generation;
  }

  settle(failed: boolean, nowMs: number): void {
    const { breaker } = this;
    this.breaker = undefined;
    breaker?.count(failed, nowMs);
  }
}

function nothing(): void {}
