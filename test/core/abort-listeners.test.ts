import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import { addAbortListener, removeAbortListener } from '../../src/core/abort-listeners.ts';
import { pipeline, timeout } from '../../src/index.js';

describe('abort listeners', () => {
  const listenersOf = (signal: AbortSignal) => getEventListeners(signal, 'abort').length;

  it('calls every listener once, and leaves none on the signal', () => {
    const controller = new AbortController();
    const { signal } = controller;
    const told: number[] = [];
    for (let number = 0; number < 20; number++) addAbortListener(signal, () => told.push(number));
    controller.abort();
    expect(told).toEqual(Array.from({ length: 20 }, (_, number) => number));
    expect(listenersOf(signal)).toBeLessThanOrEqual(1);
  });

  it('calls no removed listener, even one that another listener removes', () => {
    const controller = new AbortController();
    const { signal } = controller;
    const told: string[] = [];
    const last = () => told.push('last');
    addAbortListener(signal, () => {
      told.push('first');
      removeAbortListener(signal, third);
    });
    addAbortListener(signal, () => {
      told.push('second');
      removeAbortListener(signal, last);
    });
    const third = () => told.push('third');
    addAbortListener(signal, third);
    addAbortListener(signal, last);
    controller.abort();
    expect(told).toEqual(['first', 'second']);
  });

  it('needs two signal listeners at most, however many share it, and none when all are gone', () => {
    const { signal } = new AbortController();
    const listeners = Array.from({ length: 100 }, () => () => {});
    for (const listener of listeners) addAbortListener(signal, listener);
    expect(listenersOf(signal)).toBe(2);
    for (const listener of listeners) removeAbortListener(signal, listener);
    expect(listenersOf(signal)).toBe(0);
    addAbortListener(signal, listeners[0]!);
    expect(listenersOf(signal)).toBe(1);
    removeAbortListener(signal, listeners[0]!);
    expect(listenersOf(signal)).toBe(0);
  });

  it.each([0, 1, 2, 3])('recognises a shared signal among others that are not shared, after %i of them', (before) => {
    const { signal } = new AbortController();
    const others = (count: number) => {
      for (let other = 0; other < count; other++) addAbortListener(new AbortController().signal, () => {});
    };
    others(before);
    for (let turn = 0; turn < 10; turn++) {
      addAbortListener(signal, () => {});
      others(3);
    }
    expect(listenersOf(signal)).toBe(2);
  });

  it('lets any number of calls share a signal without a listener each', async () => {
    const controller = new AbortController();
    const calls = pipeline(timeout('1m'));
    const hangs = () => new Promise<never>(() => {});
    const all = Array.from({ length: 50 }, () => calls.attempt(hangs, { signal: controller.signal }));
    expect(listenersOf(controller.signal)).toBe(2);
    const reason = new Error('shut down');
    controller.abort(reason);
    expect(await Promise.all(all)).toEqual(Array.from({ length: 50 }, () => ({ ok: false, error: reason })));
    expect(listenersOf(controller.signal)).toBe(0);
  });
});
