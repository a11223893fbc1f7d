/**
 * Seeded histories through the public API: three processes, any of which is killed or frozen at any instant, on a store whose verbs are refused, lost, late by
 * more than a lease, or carried out twice, with rotating encryption, phases, seals, releases, operators and short times to live.
 */
import { describe, expect, it } from 'vitest';
import type { Clock, Timer } from '../../../src/core/clock.js';
import {
  type IdempotencyEvent,
  type IdempotencyHandle,
  type IdempotencyOptions,
  idempotency,
  memoryStore,
  type Store,
  StoreError,
  type StoreWriteOptions,
} from '../../../src/index.js';
import { seededRandom, virtualClock } from '../../../src/testing/index.js';

const keys = ['a', 'b'];
const scopes = ['shop 1', 'shop 2'];
const day = 86_400_000;

/** The answer of a call tells which call made it. */
interface Told {
  readonly operation: string;
  readonly input: number;
  /** The number of the call that ran. */
  readonly call: number;
}

class History {
  /** Everything that happened and must not have. */
  readonly faults: string[] = [];
  private readonly random;
  private readonly clock = virtualClock();
  private readonly kept;
  private readonly options;
  private readonly leaseMs;
  private readonly ttlMs;
  private isFaulty = true;
  private rotation = 0;
  private readonly machines: Machine[] = [];
  /** The greatest fence of an attempt that has begun. */
  private readonly begun = new Map<string, number>();
  private calls = 0;
  /** The stored answer of each operation. */
  private readonly answers = new Map<string, unknown>();
  private readonly effects: { operation: string; isRepeatable: boolean }[] = [];

  constructor(seed: number) {
    this.random = seededRandom(seed);
    const { random, clock } = this;
    this.kept = memoryStore({ clock });
    this.leaseMs = random.pick([300, 1_000, 3_000]);
    this.ttlMs = random.pick([2 * this.leaseMs, 10 * this.leaseMs, day]);
    this.options = {
      ...{ lease: this.leaseMs, ttl: this.ttlMs, random, maxBodyBytes: 100 },
      onLost: random.pick(['rerun', 'resume', 'refuse'] as const),
      attempts: random.pick([1, 2, 3, 10]),
      wait: random.pick(['off', 200, 5_000] as const),
      storeTimeout: random.pick([100, 500]),
    };
  }

  async play(): Promise<void> {
    const { clock, random, leaseMs } = this;
    for (let index = 0; index < 3; index++) this.machines.push(this.start());
    for (let step = 0; step < 60; step++) {
      await clock.advance(random.between(0, random.chance(0.1) ? 2 * leaseMs : 60));
      const chance = random();
      if (chance < 0.75) void this.call(random.pick(this.machines), random.pick([1, 1, 1, 2]));
      else if (chance < 0.84) this.restart(random.integer(0, 2));
      else if (chance < 0.9) random.pick(this.machines).frozenUntilMs = clock.now() + random.between(10, 2 * leaseMs);
      else if (chance < 0.93) {
        // At first all processes can open what the new key seals, and only then do they seal with it.
        this.rotation++;
        for (let index = 0; index < 3; index++) this.restart(index);
      } else void this.resolve(random.pick(this.machines));
    }
    this.isFaulty = false;
    await clock.advance(8 * leaseMs + 10_000);
    for (const key of keys) for (const scope of scopes) await this.endsAtOnce(scope, key);
    await clock.advance(4 * leaseMs + 5_000);
    for (const { once, events, timers } of this.machines) {
      if (timers.size > 0) this.faults.push(`${timers.size} timers are left`);
      const told: Record<string, number> = {};
      for (const { outcome } of events) told[outcome] = (told[outcome] ?? 0) + 1;
      const counted: Record<string, number> = {};
      for (const counts of Object.values(once.counts())) {
        for (const [outcome, count] of Object.entries(counts)) counted[outcome] = (counted[outcome] ?? 0) + count;
      }
      expect(counted).toEqual(told);
    }
    this.checkEffects();
  }

  private restart(index: number): void {
    this.machines[index]!.kill();
    this.machines[index] = this.start();
  }

  private start(): Machine {
    const { clock, random, rotation } = this;
    const [old, new_] = [new Uint8Array(32).fill(1), new Uint8Array(32).fill(2)];
    const encryption = { current: rotation < 2 ? 'old' : 'new', keys: rotation === 0 ? { old } : { old, new: new_ } };
    return new Machine(clock, random.between(-5_000, 5_000), (machine) => ({
      ...{ ...this.options, encryption, store: this.storeOf(machine), clock: machine.clock, name: 'history' },
    }));
  }

  private storeOf(machine: Machine): Store {
    const { kept } = this;
    return {
      read: (key) => this.verb(machine, () => kept.read(key)),
      write: (key, value, { ttlMs, ifVersion }: StoreWriteOptions) => {
        const bytes = value.slice();
        return this.verb(machine, () => kept.write(key, bytes, { ttlMs, ifVersion }));
      },
      remove: () => Promise.reject(new Error('the engine removes nothing')),
    };
  }

  private async verb<T>(machine: Machine, does: () => Promise<T>): Promise<T> {
    const { random, clock, leaseMs } = this;
    const later = (ms: number) => void clock.sleep(ms).then(does);
    const failed = async (applied: 'no' | 'unknown', afterMs: number): Promise<never> => {
      await machine.sleep(afterMs);
      throw new StoreError({ store: 'test', operation: 'verb', reason: 'failed', applied, detail: 'injected' });
    };
    const fault = this.isFaulty ? random() : 1;
    await machine.sleep(random.between(0.1, 8));
    if (fault < 0.03) return failed('no', 0);
    if (fault < 0.06) return failed('unknown', 60);
    if (fault < 0.11) {
      if (fault < 0.09) await does();
      else later(random.between(50, 2.5 * leaseMs));
      return failed('unknown', 60);
    }
    if (fault < 0.13) {
      later(random.between(1, 50));
      return new Promise(() => {});
    }
    if (fault < 0.16) later(random.between(1, 2 * leaseMs));
    const first = await does();
    const answer = fault < 0.19 ? await does() : first;
    await machine.sleep(random.between(0.1, fault < 0.22 ? 2 * leaseMs : 8));
    return answer;
  }

  private async call(machine: Machine, input: number): Promise<void> {
    const { random } = this;
    const [scope, key] = [random.pick(scopes), random.pick(keys)];
    const told: Told = { operation: `${scope} ${key}`, input, call: ++this.calls };
    const options = { scope, operation: told.operation, input: { input } };
    try {
      const before = machine.events.length;
      const answer = await machine.once.run(key, (handle) => this.work(machine, handle, told), options);
      this.isOf(told, answer);
      const isStored = !machine.events.slice(before).some(({ outcome }) => outcome === 'unrecorded');
      if (isStored && answer !== 'nothing') this.isSame(told.operation, answer);
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (message.startsWith('sealed ')) this.isOf(told, JSON.parse(message.slice(7)));
      else if (code === undefined && message !== 'failed') this.faults.push(String((error as Error).stack));
    }
  }

  private async work(machine: Machine, handle: IdempotencyHandle, told: Told): Promise<Told | string> {
    const { random, leaseMs } = this;
    const script = random();
    const { operation } = told;
    this.begun.set(operation, Math.max(handle.fence, this.begun.get(operation) ?? 0));
    const takes = () => machine.sleep(random.between(0, random.chance(0.4) ? 2.5 * leaseMs : 50));
    await takes();
    if (script < 0.1) throw new Error('failed');
    if (script < 0.15) {
      handle.release();
      return 'nothing';
    }
    if (script > 0.7) this.isOf(told, await handle.phase('reserve', () => told));
    if (script > 0.4 && script < 0.5) await handle.seal();
    if (handle.signal.aborted) throw handle.signal.reason;
    const failsLater = script > 0.95;
    this.happens(told, handle.fence, failsLater);
    if (script > 0.5 && script < 0.6) void handle.seal();
    await takes();
    if (script > 0.47 && script < 0.57) throw new Error(`sealed ${JSON.stringify(told)}`);
    if (failsLater) throw new Error('failed');
    return script > 0.9 ? 'too large '.repeat(20) : told;
  }

  private happens({ operation }: Told, fence: number, isRepeatable: boolean): void {
    // A record that may be gone before its lease is over belongs to nobody, so nothing is promised.
    const isBehind = this.ttlMs > 2 * this.leaseMs && fence < this.begun.get(operation)!;
    if (isBehind)
      this.faults.push(`${operation}: an effect under fence ${fence}, ${this.begun.get(operation)} has begun`);
    if (this.ttlMs === day && this.answers.has(operation)) this.faults.push(`${operation}: an effect after the answer`);
    this.effects.push({ operation, isRepeatable });
  }

  private isSame(operation: string, answer: unknown): void {
    if (this.ttlMs !== day) return;
    if (!this.answers.has(operation)) this.answers.set(operation, answer);
    const first = JSON.stringify(this.answers.get(operation));
    if (JSON.stringify(answer) !== first) this.faults.push(`${operation}: ${JSON.stringify(answer)} after ${first}`);
  }

  private isOf({ operation, input }: Told, answer: unknown): void {
    if (typeof answer === 'string') return;
    const got = answer as Told;
    const isRight = got.operation === operation && (got.input === input || got.input === 0);
    if (!isRight) this.faults.push(`${operation} with ${input} got ${JSON.stringify(got)}`);
  }

  /** An operator looks at what has happened and reports it. No call made this result, so its input is 0. */
  private async resolve({ once }: Machine): Promise<void> {
    const [scope, key] = [this.random.pick(scopes), this.random.pick(keys)];
    const operation = `${scope} ${key}`;
    const isDone = this.effects.some((effect) => effect.operation === operation);
    const settled = isDone ? { result: { operation, input: 0, call: 0 } } : { release: true as const };
    await once.resolve(key, { scope, operation, ...settled }).catch(() => {});
  }

  private async endsAtOnce(scope: string, key: string): Promise<void> {
    const operation = `${scope} ${key}`;
    let end: unknown = 'nothing';
    const call = this.machines[0]!.once.run(key, () => ({ operation, input: 1 }), {
      scope,
      operation,
      input: { input: 1 },
    });
    call.then(
      () => (end = 'done'),
      (error) => (end = error),
    );
    await this.clock.advance('8s');
    const { code, reason } = end as { code?: string; reason?: string };
    const isBlocked = end === 'nothing' || code === 'ERR_IN_FLIGHT' || code === 'ERR_STORE' || reason === 'unreadable';
    if (isBlocked) this.faults.push(`at the end ${operation} got ${String(end)}`);
  }

  private checkEffects(): void {
    if (this.ttlMs !== day || this.options.onLost !== 'refuse') return;
    const done = new Set<string>();
    for (const { operation, isRepeatable } of this.effects) {
      if (done.has(operation)) this.faults.push(`${operation}: two effects`);
      if (!isRepeatable) done.add(operation);
    }
  }
}

/** A process. What it waits for never comes once it is killed, and comes late while it is frozen. */
class Machine {
  readonly once: ReturnType<typeof idempotency>;
  readonly events: IdempotencyEvent[] = [];
  readonly timers = new Set<Timer>();
  readonly clock: Clock;
  frozenUntilMs = 0;
  private isAlive = true;
  private readonly world: ReturnType<typeof virtualClock>;

  constructor(
    world: ReturnType<typeof virtualClock>,
    skewMs: number,
    options: (machine: Machine) => IdempotencyOptions,
  ) {
    this.world = world;
    this.clock = {
      now: () => world.now(),
      wallNow: () => world.wallNow() + skewMs,
      schedule: (timer, atMs) => {
        this.timers.add(timer);
        world.schedule(timer, atMs);
        const { expire } = Object.getPrototypeOf(timer) as Timer;
        timer.expire = () => {
          if (world.now() < this.frozenUntilMs) return world.schedule(timer, this.frozenUntilMs);
          this.timers.delete(timer);
          Reflect.apply(expire, timer, []);
        };
      },
      cancel: (timer) => {
        this.timers.delete(timer);
        world.cancel(timer);
      },
    };
    this.once = idempotency({
      ...options(this),
      on: (event) => {
        if (event.type === 'idempotency') this.events.push(event);
      },
    });
  }

  async sleep(ms: number): Promise<void> {
    await this.world.sleep(Math.max(0.01, ms));
    while (this.world.now() < this.frozenUntilMs) await this.world.sleep(this.frozenUntilMs - this.world.now());
    if (!this.isAlive) await new Promise(() => {});
  }

  kill(): void {
    this.isAlive = false;
    for (const timer of this.timers) this.world.cancel(timer);
  }
}

describe('idempotency, over any history,', () => {
  it('returns only its own results, repeats nothing that it must not, blocks no key, and leaves no timer', async () => {
    for (let seed = 1; seed <= 150; seed++) {
      const history = new History(seed);
      await history.play();
      expect(history.faults, `seed ${seed}`).toEqual([]);
    }
  });
});
