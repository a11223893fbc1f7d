import { describe, expect, it } from 'vitest';
import {
  type CircuitBreaker,
  type CircuitBreakerOptions,
  circuitBreaker,
  type HoldfastEvent,
  isRefusal,
  retry,
} from '../../../src/index.js';
import { type Group, type GroupMember, isGroupMember } from '../../../src/policies/circuit-breaker/group.js';
import { virtualClock } from '../../../src/testing/index.js';

const failed = { ok: false, error: new Error('down') } as const;
const succeeded = { ok: true, value: 1 } as const;

function memberOf(options: CircuitBreakerOptions = {}) {
  const clock = virtualClock();
  const events: HoldfastEvent[] = [];
  const breaker: CircuitBreaker = circuitBreaker({
    clock,
    window: { consecutive: 2 },
    openFor: 1_000,
    random: () => Number.NaN,
    halfOpen: { permits: 1 },
    on: (event) => events.push(event),
    ...options,
  });
  const send = (outcome: typeof failed | typeof succeeded, times = 1) => {
    for (let call = 0; call < times; call++) {
      const answer = breaker.admit();
      if (!isRefusal(answer)) answer.settle(outcome);
    }
  };
  return { clock, events, send, breaker: breaker as CircuitBreaker & GroupMember };
}

/** A group that counts its members that are out. */
function groupOf(): Group & { out: number; isFull: boolean } {
  return {
    settings: undefined,
    out: 0,
    isFull: false,
    mayOpen() {
      return !this.isFull;
    },
    opened() {
      this.out++;
    },
    closed() {
      this.out--;
    },
  };
}

describe('a circuit breaker in a group', () => {
  it('is what can be a member, and no other policy', () => {
    expect(isGroupMember(circuitBreaker())).toBe(true);
    expect(isGroupMember(retry())).toBe(false);
  });

  it('counts as out while it is open or half-open, but not in a state set by an operator', async () => {
    const group = groupOf();
    const { breaker, clock, send } = memberOf();
    breaker.joinGroup(group);
    expect(group.out).toBe(0);
    send(failed, 2);
    expect([breaker.state, group.out]).toEqual(['open', 1]);
    await clock.advance(1_000);
    breaker.admit();
    expect([breaker.state, group.out]).toEqual(['half-open', 1]);
    breaker.isolate();
    expect(group.out).toBe(0);
    breaker.reset();
    expect(group.out).toBe(0);
    send(failed, 2);
    await clock.advance(1_000);
    send(succeeded);
    expect([breaker.state, group.out]).toEqual(['closed', 0]);
  });

  it('counts at once if it joins open, and no longer after it has left', () => {
    const group = groupOf();
    const { breaker, send } = memberOf();
    send(failed, 2);
    breaker.joinGroup(group);
    expect(group.out).toBe(1);
    breaker.leaveGroup();
    breaker.leaveGroup();
    expect(group.out).toBe(0);
    breaker.reset();
    send(failed, 2);
    expect([breaker.state, group.out]).toEqual(['open', 0]);
  });

  it('leaves when it is disposed', () => {
    const group = groupOf();
    const { breaker, send } = memberOf();
    breaker.joinGroup(group);
    send(failed, 2);
    breaker.dispose();
    expect(group.out).toBe(0);
    breaker.reset();
    send(failed, 2);
    expect(group.out).toBe(0);
  });

  it('belongs to one group only, the first', () => {
    const [first, second] = [groupOf(), groupOf()];
    const { breaker, send } = memberOf();
    breaker.joinGroup(first);
    breaker.joinGroup(second);
    send(failed, 2);
    expect([first.out, second.out]).toEqual([1, 0]);
  });

  it.each<[string, CircuitBreakerOptions, string]>([
    ['failures in a row', { window: { consecutive: 2 } }, '2 calls in a row failed'],
    ['a window', { window: { calls: 5 }, minimumCalls: 2 }, '2 of 2 calls failed'],
  ])('stays closed if no further member may open, reports it, and starts to count %s anew', (_, options, detail) => {
    const group = groupOf();
    const { breaker, events, send } = memberOf({ ...options, name: 'host' });
    breaker.joinGroup(group);
    group.isFull = true;
    send(failed, 2);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 0, failuresInARow: 0 } });
    expect(events).toEqual([{ type: 'circuit-kept-closed', name: 'host', detail }]);
    group.isFull = false;
    send(failed);
    expect(breaker.state).toBe('closed');
    send(failed);
    expect(breaker.state).toBe('open');
  });

  it('shares its settings with the member before it if they are equal, which makes each smaller', () => {
    const group = groupOf();
    const on = () => {};
    const clock = virtualClock();
    const join = (openFor: number) => {
      memberOf({ openFor, on, clock, random: Math.random }).breaker.joinGroup(group);
      return group.settings;
    };
    const first = join(100);
    expect(first).toMatchObject({ openForMs: 100, group });
    expect(join(100)).toBe(first);
    expect(join(200)).toMatchObject({ openForMs: 200 });
  });

  it('costs nothing to forget if it has nothing to report, and much while it withholds calls', async () => {
    const { breaker, clock, send } = memberOf({ rampUp: '10s' });
    expect(breaker.rank()).toBe(0);
    send(failed);
    expect(breaker.rank()).toBe(1);
    send(succeeded);
    expect(breaker.rank()).toBe(0);
    send(failed, 2);
    await clock.advance(999);
    expect([breaker.state, breaker.rank()]).toEqual(['open', 2]);
    await clock.advance(1);
    // It would admit a probe, as a new one would admit any call.
    expect([breaker.state, breaker.rank()]).toEqual(['open', 1]);
    const probe = breaker.admit();
    expect([breaker.state, breaker.rank()]).toEqual(['half-open', 2]);
    if (!isRefusal(probe)) probe.settle(succeeded);
    expect([breaker.state, breaker.rank()]).toEqual(['ramping', 1]);
    breaker.isolate();
    expect(breaker.rank()).toBe(2);
    breaker.forceClosed();
    expect(breaker.rank()).toBe(2);
  });

  it('costs something to forget as long as its window holds calls', async () => {
    const { breaker, clock, send } = memberOf({ window: '10s' });
    send(succeeded);
    expect(breaker.rank()).toBe(1);
    await clock.advance('10s');
    expect(breaker.rank()).toBe(0);
    const counting = memberOf({ window: { calls: 5 } });
    counting.send(succeeded);
    expect(counting.breaker.rank()).toBe(1);
  });
});
