import { channel } from 'node:diagnostics_channel';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Events, hearEvents } from '../../src/core/events.js';
import { constant, fallback, type HoldfastEvent, pipeline, retry, timeout } from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup();
});

function subscribe(): HoldfastEvent[] {
  const events: HoldfastEvent[] = [];
  const listen = (event: unknown) => events.push(event as HoldfastEvent);
  channel('holdfast').subscribe(listen);
  cleanups.push(() => channel('holdfast').unsubscribe(listen));
  return events;
}

function collectWarnings(): Error[] {
  const warnings: Error[] = [];
  const listen = (warning: Error) => warnings.push(warning);
  process.on('warning', listen);
  cleanups.push(() => process.off('warning', listen));
  return warnings;
}

/** Warnings are emitted in a later tick. */
const nextTurn = () => new Promise(setImmediate);

describe('Events', () => {
  it('are heard only if there is a hook or a subscriber', () => {
    expect(new Events('quiet', undefined).heard).toBe(false);
    expect(new Events('hooked', () => {}).heard).toBe(true);
    subscribe();
    expect(new Events('quiet', undefined).heard).toBe(true);
  });

  it('reach the hook of their policy and the diagnostics channel "holdfast"', async () => {
    const published = subscribe();
    const hooked: HoldfastEvent[] = [];
    const error = new Error('down');
    const steady = pipeline(
      fallback(() => 'instead', { on: (event) => hooked.push(event) }),
      retry({ attempts: 2, backoff: constant(0), name: 'steady' }),
    );
    await steady.execute(() => Promise.reject(error));
    expect(published).toEqual([
      { type: 'retry', name: 'steady', attempt: 1, delayMs: 0, error, outcome: { ok: false, error } },
      { type: 'retry-stopped', name: 'steady', attempts: 2, stoppedBy: 'attempts', error },
      { type: 'fallback', name: 'fallback', error },
    ]);
    expect(hooked).toEqual([{ type: 'fallback', name: 'fallback', error }]);
  });

  it.each([
    [
      'throws',
      () => {
        throw new Error('bad hook');
      },
    ],
    ['rejects', () => Promise.reject(new Error('bad hook'))],
    [
      'throws what cannot be shown',
      () => {
        throw Object.create(null);
      },
    ],
  ])('contain a hook that %s, and report it once as a warning', async (_, on) => {
    const published = subscribe();
    const warnings = collectWarnings();
    const clock = virtualClock();
    const quick = pipeline(timeout({ after: 5, name: 'payments', clock, on }));
    for (let call = 0; call < 3; call++) {
      const running = quick.attempt(() => new Promise(() => {}));
      await clock.advance(5);
      expect(await running).toMatchObject({ error: { code: 'ERR_TIMEOUT' } });
    }
    await nextTurn();
    const told = warnings.filter((warning) => (warning as { code?: string }).code === 'HOLDFAST_HOOK_FAILED');
    expect(told).toHaveLength(1);
    expect(told[0]?.message).toMatch(/^"payments": its "on" hook threw and was contained \(said once\): /);
    expect(published.filter(({ type }) => type === 'hook-failed')).toHaveLength(3);
    expect(published.find(({ type }) => type === 'hook-failed')).toMatchObject({ name: 'payments', hook: 'on' });
  });
});

describe('Events, without the modules of Node', () => {
  it.each([[undefined], [{}], [{ getBuiltinModule: () => undefined }]])(
    'go only to the hook, and report nothing: the process is %j',
    (platform) => {
      const heard: HoldfastEvent[] = [];
      vi.stubGlobal('process', platform);
      try {
        const stop = hearEvents('telemetry', (event) => heard.push(event));
        const events = new Events('hooked', (event) => {
          heard.push(event);
          throw new Error('bad hook');
        });
        events.emit({ type: 'timeout', name: 'hooked', afterMs: 5 });
        stop();
      } finally {
        vi.unstubAllGlobals();
      }
      expect(heard).toEqual([{ type: 'timeout', name: 'hooked', afterMs: 5 }]);
    },
  );

  it('are silent if the module is missing when the package loads', async () => {
    const heard: HoldfastEvent[] = [];
    vi.stubGlobal('process', { ...process, getBuiltinModule: undefined, emitWarning() {} });
    vi.resetModules();
    try {
      const fresh = await import('../../src/core/events.js');
      const quiet = new fresh.Events('quiet', undefined);
      expect(quiet.heard).toBe(false);
      quiet.emit({ type: 'timeout', name: 'quiet', afterMs: 5 });
      quiet.report('on', new Error('bad hook'));
      const hooked = new fresh.Events('hooked', (event) => heard.push(event));
      hooked.emit({ type: 'timeout', name: 'hooked', afterMs: 5 });
    } finally {
      vi.unstubAllGlobals();
      vi.resetModules();
    }
    expect(heard).toHaveLength(1);
  });
});

describe('hearEvents', () => {
  const event: HoldfastEvent = { type: 'timeout', name: 'quick', afterMs: 5 };

  it('hears every event of the process until it is stopped', () => {
    const heard: HoldfastEvent[] = [];
    const stop = hearEvents('telemetry', (one) => heard.push(one));
    channel('holdfast').publish(event);
    stop();
    channel('holdfast').publish(event);
    expect(heard).toEqual([event]);
    expect(channel('holdfast').hasSubscribers).toBe(false);
  });

  it('receives the report of a failed hook, but not that of a failed listener', async () => {
    const heard: HoldfastEvent[] = [];
    cleanups.push(hearEvents('telemetry', (one) => heard.push(one)));
    cleanups.push(
      hearEvents('broken', () => {
        throw new Error('bad listener');
      }),
    );
    const failed = { type: 'hook-failed' as const, name: 'payments', hook: 'on', error: new Error('bad hook') };
    channel('holdfast').publish(failed);
    await nextTurn();
    expect(heard).toEqual([failed]);
  });

  it('contains listeners that always throw, and reports each once', async () => {
    const warnings = collectWarnings();
    const throws = () => {
      throw new Error('bad listener');
    };
    cleanups.push(hearEvents('one', throws), hearEvents('other', throws));
    const published = subscribe();
    channel('holdfast').publish(event);
    channel('holdfast').publish(event);
    await nextTurn();
    expect(warnings.map(({ message }) => message.slice(0, 8))).toEqual(['"one": i', '"other":']);
    expect(published.filter(({ type }) => type === 'hook-failed')).toHaveLength(4);
  });
});
