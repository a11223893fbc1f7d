/**
 * Single flight: overlapping calls with the same key share one execution.
 *
 * Promise: each caller keeps its own abort and deadline, and one that leaves takes nothing from the others. When the last caller has left, the work
 * is aborted and the next call starts anew. A key is forgotten as soon as its work has ended, so there are never more entries than running calls.
 * After: golang.org/x/sync/singleflight.
 */
import { callObserver } from '../core/ambient.js';
import { Call, type Dependent } from '../core/call.js';
import { HandlesError } from '../core/errors.js';
import { Events } from '../core/events.js';
import { type CommonOptions, checkOptions, commonFields, func, show } from '../core/options.js';
import { rejectLater } from '../core/outcome.js';
import type { Strategy } from '../core/policy.js';
import { ChurnMap } from '../structures/churn-map.js';

/** Options of {@link singleFlight}. */
export interface SingleFlightOptions extends CommonOptions {
  /**
   * Identifies everything that the result depends on: operation, arguments, tenant. Undefined makes the call run alone. There is no
   * default, because `call.key` is often a host or a tenant, and different calls would get each other's results.
   */
  readonly key: (call: Call) => string | undefined;
}

/**
 * Lets concurrent calls for the same thing share one execution and its result.
 *
 * Use it for reads. The operation of the first caller runs, under its own call without a deadline, for as long as any caller
 * waits. All callers get the same object or the same error; read a value that can be read only once, such as a response body,
 * inside the operation. Calls without a key and calls marked `unsafe` run alone. It stores no results: for that, use a cache.
 *
 * @param options - `key`, `name`, `on`, `clock`.
 * @throws Whatever the shared operation throws; for each caller the reason of its own abort.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` when `key` throws or returns neither a string nor undefined.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { pipeline, singleFlight } from 'holdfast';
 *
 * let queries = 0;
 * const users = pipeline(singleFlight({ key: ({ attributes }) => `user ${attributes.id}` }));
 * const load = () => users.execute(async () => ++queries, { attributes: { id: 42 } });
 * console.log(await Promise.all([load(), load(), load()])); // [ 1, 1, 1 ]
 * ```
 */
export function singleFlight(options: SingleFlightOptions): Strategy {
  const { key, name, on, clock } = checkOptions('singleFlight', options, {
    key: func<(call: Call) => string | undefined>(),
    ...commonFields('singleFlight'),
  });
  const events = new Events(name, on);
  const flights = new ChurnMap<string, Flight>();

  function handle<T>(call: Call, next: (call: Call) => Promise<T>): Promise<T> {
    const flightKey = call.unsafe ? undefined : askKey(name, key, call);
    if (flightKey === undefined) return next(call);
    if (call.aborted) return rejectLater(call.reason);
    const shared = flights.get(flightKey);
    const flight = shared ?? new Flight(flights, flightKey, call);
    const answer = flight.join(call) as Promise<T>;
    if (shared === undefined) flight.start(next);
    else if (events.heard) events.emit({ type: 'flight-shared', name, key: flightKey, waiting: flight.waiting });
    return answer;
  }

  return {
    name,
    traits: { kind: 'single-flight', summary: 'lets calls with the same key share one execution', clock },
    handle,
  };
}

function askKey(policy: string, key: (call: Call) => string | undefined, call: Call): string | undefined {
  try {
    const answer: unknown = key(call);
    if (answer === undefined || typeof answer === 'string') return answer;
    throw new TypeError(`it must answer a string or undefined, got ${show(answer)}`);
  } catch (thrown) {
    throw new HandlesError({ policy, option: 'key', thrown });
  }
}

/** One execution and all callers that wait for it. */
class Flight {
  private readonly flights: ChurnMap<string, Flight>;
  private readonly key: string;
  private readonly work: Call;
  private readonly waiters = new Set<Waiter>();
  /** The last caller to leave: its call counts what the work still does, so that a bulkhead outside keeps its slot. */
  private lastCall: Call | undefined = undefined;

  constructor(flights: ChurnMap<string, Flight>, key: string, first: Call) {
    const { clock, task, idempotencyKey, attributes, attempt } = first;
    this.flights = flights;
    this.key = key;
    // No parent and no deadline: nothing that belongs to the first caller may end what others wait for. A deadline extended as others join would come
    // too late for the policies inside, which have already planned with it.
    this.work = new Call(clock, task, { key: first.key, idempotencyKey, attributes }, undefined, attempt);
    if (first.isRetried()) this.work.retriedBy = this;
    callObserver()?.adopt(this.work, first);
    flights.add(key, this);
  }

  get waiting(): number {
    return this.waiters.size;
  }

  join(call: Call): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const waiter = new Waiter(this, call, resolve, reject);
      this.waiters.add(waiter);
      call.attach(waiter);
    });
  }

  start(next: (call: Call) => Promise<unknown>): void {
    next(this.work).then(
      (value) => this.end((waiter) => waiter.resolve(value)),
      (error) => this.end((waiter) => waiter.reject(error)),
    );
  }

  leave(waiter: Waiter, reason: unknown): void {
    this.waiters.delete(waiter);
    if (this.waiters.size > 0) return;
    this.forget();
    this.lastCall = waiter.call;
    waiter.call.beginAbandonedWork();
    this.work.abort(reason);
  }

  private end(settle: (waiter: Waiter) => void): void {
    this.forget();
    const [first] = this.waiters;
    first?.call.beginAbandonedWork();
    // A caller that still waits, or else the last one to leave.
    const holder = first?.call ?? this.lastCall!;
    this.work.onIdle(() => holder.endAbandonedWork());
    for (const waiter of this.waiters) {
      waiter.call.detach(waiter);
      settle(waiter);
    }
  }

  private forget(): void {
    if (this.flights.get(this.key) === this) this.flights.delete(this.key);
  }
}

/** One caller, and the listener for its abort. */
class Waiter implements Dependent {
  owner: Call | undefined = undefined;
  previousDependent: Dependent | undefined = undefined;
  nextDependent: Dependent | undefined = undefined;

  readonly call: Call;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
  private readonly flight: Flight;

  constructor(flight: Flight, call: Call, resolve: (value: unknown) => void, reject: (error: unknown) => void) {
    this.flight = flight;
    this.call = call;
    this.resolve = resolve;
    this.reject = reject;
  }

  onAbort(reason: unknown): void {
    this.reject(reason);
    this.flight.leave(this, reason);
  }
}
