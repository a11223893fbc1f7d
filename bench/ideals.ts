/**
 * Ideals: what the policies would cost if somebody wrote them by hand for one call, without options and events.
 */

type Task = () => Promise<unknown>;

/** No layer at all: only a synchronous throw becomes a rejection. */
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
 * Timeout: one clock read, a deferred promise, a doubly linked list of deadlines, one armed timer for all of them. All
 * waits of one list are equally long, so that its head is always the nearest.
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
    const waiter = new Waiter(performance.now() + this.afterMs);
    const promise = new Promise((resolve, reject) => {
      waiter.resolve = resolve;
      waiter.reject = reject;
    });
    this.append(waiter);
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

  private append(waiter: Waiter): void {
    const { head } = this;
    const last = head.previous!;
    waiter.previous = last;
    waiter.next = head;
    last.next = waiter;
    head.previous = waiter;
    // The timer is left running when the list becomes empty: disarming it per call would cost more than the call.
    this.timer ??= setTimeout(this.expire, this.afterMs).unref();
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

/** Shared, because making an error with its stack would cost more than everything else. */
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

  /** Answers false when the time had already passed. */
  leave(): boolean {
    if (this.next === undefined) return false;
    this.previous!.next = this.next;
    this.next.previous = this.previous;
    this.previous = undefined;
    this.next = undefined;
    return true;
  }
}

function nothing(): void {}
