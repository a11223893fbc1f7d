import { describe, expect, it } from 'vitest';
import {
  deadline,
  fallback,
  HandlesError,
  type HoldfastEvent,
  pipeline,
  RejectedError,
  refuse,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const down = new Error('down');
const fails = () => Promise.reject(down);

describe('fallback', () => {
  it('answers in place of an error, and receives it together with the call', async () => {
    const events: HoldfastEvent[] = [];
    const safe = pipeline(fallback(async (error, call) => [error, call.key], { on: (event) => events.push(event) }));
    expect(await safe.execute(fails, { key: 'k' })).toEqual([down, 'k']);
    expect(events).toEqual([{ type: 'fallback', name: 'fallback', error: down }]);
  });

  it('leaves a success alone', async () => {
    expect(await pipeline(fallback(() => 'instead')).execute(() => 'value')).toBe('value');
  });

  it('replaces a refusal and an inner deadline error', async () => {
    const refusing = { name: 'g', admit: () => refuse(new RejectedError('ERR_X', 'no', { policy: 'g' })) };
    expect(
      await pipeline(
        fallback(() => 'instead'),
        refusing,
      ).execute(() => 1),
    ).toBe('instead');
    const clock = virtualClock();
    const running = pipeline(
      fallback(() => 'instead'),
      deadline({ after: 5, clock }),
    ).execute(() => new Promise(() => {}));
    await clock.runAll();
    expect(await running).toBe('instead');
  });

  it('does not replace an abort by the caller or an outer timeout', async () => {
    let answers = 0;
    const clock = virtualClock();
    const counting = fallback(() => answers++);
    const controller = new AbortController();
    const gone = pipeline(counting, timeout({ after: 50, clock })).attempt(() => new Promise(() => {}), {
      signal: controller.signal,
    });
    controller.abort('gone');
    expect(await gone).toEqual({ ok: false, error: 'gone' });
    const late = pipeline(timeout({ after: 5, clock }), counting).attempt(() => new Promise(() => {}));
    await clock.runAll();
    expect(await late).toMatchObject({ error: { code: 'ERR_TIMEOUT' } });
    expect(answers).toBe(0);
  });

  it('rejects with what it throws itself', async () => {
    const broken = new Error('no fallback either');
    await expect(
      pipeline(
        fallback(() => {
          throw broken;
        }),
      ).execute(fails),
    ).rejects.toBe(broken);
  });

  it('replaces exactly what handles selects, including values', async () => {
    const stale = pipeline(
      fallback((error, _call, outcome) => ['stale', error, outcome], {
        handles: (outcome) => outcome.ok && outcome.value === 'old',
      }),
    );
    expect(await stale.execute(() => 'old')).toEqual(['stale', undefined, { ok: true, value: 'old' }]);
    expect(await stale.execute(() => 'new')).toBe('new');
    await expect(stale.execute(fails)).rejects.toBe(down);
  });

  it('describes what it does', () => {
    expect(fallback(() => 1).traits).toMatchObject({ kind: 'fallback', summary: 'answers in place of an error' });
  });

  it('refuses an answer that is not a function, and an invalid option, at once', () => {
    expect(() => fallback('instead' as never)).toThrow(
      expect.objectContaining({ name: 'OptionsError', option: 'answer' }),
    );
    for (const [option, options] of [
      ['handles', { handles: true }],
      ['when', { when: () => true }],
    ] as const) {
      expect(() => fallback(() => 1, options as never)).toThrow(
        expect.objectContaining({ name: 'OptionsError', option }),
      );
    }
  });

  it('rejects with a HandlesError when handles throws', async () => {
    const bug = new Error('bug');
    const broken = pipeline(
      fallback(() => 1, {
        handles() {
          throw bug;
        },
      }),
    );
    const outcome = await broken.attempt(fails);
    expect(outcome).toMatchObject({ error: expect.any(HandlesError) });
    expect(outcome).toMatchObject({ error: { cause: down, thrown: bug } });
  });
});
