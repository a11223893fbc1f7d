/** What a call promises to the policies and calls around and below it. `pipeline.test.ts` covers what it promises to an operation. */
import { describe, expect, it } from 'vitest';
import { Call, type Dependent, outermostOf } from '../../src/core/call.js';
import { virtualClock } from '../../src/testing/index.js';

const clock = virtualClock();
const task = () => 1;
const newCall = (...[options, parent]: [ConstructorParameters<typeof Call>[2]?, Call?]) =>
  new Call(clock, task, options, parent);

/** Listens for an abort, and records whose it was. */
function dependent(name: string, heard: string[], onAbort: () => void = () => {}): Dependent {
  return {
    owner: undefined,
    previousDependent: undefined,
    nextDependent: undefined,
    onAbort(reason) {
      heard.push(`${name}: ${reason}`);
      onAbort();
    },
  };
}

describe('the dependents of a call', () => {
  const names = ['a', 'b', 'c', 'd'];

  it('hear of its abort once, except those that were detached, wherever they stood', () => {
    for (const leaving of [['a'], ['b'], ['d'], ['b', 'c'], ['c', 'b'], ['a', 'd'], ['d', 'c', 'b'], names]) {
      const call = newCall();
      const heard: string[] = [];
      const all = new Map(names.map((name) => [name, dependent(name, heard)]));
      for (const one of all.values()) call.attach(one);
      for (const name of leaving) {
        const one = all.get(name)!;
        call.detach(one);
        call.detach(one);
        expect([one.owner, one.previousDependent, one.nextDependent]).toEqual([undefined, undefined, undefined]);
      }
      call.abort('gone');
      call.abort('again');
      const staying = names.filter((name) => !leaving.includes(name));
      expect(heard.sort()).toEqual(staying.map((name) => `${name}: gone`));
    }
  });

  it('may be attached again after they were detached', () => {
    const call = newCall();
    const heard: string[] = [];
    const [a, b] = [dependent('a', heard), dependent('b', heard)];
    for (let round = 0; round < 3; round++) {
      for (const one of [a, b]) call.attach(one);
      for (const one of [a, b]) call.detach(one);
    }
    call.attach(a);
    call.abort('gone');
    expect(heard).toEqual(['a: gone']);
  });

  it('hear at once if they are attached too late, also of an outer call', () => {
    const outer = newCall();
    const inner = newCall(undefined, outer);
    outer.abort('gone');
    const heard: string[] = [];
    const late = dependent('late', heard);
    inner.attach(late);
    expect([heard, late.owner]).toEqual([['late: gone'], undefined]);
  });

  it('may detach each other while they are notified', () => {
    const call = newCall();
    const heard: string[] = [];
    const victim = dependent('victim', heard);
    call.attach(victim);
    call.attach(dependent('killer', heard, () => call.detach(victim)));
    call.abort('gone');
    expect(heard).toEqual(['killer: gone']);
  });

  it('are ignored by a call that they do not belong to', () => {
    const [call, other] = [newCall(), newCall()];
    const heard: string[] = [];
    const one = dependent('one', heard);
    call.attach(one);
    other.detach(one);
    call.abort('gone');
    expect(heard).toEqual(['one: gone']);
  });
});

describe('a call inside another call', () => {
  it('ends with it if somebody depends on it or reads its signal, and passes the abort down', () => {
    const outer = newCall();
    const heard: string[] = [];
    const watched = newCall(undefined, outer);
    watched.attach(dependent('one', heard));
    watched.attach(dependent('two', heard));
    const { signal } = newCall(undefined, newCall(undefined, outer));
    outer.abort('gone');
    expect([heard.sort(), signal.aborted, signal.reason]).toEqual([['one: gone', 'two: gone'], true, 'gone']);
  });

  it('ends once and leaves nothing attached if its signal is read and somebody depends on it, in either order', () => {
    for (const readsFirst of [true, false]) {
      const outer = newCall();
      const heard: string[] = [];
      const inner = newCall(undefined, outer);
      if (readsFirst) void inner.signal;
      inner.attach(dependent('one', heard));
      const { signal } = inner;
      expect([inner.previousDependent, inner.nextDependent]).toEqual([undefined, undefined]);
      outer.attach(dependent('beside', heard));
      outer.abort('gone');
      expect([heard.sort(), signal.reason, inner.owner]).toEqual([['beside: gone', 'one: gone'], 'gone', undefined]);
    }
  });

  it('does not end with it after its own end', () => {
    const outer = newCall();
    const inner = newCall(undefined, outer);
    const heard: string[] = [];
    inner.attach(dependent('one', heard));
    inner.unfollow();
    inner.attach(dependent('two', heard));
    const { signal } = inner;
    outer.abort('gone');
    expect([heard, signal.aborted]).toEqual([[], false]);
  });

  it('keeps its own reason if it ended earlier', () => {
    const outer = newCall();
    const inner = newCall(undefined, outer);
    inner.abort('own');
    outer.abort('outer');
    expect([inner.reason, inner.signal.reason, inner.aborted]).toEqual(['own', 'own', true]);
  });
});

describe('a call without options', () => {
  it('has no key, no deadline, no attributes, and is not unsafe', () => {
    const { key, idempotencyKey, unsafe, attributes, attempt, deadline, remainingMs, reason } = newCall();
    expect([key, idempotencyKey, unsafe, attributes, attempt]).toEqual([undefined, undefined, false, {}, 1]);
    expect([deadline, remainingMs, reason]).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, undefined]);
  });

  it('is not a copy, and is the outermost of those below it', () => {
    const outer = newCall();
    expect([outer.isCopy, outer.isRetried(), outer.isRetried({})]).toEqual([false, false, false]);
    for (const call of [outer, newCall(undefined, outer), newCall(undefined, newCall(undefined, outer))]) {
      expect(outermostOf(call)).toBe(outer);
    }
  });

  it('has one signal, however often that is read', () => {
    const call = newCall();
    expect(call.signal).toBe(call.signal);
    call.abort('gone');
    expect(call.signal.reason).toBe('gone');
  });
});

describe('a child of a call', () => {
  it('has its own values, and inherits the rest from its parent', () => {
    const parent = new Call(
      clock,
      task,
      { key: 'k', idempotencyKey: 'i', attributes: { a: 1 }, unsafe: true },
      undefined,
      2,
      50,
    );
    parent.isCopy = true;
    const plain = parent.child();
    expect(plain).toMatchObject({
      ...{ parent, attempt: 2, key: 'k', idempotencyKey: 'i', unsafe: true, isCopy: true },
    });
    expect([plain.deadline, plain.attributes, plain.clock, plain.task]).toEqual([50, { a: 1 }, clock, task]);
    const changed = parent.child({ attempt: 3, key: 'other', attributes: { b: 2 } });
    expect(changed).toMatchObject({
      attempt: 3,
      key: 'other',
      idempotencyKey: 'i',
      attributes: { b: 2 },
      unsafe: true,
    });
    expect([parent.attempt, parent.key]).toEqual([2, 'k']);
  });

  it('created at the same time need not read the clock again', () => {
    let reads = 0;
    const counting = { ...clock, now: () => ++reads };
    const parent = new Call(counting, task, undefined);
    parent.admittedAtMs = null;
    expect([parent.admissionMs(), parent.admissionMs(), parent.sameTimeChild().admissionMs()]).toEqual([1, 1, 1]);
    expect(parent.child().admissionMs()).toBe(2);
  });

  it('knows whether any outer retry makes attempts, however far out', () => {
    const outer = newCall();
    const inner = newCall(undefined, newCall(undefined, outer));
    const [own, other] = [{}, {}];
    inner.retriedBy = own;
    expect([inner.isRetried(), inner.isRetried(own), inner.isRetried(other)]).toEqual([true, false, true]);
    outer.retriedBy = other;
    expect([outer.isRetried(other), inner.isRetried(own)]).toEqual([false, true]);
  });
});

describe('abandoned work', () => {
  it('keeps a call and those around it busy until all of it has ended', () => {
    const outer = newCall();
    const [one, other] = [newCall(undefined, outer), newCall(undefined, outer)];
    const told: string[] = [];
    outer.onIdle(() => told.push('idle before'));
    expect(outer.isIdle).toBe(true);
    one.beginAbandonedWork();
    other.beginAbandonedWork();
    for (const [name, call] of Object.entries({ outer, one, other })) call.onIdle(() => told.push(name));
    expect([outer.isIdle, one.isIdle, other.isIdle, told]).toEqual([false, false, false, ['idle before']]);
    one.endAbandonedWork();
    expect([outer.isIdle, one.isIdle, told.slice(1)]).toEqual([false, true, ['one']]);
    other.endAbandonedWork();
    expect([outer.isIdle, other.isIdle, told.slice(2)]).toEqual([true, true, ['other', 'outer']]);
    outer.beginAbandonedWork();
    outer.endAbandonedWork();
    expect(told).toHaveLength(4);
  });

  it('does not include a signal that was only read', () => {
    const call = newCall();
    expect([call.signal.aborted, call.isIdle]).toEqual([false, true]);
  });
});

describe('an unwatched call', () => {
  it('has no caller signal, no parent, no deadline, no signal of its own, and an operation without parameters', () => {
    expect(newCall().isUnwatched).toBe(true);
    expect(newCall(undefined, newCall()).isUnwatched).toBe(false);
    expect(new Call(clock, task, undefined, undefined, 1, 50).isUnwatched).toBe(false);
    expect(new Call(clock, (call) => call, undefined).isUnwatched).toBe(false);
    const followed = newCall();
    followed.followSignal(new AbortController().signal);
    expect(followed.isUnwatched).toBe(false);
  });
});

describe('a caller’s signal', () => {
  it('ends the call when it aborts, and loses its listener afterwards', () => {
    const controller = new AbortController();
    const listeners: unknown[] = [];
    const signal = Object.assign(controller.signal, {
      addEventListener(_: string, listener: () => void) {
        listeners.push(listener);
        EventTarget.prototype.addEventListener.call(signal, 'abort', listener);
      },
      removeEventListener(_: string, listener: () => void) {
        listeners.splice(listeners.indexOf(listener), 1);
        EventTarget.prototype.removeEventListener.call(signal, 'abort', listener);
      },
    });
    const call = newCall();
    call.followSignal(signal);
    expect(listeners).toHaveLength(1);
    controller.abort('gone');
    expect([call.reason, listeners.length]).toEqual(['gone', 0]);
    call.unfollow();
    expect(listeners).toHaveLength(0);
  });

  it('does not end a call that is over', () => {
    const controller = new AbortController();
    const call = newCall();
    call.followSignal(controller.signal);
    call.unfollow();
    controller.abort('late');
    expect(call.aborted).toBe(false);
  });

  it('ends the call at once if it has already aborted', () => {
    const call = newCall();
    call.followSignal(AbortSignal.abort('before'));
    expect([call.aborted, call.reason, call.signal.aborted]).toEqual([true, 'before', true]);
  });
});
