/**
 * Engine: what every HTTP client does around a request, whatever transport sends it.
 *
 * Promise: there is one pipeline and one pacer per origin, and at most `maxOrigins` of them. A request that must not run twice gets one attempt.
 */
import type { Clock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { Events } from '../core/events.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  type Field,
  func,
  having,
  integer,
  oneOf,
  optional,
  withDefault,
} from '../core/options.js';
import { type AnyPolicy, type ExecuteOptions, isPolicy, type Pipeline, pipeline } from '../core/pipeline.js';
import type { Policy } from '../core/policy.js';
import type { DeadlineForm } from '../policies/deadline-headers.js';
import type { CompletableRegistry } from '../policies/keyed.js';
import { Attempts, type EngineRequest, mayRunTwice, type Send } from './attempts.js';
import { type DefaultPolicyOptions, defaultPolicy } from './default-policy.js';
import { Pacer, type PacerPlan } from './pacer.js';

/** How requests are slowed down by what an origin says about its limits. */
export interface PacingOptions {
  /** The longest time that responses can stop all requests to their origin at once. Default 60 s; from 1 ms to 24.8 days. */
  readonly maxPause?: Duration | undefined;
  /** The longest time that a request is delayed; one that would wait longer is refused at once with `RateLimitedError`. Default 10 s; from 0 to 24.8 days. */
  readonly maxWait?: Duration | undefined;
  /** Requests of one origin that may be delayed at the same time. Default 1,000; from 0 to 1,000,000. */
  readonly queue?: number | undefined;
}

/** A request without an idempotency key, passed to the function that creates keys. */
export interface KeylessRequest {
  /** Such as `https://api.example.com`. */
  readonly origin: string;
  /** Such as `POST`. */
  readonly method: string;
}

/** Options of every HTTP client. */
export interface ClientOptions extends CommonOptions {
  /**
   * The policy around each request: one policy, or a function that returns one for an origin such as `https://api.example.com`. `call.key` is the
   * origin. `handles`, exported by the same module, judges status codes. Default: `standard` per origin, with its name and the client's `on`, a
   * deadline of 30 s and 10 s per attempt.
   */
  readonly policy?: AnyPolicy | ((origin: string) => AnyPolicy) | undefined;
  /**
   * `'given'`: a request that must not simply be repeated, such as a POST or PATCH, is repeated only if it has an
   * idempotency key, and then with the same key. `'generate'`: each such request without a key gets one, so choose it only for origins that honour the header. A function returns the key, or
   * undefined for none. Default `'given'`.
   */
  readonly idempotencyKey?: 'given' | 'generate' | ((request: KeylessRequest) => string | undefined) | undefined;
  /** The header that carries the key, of 1 to 200 characters. Default `'idempotency-key'`. */
  readonly idempotencyHeader?: string | undefined;
  /**
   * How long after its first attempt a request may still be sent with its key. Choose less than the service remembers keys: a forgotten
   * key runs the request a second time. Default 23 h, for the usual 24; from 1 ms to 24.8 days.
   */
  readonly maxKeyAge?: Duration | undefined;
  /**
   * In which format the time left until the deadline, and the number of the attempt, are sent. Default
   * `'none'`, because origins of other parties have no use for it.
   */
  readonly propagate?: DeadlineForm | 'none' | undefined;
  /** How `Retry-After` and the `RateLimit` headers slow requests down; `'off'` ignores them. Default: on, with the defaults of its options. */
  readonly pacing?: PacingOptions | 'off' | undefined;
  /** Origins that are remembered; beyond it, the least recently used one is forgotten. Default 1,000; from 1 to 1,000,000. */
  readonly maxOrigins?: number | undefined;
}

/** The state of one origin. */
export interface Origin {
  readonly pipeline: Pipeline<unknown>;
  readonly pacer: Pacer | undefined;
  /** Whether an attempt begins only when the previous answer is no longer needed. */
  readonly isSequential: boolean;
  /** Estimated number of idle connections. An outage uses them up. */
  idleConnections: number;
}

/** The checked options of a client. */
export interface EnginePlan {
  readonly name: string;
  readonly events: Events;
  readonly clock: Clock | undefined;
  readonly policyFor: (origin: string) => AnyPolicy;
  readonly keyFor: ((request: KeylessRequest) => string | undefined) | undefined;
  readonly header: string;
  readonly maxKeyAgeMs: number;
  readonly propagate: DeadlineForm | 'none';
  readonly pacing: PacerPlan | undefined;
  readonly maxOrigins: number;
}

export class Engine {
  private readonly plan: EnginePlan;
  private readonly origins = new Map<string, Origin>();

  constructor(plan: EnginePlan) {
    this.plan = plan;
  }

  /** The header that holds the idempotency key. */
  get idempotencyHeader(): string {
    return this.plan.header;
  }

  /** Creates the key of a request that came without one. */
  keyFor(request: KeylessRequest): string | undefined {
    return mayRunTwice(request.method) ? undefined : this.plan.keyFor?.(request);
  }

  /** Sends a request as often as its policies decide, and resolves with the last answer, or with what the policies return in its place. */
  async run<Answer>(
    request: EngineRequest,
    send: Send<Answer>,
    discard: (answer: Answer) => void,
  ): Promise<Answer | unknown> {
    const origin = this.originOf(request.origin);
    const mayRepeat = request.isReplayable && (mayRunTwice(request.method) || request.key !== undefined);
    const attempts = new Attempts(this.plan, origin, request, mayRepeat, send, discard);
    let result: unknown;
    try {
      result = await origin.pipeline.execute((call) => attempts.make(call), optionsOf(request, mayRepeat));
    } finally {
      attempts.close(result);
    }
    attempts.refuseGivenBack(result);
    return result;
  }

  private originOf(name: string): Origin {
    const { origins } = this;
    const known = origins.get(name);
    const origin = known ?? this.newOrigin(name);
    // A map keeps insertion order, so its first entry is the least recently used.
    if (known !== undefined) origins.delete(name);
    else if (origins.size >= this.plan.maxOrigins) this.forgetOne();
    origins.set(name, origin);
    return origin;
  }

  private newOrigin(name: string): Origin {
    const { pacing, policyFor, clock } = this.plan;
    const { policies } = pipeline(policyFor(name));
    const pacer = pacing === undefined ? undefined : new Pacer(pacing, name, clock);
    const around = pacer === undefined ? policies : withPacer(policies as readonly AnyPolicy[], pacer);
    const isSequential = policies.every(attemptsInTurn);
    return { pipeline: pipeline(...(around as AnyPolicy[])), pacer, isSequential, idleConnections: 0 };
  }

  /** Evicts one origin. Origins with running requests are spared, unless all of the oldest have some. */
  private forgetOne(): void {
    let oldest: string | undefined;
    let looked = 0;
    for (const [name, { pacer }] of this.origins) {
      oldest ??= name;
      if (pacer?.isIdle ?? true) return void this.origins.delete(name);
      if (++looked === 10) break;
    }
    if (oldest !== undefined) this.origins.delete(oldest);
  }
}

/** Puts the pacer in its place among these policies. If the last of those outside it is a registry, its place is among the policies of each key. */
function withPacer(policies: readonly AnyPolicy[], pacer: Pacer): readonly AnyPolicy[] {
  const inside = policies.findLastIndex(isOutsidePacer) + 1;
  const last = policies[inside - 1] as Partial<CompletableRegistry> | undefined;
  if (typeof last?.completed !== 'function') return [...policies.slice(0, inside), pacer, ...policies.slice(inside)];
  const { name, traits, handle } = last.completed((kept) => withPacer(kept, pacer));
  // The pipeline still runs on the clock of the pacer.
  const registry = { name, traits: { ...traits!, clock: pacer.traits.clock ?? traits!.clock }, handle };
  return [...policies.slice(0, inside - 1), registry, ...policies.slice(inside)];
}

/**
 * Whether a policy belongs outside the pacer. The pacer stands inside the policies that repeat, end or refuse a whole call, and outside slots and
 * attempt timeouts: a request that waits for its turn takes no slot, and its attempt has not begun.
 */
function isOutsidePacer(policy: Policy<unknown>): boolean {
  const kind = policy.traits?.kind;
  return 'handle' in policy || kind === 'deadline' || kind === 'circuit-breaker';
}

function attemptsInTurn(policy: Policy<unknown>): boolean {
  const kind = policy.traits?.kind;
  return !('handle' in policy) || kind === 'retry' || kind === 'fallback';
}

function optionsOf({ origin, key, signal }: EngineRequest, mayRepeat: boolean): ExecuteOptions {
  const options = {
    key: origin,
    ...(signal === undefined ? {} : { signal }),
    // A request that may not be repeated is marked unsafe without a key, whatever the reason.
    ...(mayRepeat ? {} : { unsafe: true }),
    ...(mayRepeat && key !== undefined ? { idempotencyKey: key } : {}),
  };
  return options as ExecuteOptions;
}

type KeyMaker = (request: KeylessRequest) => string | undefined;

/** RFC 9110, 5.6.2: an invalid name would be refused by each request that has a key. */
const headerName: Field<string> = {
  allowed: "the name of a header such as 'idempotency-key', of 1 to 200 characters",
  parse: (value) => (typeof value === 'string' && /^[\w!#$%&'*+.^`|~-]{1,200}$/.test(value) ? value : undefined),
};

/** Fields of {@link ClientOptions}, for `checkOptions`. */
export function clientFields(name: string) {
  return {
    policy: optional(policyField),
    idempotencyKey: withDefault<'given' | 'generate' | KeyMaker>(
      either(oneOf(['given', 'generate']), func<KeyMaker>()),
      'given',
    ),
    idempotencyHeader: withDefault(headerName, 'idempotency-key'),
    maxKeyAge: withDefault(duration({}), 82_800_000),
    propagate: withDefault<DeadlineForm | 'none'>(oneOf(['none', 'holdfast', 'grpc', 'envoy']), 'none'),
    pacing: withDefault<'off' | PacingOptions>(either(oneOf(['off']), having<PacingOptions>('pacing options')), {}),
    maxOrigins: withDefault(integer({ min: 1, max: 1_000_000 }), 1_000),
    ...commonFields(name),
  };
}

type Values<Fields> = { readonly [Key in keyof Fields]: Fields[Key] extends Field<infer T> ? T : never };

/** Creates an engine from options that were checked with {@link clientFields}. */
export function engineOf(factory: string, options: Values<ReturnType<typeof clientFields>>): Engine {
  const { policy, idempotencyKey, idempotencyHeader, maxKeyAge, pacing, name, on, ...rest } = options;
  const events = new Events(name, on);
  return new Engine({
    ...rest,
    name,
    events,
    policyFor: policyMaker(policy, { on, clock: rest.clock, isPaced: pacing !== 'off' }),
    keyFor: idempotencyKey === 'given' ? undefined : idempotencyKey === 'generate' ? randomKey : idempotencyKey,
    header: idempotencyHeader.toLowerCase(),
    maxKeyAgeMs: maxKeyAge,
    pacing: pacing === 'off' ? undefined : pacerPlan(factory, pacing, name, events),
  });
}

function policyMaker(policy: ClientOptions['policy'], common: DefaultPolicyOptions) {
  if (policy === undefined) return (origin: string) => defaultPolicy(origin, common);
  return typeof policy === 'function' ? policy : () => policy;
}

function pacerPlan(factory: string, given: PacingOptions, name: string, events: Events): PacerPlan {
  const { maxPause, maxWait, queue } = checkOptions(`${factory} pacing`, given, {
    maxPause: withDefault(duration({}), 60_000),
    maxWait: withDefault(duration({ min: 0 }), 10_000),
    queue: withDefault(integer({ min: 0, max: 1_000_000 }), 1_000),
  });
  return { name, events, maxPauseMs: maxPause, maxWaitMs: maxWait, maxQueue: queue };
}

/** The longest name of a host in the DNS, and a dot. */
const longestHost = 254;

/** Whether there can be such an origin. State kept for a longer name would be of any size, and of no use. */
export function canExist({ hostname }: URL): boolean {
  return hostname.length <= longestHost;
}

function randomKey(): string {
  return globalThis.crypto.randomUUID();
}

/** A single policy is checked here, so that a mistake shows at once. The policies of a function are checked when their origin is first called. */
const policyField: Field<NonNullable<ClientOptions['policy']>> = {
  allowed: "a policy such as timeout('1s'), or a function that answers one",
  parse(value) {
    if (typeof value === 'function') return value as (origin: string) => AnyPolicy;
    if (!isPolicy(value)) return undefined;
    pipeline(value);
    return value;
  },
};

function either<One, Other>(one: Field<One>, other: Field<Other>): Field<One | Other> {
  return {
    allowed: `${one.allowed} or ${other.allowed}`,
    parse: (value) => one.parse(value) ?? other.parse(value),
  };
}
