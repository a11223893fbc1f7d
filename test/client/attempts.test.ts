/** The attempts of one request, whichever way they are sent: what becomes of their answers, and when there are no further attempts. */
import { describe, expect, it } from 'vitest';
import type { Send } from '../../src/client/attempts.js';
import { type ClientOptions, clientFields, engineOf } from '../../src/client/engine.js';
import { handles } from '../../src/client/handles.js';
import { checkOptions } from '../../src/core/options.js';
import {
  constant,
  deadline,
  type HoldfastEvent,
  hedge,
  isRejected,
  pipeline,
  RejectedError,
  retry,
  type Strategy,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

interface Answer {
  readonly status: number;
  readonly headers: object;
  readonly number: number;
}

function setUp(options: (clock: ReturnType<typeof virtualClock>) => ClientOptions) {
  const clock = virtualClock();
  const happened: string[] = [];
  const events: HoldfastEvent[] = [];
  const given = { clock, on: (event: HoldfastEvent) => void events.push(event), ...options(clock) };
  const engine = engineOf('test', checkOptions('test', given, clientFields('test')));
  let sent = 0;
  const answer = (status: number): Answer => ({ status, headers: {}, number: sent });
  /** Sends through a function that is given the number of the request. */
  function run(
    send: (number: number, ...given: Parameters<Send<Answer>>) => Answer | Promise<Answer>,
    { method = 'GET', key }: { method?: string; key?: string } = {},
  ) {
    return engine.run<Answer>(
      { origin: 'http://a.test', method, key, isReplayable: true, signal: undefined },
      async (...all) => {
        happened.push(`sent ${++sent}`);
        return send(sent, ...all);
      },
      ({ number }) => void happened.push(`given back ${number}`),
    );
  }
  const count = (type: string) => events.filter((event) => event.type === type).length;
  return { clock, run, answer, happened, count };
}

const reset = () => new TypeError('fetch failed', { cause: Object.assign(new Error('reset'), { code: 'ECONNRESET' }) });

describe('the attempts of a request', () => {
  it('release each answer before the next attempt is sent, but not the last one', async () => {
    const { clock, run, answer, happened } = setUp((clock) => ({
      policy: pipeline(retry({ attempts: 3, backoff: constant(1), handles, clock })),
    }));
    const result = run((number) => answer(number < 3 ? 503 : 200));
    await clock.advance(10);
    expect(await result).toMatchObject({ status: 200, number: 3 });
    expect(happened).toEqual(['sent 1', 'given back 1', 'sent 2', 'given back 2', 'sent 3']);
  });

  it('do not return an answer that was released for a further attempt, if that attempt is refused', async () => {
    const { clock, run, answer, happened } = setUp((clock) => ({
      policy: pipeline(retry({ attempts: 2, backoff: constant(1), handles, clock })),
    }));
    const refusal = new RejectedError('ERR_BUSY', 'busy', { policy: 'another client', retryAfterMs: 1 });
    const failed = run((number) => {
      if (number === 2) throw refusal;
      return answer(503);
    }).catch((error) => error);
    await clock.advance(10);
    expect(await failed).toMatchObject({ code: 'ERR_ATTEMPTS_DISCARDED', cause: refusal });
    expect(isRejected(await failed)).toBe(false);
    expect(happened).toEqual(['sent 1', 'given back 1', 'sent 2']);
  });

  it('return an answer again that comes back after its release', async () => {
    const { clock, run, answer } = setUp((clock) => ({
      policy: pipeline(retry({ attempts: 2, backoff: constant(1), handles, clock })),
    }));
    const same = answer(503);
    const result = run(() => same);
    await clock.advance(10);
    expect(await result).toBe(same);
  });

  it('made concurrently release late answers, and only those', async () => {
    const { clock, run, answer, happened } = setUp((clock) => ({
      policy: pipeline(hedge({ delay: 10, max: 1, clock })),
    }));
    const result = run(async (number) => {
      const one = answer(200);
      await clock.sleep(number === 1 ? 100 : 5);
      return one;
    });
    await clock.advance('1s');
    expect(await result).toMatchObject({ number: 2 });
    expect(happened).toEqual(['sent 1', 'sent 2', 'given back 1']);
  });

  it('release an answer that arrives after a timeout, before and after the end of the call', async () => {
    const { clock, run, answer, happened } = setUp((clock) => ({
      policy: pipeline(retry({ attempts: 2, backoff: constant(1), handles, clock }), timeout({ after: 100, clock })),
    }));
    const result = run(async (number) => {
      const one = answer(200);
      await clock.sleep(number === 1 ? 150 : 500);
      return one;
    });
    const failed = Promise.resolve(result).catch((error) => error);
    await clock.advance(160);
    expect(happened).toEqual(['sent 1', 'sent 2', 'given back 1']);
    await clock.advance('1s');
    expect(await failed).toMatchObject({ code: 'ERR_TIMEOUT' });
    expect(happened).toEqual(['sent 1', 'sent 2', 'given back 1', 'given back 2']);
  });

  it('release an answer that arrives after a policy has answered with another, and left its attempt running', async () => {
    const both: Strategy = {
      name: 'both',
      handle: (call, next) => Promise.race([next(call), next(call)]),
    };
    const { clock, run, answer, happened } = setUp(() => ({ policy: pipeline(both) }));
    const result = run(async (number) => {
      const one = answer(200);
      await clock.sleep(100 * number);
      return { ...one, number };
    });
    await clock.advance(150);
    expect(await result).toMatchObject({ number: 1 });
    expect(happened).toEqual(['sent 1', 'sent 2']);
    await clock.advance(100);
    expect(happened).toEqual(['sent 1', 'sent 2', 'given back 2']);
  });

  it('are not resent after a lost connection when nobody waits for them any more', async () => {
    const { clock, run, answer, happened, count } = setUp((clock) => ({
      policy: pipeline(timeout({ after: 100, clock })),
    }));
    await run(() => answer(200));
    const late = run(async () => {
      await clock.sleep(150);
      throw reset();
    }).catch((error) => error);
    await clock.advance('1s');
    expect(await late).toMatchObject({ code: 'ERR_TIMEOUT' });
    expect([happened, count('reconnected')]).toEqual([['sent 1', 'sent 2'], 0]);
  });

  it('send the remaining time and, only if a retry is at work, the attempt number', async () => {
    const seen: object[] = [];
    const ask = async (propagate: 'none' | 'holdfast', isRetried: boolean) => {
      const { clock, run, answer } = setUp((clock) => ({
        propagate,
        policy: isRetried
          ? pipeline(deadline({ after: '5s', clock }), retry({ attempts: 2, backoff: constant(1), handles, clock }))
          : pipeline(deadline({ after: '5s', clock })),
      }));
      const result = run((number, _call, headers) => {
        seen.push(headers);
        return answer(number === 1 ? 503 : 200);
      });
      await clock.advance(10);
      await result;
    };
    await ask('none', true);
    await ask('holdfast', false);
    await ask('holdfast', true);
    expect(seen).toEqual([
      {},
      {},
      { 'request-deadline-ms': '4950' },
      { 'request-deadline-ms': '4950', 'request-attempt': '1' },
      { 'request-deadline-ms': '4949', 'request-attempt': '2' },
    ]);
  });

  it('send a key only for maxKeyAge, counted from the first attempt', async () => {
    const { clock, run, answer, happened } = setUp((clock) => ({
      maxKeyAge: '10s',
      policy: pipeline(retry({ attempts: 3, backoff: constant('6s'), handles, clock })),
    }));
    await clock.advance('1h');
    const result = run(() => answer(503), { method: 'POST', key: 'k' }).catch((error) => error);
    await clock.advance('1m');
    expect([await result, happened.filter((one) => one.startsWith('sent'))]).toMatchObject([
      { code: 'ERR_IN_DOUBT', reason: 'too-old' },
      ['sent 1', 'sent 2'],
    ]);
  });

  it('end after one of them went to another origin without its key, whatever the policy decides', async () => {
    const { clock, run, happened } = setUp((clock) => ({
      policy: pipeline(retry({ attempts: 3, backoff: constant(1), handles: () => true, clock })),
    }));
    const ask = (method: string, leaves: number) => {
      const send = (_number: number, _call: unknown, _headers: unknown, leave: () => void): Answer => {
        for (let count = 0; count < leaves; count++) leave();
        throw reset();
      };
      return run(send, method === 'GET' ? { method } : { method, key: 'k' }).catch((error) => error);
    };
    const left = ask('POST', 1);
    await clock.advance(10);
    expect([await left, happened.splice(0)]).toMatchObject([
      { code: 'ERR_IN_DOUBT', reason: 'redirected' },
      ['sent 1'],
    ]);
    const twice = ask('POST', 2);
    await clock.advance(10);
    expect(await twice).toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'redirected' });
    expect(happened.splice(0)).toHaveLength(1);
    const safe = ask('GET', 2);
    await clock.advance(10);
    expect([String(await safe), happened.length]).toEqual(['TypeError: fetch failed', 3]);
  });

  it('resend at once after a lost connection, once per earlier answer, up to 64', async () => {
    const { run, answer, happened, count } = setUp(() => ({ policy: pipeline(deadline('1h')) }));
    for (let request = 0; request < 70; request++) await run(() => answer(200));
    happened.length = 0;
    for (let request = 1; request <= 70; request++) {
      const lost = run(() => {
        throw reset();
      });
      await expect(lost).rejects.toThrow('fetch failed');
      if (request === 1) expect(happened).toHaveLength(2);
    }
    expect([count('reconnected'), happened.length]).toEqual([64, 134]);
  });

  it('resend at once only once per request', async () => {
    const { clock, run, answer, happened } = setUp((clock) => ({
      policy: pipeline(retry({ attempts: 2, backoff: constant(1), handles, clock })),
    }));
    for (let request = 0; request < 5; request++) await run(() => answer(200));
    happened.length = 0;
    const lost = run(() => {
      throw reset();
    }).catch((error) => error);
    await clock.advance(10);
    expect([String(await lost), happened.length]).toEqual(['TypeError: fetch failed', 3]);
  });
});
