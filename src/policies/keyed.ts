/**
 * Keyed: a policy per key, such as a circuit breaker per host or tenant, in a bounded registry.
 *
 * Promise: there are never more than `maxKeys` policies. Policies with nothing to lose are evicted first, and open circuits last. There are no
 * timers. The calls of a key use its own policy and leave the policies of other keys alone.
 * After: Envoy, outlier detection (`max_ejection_percent`), for the share of a group that may be open at once.
 */
import { showBriefly } from '../core/brief.js';
import type { Call } from '../core/call.js';
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { HandlesError, OptionsError } from '../core/errors.js';
import { guardLayer } from '../core/layer.js';
import type { Next } from '../core/operation.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  func,
  integer,
  number,
  optional,
  show,
  withDefault,
} from '../core/options.js';
import { rejectLater } from '../core/outcome.js';
import { type AddedBy, type AnyPolicy, isPolicy, link } from '../core/pipeline.js';
import type { Policy, Strategy } from '../core/policy.js';
import { type Rank, RankedCache } from '../structures/ranked-cache.js';
import type { CircuitBreaker } from './circuit-breaker/circuit-breaker.js';
import { type Group, type GroupMember, isGroupMember } from './circuit-breaker/group.js';

/** Options of {@link keyed}. */
export interface KeyedOptions extends Omit<CommonOptions, 'on'> {
  /** The key of a call: 1 to 1,000 characters. Default: `call.key`. */
  readonly key?: ((call: Call) => string) | undefined;
  /** The most policies kept. Default 10,000; from 1 to 1,000,000. */
  readonly maxKeys?: number | undefined;
  /** How long an unused key is kept, from 1 ms to 24.8 days. Default: until `maxKeys` is reached. */
  readonly idle?: Duration | undefined;
  /**
   * The share of the keys whose circuits may be open at the same time, from 0 to 1; one always may. Default 1: each circuit
   * decides alone. Set it when the keys are replicas of one service: if many of them fail, the fault is probably elsewhere.
   */
  readonly maxEjected?: number | undefined;
}

/** A policy per key. */
export interface Keyed<Kept extends AnyPolicy> extends Strategy<AddedBy<readonly [Kept]>> {
  /** Returns the policy of a key, and creates it if necessary: the same one for as long as it is kept. Counts as a use of the key. */
  for(key: string): Kept;
  /** Policies kept now. */
  readonly size: number;
}

/** @internal A registry that can have the policies of each key completed, whoever makes them. */
export interface CompletableRegistry {
  /** The same registry. Calls of a key run through what `complete` makes of the key's policies. */
  completed(complete: Complete): Strategy;
}

type Complete = (policies: readonly AnyPolicy[]) => readonly AnyPolicy[];

/** The chain from a key's policy to the rest of the pipeline, linked once and kept for as long as the rest stays the same. */
type Chains = WeakMap<object, { readonly next: Next; readonly run: Next }>;

const longestKey = 1_000;

/**
 * Keeps one policy per key: a circuit breaker per host, a bulkhead per tenant.
 *
 * The factory is called once per key, and again after the key was evicted. `explain()` shows a policy that exists, or calls the
 * factory with the key `'example'` if there is none. Give all policies equal options, and create
 * the functions among them outside the factory, so that policies can share their settings. Do not use it for keys that a caller may choose
 * freely and that each need protection: beyond `maxKeys`, keys are evicted.
 *
 * @param factory - Creates the policy of a key: a guard, a strategy or a pipeline.
 * @param options - `key`, `maxKeys`, `idle`, `maxEjected`, `name`, `clock`.
 * @throws {@link OptionsError} `ERR_OPTIONS` from `keyed`, for an invalid option; from the call, when it has no key or
 * `factory` returns no policy, or one on another clock than the pipeline's.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` from the call, when `key` throws.
 * @example
 * ```ts
 * import { circuitBreaker, keyed, pipeline } from 'holdfast';
 *
 * const breakers = keyed(() => circuitBreaker({ name: 'hosts', window: { consecutive: 2 } }), { maxKeys: 1_000 });
 * const client = pipeline(breakers);
 * const down = () => Promise.reject(new Error('connection refused'));
 * await client.attempt(down, { key: 'a.example' });
 * await client.attempt(down, { key: 'a.example' });
 * console.log(breakers.for('a.example').state, breakers.for('b.example').state); // open closed
 * ```
 */
export function keyed<Kept extends AnyPolicy>(factory: (key: string) => Kept, options?: KeyedOptions): Keyed<Kept> {
  if (func().parse(factory) === undefined) {
    throw new OptionsError(
      `keyed: the factory must be a function such as (key) => circuitBreaker({ name: key }), got ${show(factory)}`,
      {
        policy: 'keyed',
        option: 'factory',
        value: factory,
        allowed: 'a function',
      },
    );
  }
  const { on: _, ...common } = commonFields('keyed');
  const checked = checkOptions('keyed', options, {
    key: withDefault<(call: Call) => unknown>(func<(call: Call) => unknown>(), keyOfCall),
    maxKeys: withDefault(integer({ min: 1, max: 1_000_000 }), 10_000),
    idle: optional(duration({})),
    maxEjected: withDefault(number({ min: 0, max: 1 }), 1),
    ...common,
  });
  showBriefly(Registry.prototype, ({ name, size }) => ({ name, size }));
  return new Registry(factory, checked);
}

interface KeyedSettings {
  readonly name: string;
  readonly key: (call: Call) => unknown;
  readonly maxKeys: number;
  readonly idle: number | undefined;
  readonly maxEjected: number;
  readonly clock: CommonOptions['clock'];
}

/** To count the open circuits of 10,000 keys takes 0.4 ms. While all keys fail, one circuit after the other asks for it. */
const countAgainMs = 100;

class Registry<Kept extends AnyPolicy> implements Keyed<Kept>, Group, CompletableRegistry {
  readonly name: string;
  readonly traits;
  settings: Group['settings'] = undefined;
  private readonly factory: (key: string) => Kept;
  private readonly options: KeyedSettings;
  private readonly policies: RankedCache<Kept>;
  private readonly chains: Chains = new WeakMap();
  private openMembers = 0;
  /** Until then, no place is taken for free only because the time of an open circuit is over. */
  private fullUntilMs = Number.NEGATIVE_INFINITY;
  private nextSweepMs = Number.NEGATIVE_INFINITY;

  constructor(factory: (key: string) => Kept, options: KeyedSettings) {
    const { name, clock, maxKeys } = options;
    this.name = name;
    this.traits = {
      kind: 'keyed',
      summary: `keeps a policy per key, for at most ${maxKeys} keys`,
      clock,
      inside: () => this.example(),
    };
    this.factory = factory;
    this.options = options;
    this.policies = new RankedCache<Kept>(maxKeys, rankOf, leave);
  }

  get size(): number {
    return this.policies.size;
  }

  for(key: string): Kept {
    return this.policyOf(this.checkKey(key), this.options.clock);
  }

  handle<T>(call: Call, next: (call: Call) => Promise<T>): Promise<T> {
    return this.run(call, next, this.chains, undefined) as Promise<T>;
  }

  completed(complete: Complete): Strategy {
    const { name, traits } = this;
    const chains: Chains = new WeakMap();
    return {
      name,
      traits,
      handle: (call, next) => this.run(call, next, chains, complete) as ReturnType<typeof next>,
    };
  }

  mayOpen(nowMs: number): boolean {
    const most = Math.max(1, Math.floor(this.options.maxEjected * this.size));
    if (this.openMembers < most) return true;
    if (nowMs < this.fullUntilMs) return false;
    if (this.countShut() < most) return true;
    this.fullUntilMs = nowMs + countAgainMs;
    return false;
  }

  /** The circuits that really keep calls away. One whose time is over stays as it is if no call comes, because its key is no longer in use. */
  private countShut(): number {
    let shut = 0;
    for (const policy of this.policies.values()) if (membersOf(policy).some(isShut)) shut++;
    return shut;
  }

  opened(): void {
    this.openMembers++;
  }

  closed(): void {
    this.openMembers--;
  }

  private policyOf(key: string, clock: Clock | undefined): Kept {
    const { idle } = this.options;
    const usedMs = idle === undefined ? undefined : this.sweep(idle, clock ?? systemClock);
    const kept = this.policies.use(key, usedMs);
    if (kept !== undefined) return kept;
    const policy = this.factory(key);
    if (!isPolicy(policy)) {
      const allowed = 'a guard, a strategy or a pipeline';
      throw new OptionsError(`${this.name}: the factory must answer a policy for "${key}", got ${show(policy)}`, {
        policy: this.name,
        option: 'factory',
        value: policy,
        allowed,
      });
    }
    if (clock !== undefined) this.refuseOtherClock(policy, key, clock);
    // The factory itself may have asked for the same key, so that a policy exists already.
    const madeMeanwhile = this.policies.use(key, usedMs);
    if (madeMeanwhile !== undefined) return madeMeanwhile;
    this.policies.add(key, policy, usedMs);
    for (const member of membersOf(policy)) member.joinGroup(this);
    return policy;
  }

  /** The policies of some key; before the first key, those that the factory would create. */
  private example(): readonly Policy<unknown>[] {
    try {
      return partsOf(this.policies.newest ?? this.factory('example'));
    } catch {
      return [];
    }
  }

  /** Refuses a policy on another clock: a circuit opened by one clock and read by another would stay open for as long as they are apart. */
  private refuseOtherClock(policy: AnyPolicy, key: string, clock: Clock): void {
    const other = partsOf(policy).find(({ traits }) => traits?.clock !== undefined && traits.clock !== clock);
    if (other === undefined) return;
    const allowed = 'a policy on the clock of its pipeline';
    throw new OptionsError(
      `${this.name}: "${other.name}" of "${key}" runs on another clock than its pipeline; give this policy the same option "clock"`,
      { policy: this.name, option: 'factory', value: policy, allowed },
    );
  }

  /** Evicts idle keys when it is time to. Returns the current time. */
  private sweep(idle: number, clock: Clock): number {
    const nowMs = Math.floor(clock.now());
    if (nowMs < this.nextSweepMs) return nowMs;
    const hasMore = this.policies.sweep(nowMs - idle);
    this.nextSweepMs = hasMore ? nowMs : nowMs + idle / 10;
    return nowMs;
  }

  private run(call: Call, next: Next, chains: Chains, complete: Complete | undefined): Promise<unknown> {
    try {
      const policy = this.policyOf(this.keyOf(call), call.clock);
      if (complete === undefined && 'handle' in policy) return policy.handle(call, next);
      let chain = chains.get(policy);
      if (chain?.next !== next) {
        chain = { next, run: chainOf(policy, next, complete) };
        chains.set(policy, chain);
      }
      return chain.run(call);
    } catch (error) {
      return rejectLater(error);
    }
  }

  private keyOf(call: Call): string {
    let key: unknown;
    try {
      key = this.options.key(call);
    } catch (thrown) {
      throw new HandlesError({ policy: this.name, option: 'key', thrown });
    }
    return this.checkKey(key);
  }

  private checkKey(key: unknown): string {
    if (typeof key === 'string' && key.length > 0 && key.length <= longestKey) return key;
    const allowed = `a string of 1 to ${longestKey} characters`;
    const advice = 'give the call one, execute(fn, { key }), or give this policy the option "key"';
    throw new OptionsError(`${this.name}: the key of a call must be ${allowed}, got ${show(key)}; ${advice}`, {
      policy: this.name,
      option: 'key',
      value: key,
      allowed,
    });
  }
}

function keyOfCall(call: Call): string | undefined {
  return call.key;
}

function chainOf(policy: AnyPolicy, next: Next, complete: Complete | undefined): Next {
  if (complete !== undefined) return link(complete(partsOf(policy) as readonly AnyPolicy[]), next, false);
  return 'admit' in policy ? guardLayer([policy], next, false) : link(partsOf(policy), next, false);
}

function partsOf(policy: AnyPolicy): readonly Policy<unknown>[] {
  return 'policies' in policy ? policy.policies : [policy];
}

/** The circuit breakers that a policy is or contains. */
function membersOf(policy: AnyPolicy): readonly GroupMember[] {
  const parts: readonly object[] = partsOf(policy);
  return parts.filter(isGroupMember);
}

/** Whether a circuit is open, or has been half-open for less time than that, in which its probes may still be out. */
function isShut(member: GroupMember): boolean {
  const { state, elapsedMs, openForMs } = (member as GroupMember & CircuitBreaker).snapshot();
  return (state === 'open' || state === 'half-open') && elapsedMs < openForMs;
}

/** The rank of a policy. Policies other than breakers may hold state too: running calls, used tokens. */
function rankOf(policy: AnyPolicy): Rank {
  const ranks = membersOf(policy).map((member) => member.rank());
  const holdsMore = 'policies' in policy ? policy.policies.length > ranks.length : ranks.length === 0;
  return Math.max(holdsMore ? 1 : 0, ...ranks) as Rank;
}

function leave(policy: AnyPolicy): void {
  for (const member of membersOf(policy)) member.leaveGroup();
}
