/**
 * Health: reports whether a process is alive and whether it is ready, with the states of its breakers and stores as details. Independent of any
 * framework.
 *
 * Promise: a probe is answered within the time of its checks. However many probes arrive, each check runs at most once at a time, and its result is
 * reused for `maxAge`. The answer holds names, states and codes, never the text of an error or a key.
 * After: draft-inadarei-api-health-check-06 (`application/health+json`).
 */
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { OptionsError } from '../core/errors.js';
import { checkOptions, duration, type Field, having, optional, show, withDefault } from '../core/options.js';
import { type Pipeline, pipeline } from '../core/pipeline.js';
import { timeout } from '../policies/timeout.js';

/** A function that resolves when its subject is healthy, and rejects when it is not. It should stop when the signal aborts. */
export type HealthProbe = (context: { readonly signal: AbortSignal }) => unknown;

/** A store is checked by one read of a key that does not exist. */
export interface HealthStore {
  read(key: string, options?: { readonly signal?: AbortSignal }): Promise<unknown>;
  write(...given: never[]): unknown;
}

/** A policy with a state, such as a circuit breaker or a bulkhead, or a pipeline that contains some. */
export interface HealthPolicy {
  readonly name: string;
}

/** What can be checked. */
export type HealthSubject = HealthPolicy | HealthStore | HealthProbe;

/** A subject, and what happens when it is down. */
export interface HealthCheck {
  readonly check: HealthSubject;
  /**
   * Whether the process is not ready while this is down. Default `false`: a shared dependency must not take all processes
   * out of service at once.
   */
  readonly critical?: boolean | undefined;
}

/** Options of the `health` middleware. */
export interface HealthOptions {
  /** The checks of readiness, by the name shown in the answer. At most 100. Default: none. */
  readonly checks?: Readonly<Record<string, HealthSubject | HealthCheck>> | undefined;
  /** Where it answers: `path` and `path/ready` for readiness, `path/live` for liveness. Default `'/health'`. */
  readonly path?: string | undefined;
  /** Time for one check; a store or function that takes longer is down. Default 1 s; from 1 ms to 24.8 days. */
  readonly timeout?: Duration | undefined;
  /** How long an answer serves further probes. Default 1 s; from 0 to 24.8 days. */
  readonly maxAge?: Duration | undefined;
  /** The source of time. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** What a framework's adapter sends. */
export interface HealthAnswer {
  /** 200, or 503 when something critical is down. */
  readonly status: 200 | 503;
  readonly body: string;
}

export const healthType = 'application/health+json';

type Status = 'pass' | 'warn' | 'fail';

interface Detail {
  readonly componentType: string;
  readonly status: Status;
  readonly componentId?: string;
  readonly observedValue?: unknown;
  readonly observedUnit?: string;
  /** A code such as `ERR_TIMEOUT`. */
  readonly output?: string;
}

interface Check {
  readonly name: string;
  readonly critical: boolean;
  look(): Promise<readonly Detail[]>;
}

const mostChecks = 100;
/** Nobody writes this key, so reading it shows only that the store answers. */
const healthKey = 'holdfast:health';
const alive: HealthAnswer = { status: 200, body: JSON.stringify({ status: 'pass' }) };

/** Answers probes. */
export class HealthEngine {
  readonly readyPaths: readonly string[];
  readonly livePath: string;
  readonly #checks: readonly Check[];
  readonly #clock: Clock;
  readonly #maxAgeMs: number;
  #latest: { readonly answer: Promise<HealthAnswer>; endsAtMs: number } | undefined = undefined;

  constructor(given: HealthOptions | undefined) {
    const options = checkOptions('health', given, {
      checks: withDefault(checksField(), {}),
      path: withDefault(pathField(), '/health'),
      timeout: withDefault(duration({}), 1_000),
      maxAge: withDefault(duration({ min: 0 }), 1_000),
      clock: optional(having<Clock>('a clock such as systemClock', 'now', 'wallNow', 'schedule', 'cancel')),
    });
    const { path, clock = systemClock } = options;
    this.readyPaths = [path === '' ? '/' : path, `${path}/ready`];
    this.livePath = `${path}/live`;
    this.#clock = clock;
    this.#maxAgeMs = options.maxAge;
    const bounded = pipeline(timeout({ after: options.timeout, name: 'health', clock }));
    this.#checks = Object.entries(options.checks).map(([name, one]) => checkOf(name, one, bounded));
  }

  /** The answer to a request; undefined if the request is not a health probe. */
  probe(method: string, path: string): Promise<HealthAnswer> | undefined {
    if (method !== 'GET' && method !== 'HEAD') return undefined;
    const asked = path.length > 1 && path.endsWith('/') ? path.slice(0, -1) : path;
    if (asked === this.livePath) return this.live();
    return this.readyPaths.includes(asked) ? this.ready() : undefined;
  }

  /** The liveness answer: that it arrives at all is the information. */
  live(): Promise<HealthAnswer> {
    return Promise.resolve(alive);
  }

  /** Whether the process should receive requests. Concurrent probes share one round of checks. */
  ready(): Promise<HealthAnswer> {
    const latest = this.#latest;
    if (latest !== undefined && this.#clock.now() < latest.endsAtMs) return latest.answer;
    const next = { answer: this.#look(), endsAtMs: Number.POSITIVE_INFINITY };
    this.#latest = next;
    next.answer.then(() => {
      next.endsAtMs = this.#clock.now() + this.#maxAgeMs;
    });
    return next.answer;
  }

  async #look(): Promise<HealthAnswer> {
    const looked = await Promise.all(
      this.#checks.map(async ({ name, critical, look }) => ({ name, critical, details: await look() })),
    );
    const isDown = looked.some(({ critical, details }) => critical && details.some(({ status }) => status === 'fail'));
    const isWell = looked.every(({ details }) => details.every(({ status }) => status === 'pass'));
    const status: Status = isDown ? 'fail' : isWell ? 'pass' : 'warn';
    const checks = Object.fromEntries(
      looked.map(({ name, critical, details }) => [name, details.map((detail) => ({ ...detail, critical }))]),
    );
    return { status: isDown ? 503 : 200, body: JSON.stringify({ status, checks }) };
  }
}

function checkOf(name: string, given: HealthSubject | HealthCheck, bounded: Pipeline): Check {
  const { check: subject, critical = false } = isWrapped(given) ? given : { check: given };
  if ((typeof subject !== 'object' && typeof subject !== 'function') || subject === null)
    throw wrongCheck(name, subject);
  if (typeof critical !== 'boolean') throw wrongCheck(name, given, '"critical" must be true or false');
  if (typeof subject === 'function') {
    return { name, critical, look: lookOnce('component', bounded, (signal) => subject({ signal })) };
  }
  if (isStore(subject)) {
    const look = lookOnce('datastore', bounded, (signal) => subject.read(healthKey, { signal }));
    return { name, critical, look };
  }
  const parts = partsOf(subject);
  if (parts.length === 0) {
    throw wrongCheck(name, subject);
  }
  return { name, critical, look: async () => parts.map(detailOf) };
}

/** A check that hangs is not started a second time: its subject stays down until it has ended. */
function lookOnce(
  componentType: string,
  bounded: Pipeline,
  task: (signal: AbortSignal) => unknown,
): () => Promise<readonly Detail[]> {
  let isRunning = false;
  return async () => {
    if (isRunning) return [{ componentType, status: 'fail', output: 'ERR_TIMEOUT' }];
    const outcome = await bounded.attempt(async ({ signal, clock }) => {
      isRunning = true;
      const beganMs = clock.now();
      try {
        await task(signal);
        return clock.now() - beganMs;
      } finally {
        isRunning = false;
      }
    });
    if (!outcome.ok) return [{ componentType, status: 'fail', ...codeOf(outcome.error) }];
    return [{ componentType, status: 'pass', observedValue: Math.round(outcome.value), observedUnit: 'ms' }];
  };
}

/** Returns only what looks like a code: the text of an error may contain an address or a password. */
function codeOf(error: unknown): { readonly output: string } | undefined {
  try {
    const { code } = Object(error) as { readonly code?: unknown };
    return typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,63}$/.test(code) ? { output: code } : undefined;
  } catch {
    return undefined;
  }
}

/** The state that a policy may expose. */
interface Stateful extends HealthPolicy {
  readonly traits?: { readonly kind: string };
  readonly state?: unknown;
  readonly running?: unknown;
  readonly waiting?: unknown;
  readonly abandoned?: unknown;
  readonly limit?: unknown;
  readonly remaining?: unknown;
  readonly size?: unknown;
}

const statusOfCircuit: Readonly<Record<string, Status>> = {
  closed: 'pass',
  ramping: 'pass',
  'forced-closed': 'pass',
  'half-open': 'warn',
  open: 'fail',
  isolated: 'fail',
};

const shown = ['running', 'waiting', 'abandoned', 'limit', 'remaining', 'size'] as const;

/** What has a state, and how it is named in the answer. */
interface Part extends Pick<Detail, 'componentType' | 'componentId'> {
  readonly policy: Stateful;
}

function partsOf(subject: HealthPolicy): readonly Part[] {
  const { policies } = subject as { readonly policies?: unknown };
  const all: readonly Stateful[] = Array.isArray(policies) ? policies : [subject];
  return all
    .filter((policy) => statusOf(policy.state) !== undefined || Object.keys(numbersOf(policy)).length > 0)
    .map((policy) => ({ policy, componentType: policy.traits?.kind ?? 'policy', componentId: policy.name }));
}

/** A policy that throws when it is looked at is down: its getters may be the user's own. */
function detailOf({ policy, ...names }: Part): Detail {
  try {
    const { state } = policy;
    const status = statusOf(state);
    if (status !== undefined) return { ...names, status, observedValue: state };
    return { ...names, status: 'pass', observedValue: numbersOf(policy) };
  } catch (error) {
    return { ...names, status: 'fail', ...codeOf(error) };
  }
}

function statusOf(state: unknown): Status | undefined {
  return typeof state === 'string' && Object.hasOwn(statusOfCircuit, state) ? statusOfCircuit[state] : undefined;
}

function numbersOf(policy: Stateful): Readonly<Record<string, number>> {
  const numbers: Record<string, number> = {};
  for (const field of shown) {
    const value = policy[field];
    if (typeof value === 'number') numbers[field] = value;
  }
  return numbers;
}

function isWrapped(given: HealthSubject | HealthCheck): given is HealthCheck {
  return typeof given === 'object' && given !== null && Object.hasOwn(given, 'check');
}

function isStore(subject: HealthPolicy | HealthStore): subject is HealthStore {
  const { read, write } = subject as Partial<HealthStore>;
  return typeof read === 'function' && typeof write === 'function';
}

function checksField(): Field<Readonly<Record<string, HealthSubject | HealthCheck>>> {
  const allowed = `an object of at most ${mostChecks} checks, named by 1 to 64 letters, digits or . : _ -`;
  return {
    allowed,
    parse(value) {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
      const entries = Object.entries(value);
      const fits = entries.every(([name]) => /^[\w.:-]{1,64}$/.test(name));
      return fits && entries.length <= mostChecks
        ? (value as Readonly<Record<string, HealthSubject | HealthCheck>>)
        : undefined;
    },
  };
}

function pathField(): Field<string> {
  return {
    allowed: "a path such as '/health', without a slash at its end",
    parse: (value) =>
      typeof value === 'string' && /^(\/[\w.~-]+)*$/.test(value) && value.length <= 200 ? value : undefined,
  };
}

function wrongCheck(
  name: string,
  value: unknown,
  what = `must be a policy that has a state, a pipeline of such, a store or a function, got ${show(value)}`,
): OptionsError {
  return new OptionsError(`health: check "${name}" ${what}`, {
    policy: 'health',
    option: `checks.${name}`,
    value,
    allowed: 'a policy that has a state, a store, a function, or { check, critical }',
  });
}
