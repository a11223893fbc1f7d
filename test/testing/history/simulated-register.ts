/**
 * A register with concurrent clients, simulated step by step from a seed. Every operation takes effect at one instant between its invocation and its end, so
 * every history is linearizable.
 */
import { History, type RegisterOperation, type RegisterResult } from '../../../src/testing/history/index.js';

export type Operation = RegisterOperation<number>;
export type Result = RegisterResult<number>;

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function oneOf<Item>(items: readonly Item[], random: () => number): Item {
  return items[Math.floor(random() * items.length)]!;
}

export interface Simulation {
  readonly random: () => number;
  readonly clients: number;
  readonly operations: number;
  readonly keys?: readonly string[];
  /** Values are drawn from 1 to this number. A small number makes many equal values. */
  readonly values: number;
  /** The shares of operations whose client never learns the outcome, and of those that certainly had no effect. */
  readonly unknown?: number;
  readonly failed?: number;
}

interface Running {
  readonly client: string;
  readonly end: 'ok' | 'failed' | 'unknown';
  /** Takes effect, once. */
  readonly apply: () => void;
  readonly finish: () => void;
  isApplied: boolean;
}

export function simulateRegister({
  random,
  clients,
  operations,
  keys = ['x'],
  values,
  unknown = 0,
  failed = 0,
}: Simulation): History<Operation, Result> {
  const history = new History<Operation, Result>();
  const register = new Map<string, number>();
  const idle = Array.from({ length: clients }, (_, index) => `client-${index}`);
  const running: Running[] = [];
  /** Operations with an unknown outcome whose client has continued. They may take effect at any later step, or never. */
  const adrift: Running[] = [];
  let left = operations;

  while (left > 0 || running.length > 0) {
    const choice = Math.floor(random() * (clients + 1));
    if (left > 0 && choice < idle.length) {
      left--;
      running.push(begin(idle.splice(choice, 1)[0]!));
    } else if (adrift.length > 0 && random() < 0.2) {
      const [late] = adrift.splice(Math.floor(random() * adrift.length), 1);
      if (random() < 0.5) late!.apply();
    } else if (running.length > 0) {
      advance(Math.floor(random() * running.length));
    }
  }
  return history;

  function begin(client: string): Running {
    const key = oneOf(keys, random);
    const operation = randomOperation(random, values);
    const open = history.invoke({ client, key, operation });
    const chance = random();
    const end = chance < unknown ? 'unknown' : chance < unknown + failed ? 'failed' : 'ok';
    let result: Result;
    return {
      client,
      end,
      isApplied: false,
      apply: () => {
        result = applyTo(register, key, operation);
      },
      finish: () => (end === 'ok' ? open.ok(result) : open[end]()),
    };
  }

  function advance(index: number): void {
    const one = running[index]!;
    if (one.end === 'ok' && !one.isApplied) {
      one.isApplied = true;
      one.apply();
      return;
    }
    one.finish();
    if (one.end === 'unknown') adrift.push(one);
    running.splice(index, 1);
    idle.push(one.client);
  }
}

function randomOperation(random: () => number, values: number): Operation {
  const value = 1 + Math.floor(random() * values);
  const chance = random();
  if (chance < 0.45) return { type: 'read' };
  if (chance < 0.8) return { type: 'write', value };
  return { type: 'compare-and-set', expected: 1 + Math.floor(random() * values), value };
}

/** A separate register, so that the model under test does not judge itself. */
export function applyTo(register: Map<string, number>, key: string, operation: Operation): Result {
  const current = register.get(key);
  if (operation.type === 'read') return current;
  if (operation.type === 'write') {
    register.set(key, operation.value);
    return undefined;
  }
  if (current !== operation.expected) return false;
  register.set(key, operation.value);
  return true;
}
