import { describe, expect, it } from 'vitest';
import {
  attemptsOf,
  CircuitOpenError,
  DeadlineExceededError,
  OptionsError,
  standard,
  TimeoutError,
} from '../../src/index.js';
import { seededRandom, virtualClock } from '../../src/testing/index.js';

const hangs = () => new Promise<never>(() => {});
const fails = () => Promise.reject(new Error('down'));

function world(options: Parameters<typeof standard>[0] = {}) {
  const clock = virtualClock();
  return { clock, calls: standard({ name: 'payments', clock, random: seededRandom(1), ...options }) };
}

describe('standard', () => {
  it.each(['20ms', '1s', '2s', '5s', '10s', '30s'] as const)(
    'has no warnings, with a deadline of %s: its three attempts fit',
    (deadline) => {
      expect(world({ deadline }).calls.explain().warnings).toEqual([]);
    },
  );

  it('warns of more attempts than its deadline has time for', () => {
    expect(world({ attempts: 5 }).calls.explain().warnings).toMatchObject([{ code: 'attempts-exceed-deadline' }]);
  });

  it('describes its policies, including those per key', () => {
    const [, ...lines] = String(world().calls.explain()).split('\n');
    expect(lines.map((line) => line.split(' ').slice(0, 3).join(' '))).toEqual([
      '1. payments: ends',
      '2. payments: makes',
      '3. payments: keeps',
      '3.1. payments: opens',
      '3.2. payments: lets',
      '3.3. payments: gives',
      '4. the operation',
    ]);
  });

  it('makes three attempts and rethrows the last error unchanged', async () => {
    const { clock, calls } = world();
    const errors: Error[] = [];
    const running = calls.attempt(({ attempt }) => {
      errors.push(new Error(`attempt ${attempt}`));
      return Promise.reject(errors.at(-1));
    });
    await clock.runAll();
    const outcome = await running;
    expect(outcome).toEqual({ ok: false, error: errors[2] });
    expect(!outcome.ok && attemptsOf(outcome.error)).toMatchObject({ attempts: 3, stoppedBy: 'attempts' });
  });

  it('gives an attempt up after 3 s and the call after 10 s', async () => {
    const { clock, calls } = world({ attempts: 5 });
    const startMs = clock.now();
    const endsMs: number[] = [];
    const outcome = calls.attempt(({ signal }) => {
      signal.addEventListener('abort', () => endsMs.push(clock.now() - startMs));
      return hangs();
    });
    await clock.runAll();
    expect(await outcome).toMatchObject({ ok: false, error: { name: 'DeadlineExceededError', afterMs: 10_000 } });
    expect(endsMs[0]).toBe(3_000);
    expect(endsMs.at(-1)).toBe(10_000);
    expect(DeadlineExceededError.prototype).toBeInstanceOf(Error);
  });

  it('keeps a breaker per key, and one for calls without a key', async () => {
    const { clock, calls } = world({ attempts: 1 });
    for (let call = 0; call < 20; call++) await calls.attempt(fails, { key: 'a' });
    expect(await calls.attempt(() => 'never', { key: 'a' })).toMatchObject({ error: { name: 'CircuitOpenError' } });
    expect(await calls.attempt(() => 'fine', { key: 'b' })).toEqual({ ok: true, value: 'fine' });
    expect(await calls.attempt(() => 'fine')).toEqual({ ok: true, value: 'fine' });
    await clock.runAll();
    expect(CircuitOpenError.prototype).toBeInstanceOf(Error);
  });

  it('judges values by handles, for the breaker by breakerHandles, and hands over what it discards', async () => {
    const discarded: unknown[] = [];
    const { clock, calls } = world({
      handles: (outcome) => !outcome.ok || outcome.value === 429,
      breakerHandles: (outcome) => !outcome.ok,
      onDiscard: (value) => discarded.push(value),
    });
    for (let call = 0; call < 30; call++) {
      const running = calls.attempt(() => 429);
      await clock.runAll();
      expect(await running).toEqual({ ok: true, value: 429 });
    }
    expect(new Set(discarded)).toEqual(new Set([429]));
  });

  it('counts a value as a failure of its breaker by handles, unless breakerHandles says otherwise', async () => {
    const { clock, calls } = world({ attempts: 1, handles: (outcome) => outcome.ok && outcome.value === 503 });
    for (let call = 0; call < 20; call++) await calls.attempt(() => 503);
    expect(await calls.attempt(() => 'never')).toMatchObject({
      error: { code: 'ERR_CIRCUIT_OPEN', policy: 'payments' },
    });
    await clock.runAll();
  });

  it('opens for one to two seconds at first and for two to four later', async () => {
    const { clock, calls } = world({ attempts: 1, random: () => 1 - 2 ** -53 });
    for (let call = 0; call < 20; call++) await calls.attempt(fails);
    const refusalMs = async () => {
      const outcome = await calls.attempt(() => 'never');
      return !outcome.ok && (outcome.error as CircuitOpenError).retryAfterMs;
    };
    expect(await refusalMs()).toBeCloseTo(2_000);
    for (const openMs of [4_000, 4_000]) {
      await clock.advance('4s');
      await calls.attempt(fails);
      expect(await refusalMs()).toBeCloseTo(openMs);
    }
  });

  it('waits no longer than half a second between two attempts, and draws retries from a budget', async () => {
    const retries: number[] = [];
    const { clock, calls } = world({
      attempts: 20,
      deadline: '1m',
      random: () => 1,
      on: (event) => event.type === 'retry' && retries.push(event.delayMs),
    });
    const running = calls.attempt(() => Promise.reject(Object.assign(new Error('down'))));
    await clock.runAll();
    const outcome = await running;
    expect(retries.slice(0, 5)).toEqual([100, 200, 400, 500, 500]);
    expect(!outcome.ok && attemptsOf(outcome.error)?.stoppedBy).toBe('budget');
  });

  it('leaves other keys their retries while a key is down', async () => {
    const { clock, calls } = world();
    let lost = 0;
    for (let call = 0; call < 3_000; call++) {
      void calls.attempt(fails, { key: 'down' });
      // Of the calls to the healthy host, one in twenty fails at first.
      const task = ({ attempt }: { attempt: number }) => (attempt === 1 && call % 20 === 0 ? fails() : 'fine');
      void calls.attempt(task, { key: 'healthy' }).then(({ ok }) => {
        if (!ok && call > 1_000) lost++;
      });
      await clock.advance(20);
    }
    await clock.runAll();
    expect(lost).toBe(0);
  });

  it('grants a retry per second from an empty budget, by its own clock', async () => {
    let sent = 0;
    const { clock, calls } = world({ attempts: 2, random: () => 0, breakerHandles: () => false });
    const send = async (count: number) => {
      sent = 0;
      for (let call = 0; call < count; call++) {
        const running = calls.attempt(() => Promise.reject(++sent));
        await clock.runAll();
        await running;
      }
      return sent;
    };
    expect(await send(15)).toBe(25);
    await clock.advance('1s');
    expect(await send(5)).toBe(6);
  });

  it('gives a probe as much time as any attempt, even if the breaker was open for less', async () => {
    const { clock, calls } = world({ attempts: 1 });
    for (let call = 0; call < 20; call++) await calls.attempt(fails);
    await clock.advance('2s');
    const probe = calls.attempt(hangs);
    await clock.runAll();
    expect(await probe).toMatchObject({ ok: false, error: { name: 'TimeoutError', afterMs: 3_000 } });
  });

  it('gives an attempt three tenths of a deadline that is shorter than ten seconds', async () => {
    const { clock, calls } = world({ attempts: 1, deadline: '1s' });
    const running = calls.attempt(hangs);
    await clock.runAll();
    expect(await running).toMatchObject({ ok: false, error: { name: 'TimeoutError', afterMs: 300 } });
  });

  it('evicts the breaker of the least recently used key at maxKeys', async () => {
    const { calls } = world({ attempts: 1, maxKeys: 1 });
    for (let call = 0; call < 19; call++) await calls.attempt(fails, { key: 'a' });
    await calls.attempt(() => 1, { key: 'b' });
    await calls.attempt(fails, { key: 'a' });
    expect(await calls.attempt(() => 'fine', { key: 'a' })).toEqual({ ok: true, value: 'fine' });
  });

  it('runs on the system clock and reports to nobody if neither is given', async () => {
    expect(await standard().execute(() => 1)).toBe(1);
  });

  it('lets the limit and the breaker learn from its timeouts', async () => {
    const { clock, calls } = world({ attempts: 1, timeout: '100ms' });
    for (let call = 0; call < 20; call++) {
      const running = calls.attempt(hangs);
      await clock.advance(100);
      expect(await running).toMatchObject({ error: { name: TimeoutError.prototype.name } });
    }
    expect(await calls.attempt(() => 'never')).toMatchObject({ error: { code: 'ERR_CIRCUIT_OPEN' } });
  });

  it.each<Parameters<typeof standard>[0]>([{ deadline: '2ms' }, { deadline: '20d', timeout: '24h' }])(
    'takes no times that its parts refuse: %j',
    async (options) => {
      expect(await world(options).calls.attempt(() => 1)).toEqual({ ok: true, value: 1 });
    },
  );

  it('leaves no timer behind', async () => {
    const { clock, calls } = world();
    await calls.execute(() => 1);
    expect(clock.pendingTimers).toBe(0);
  });

  it.each([
    [{ timeout: '10s' }, 'below "deadline" (10000 ms)'],
    [{ deadline: 1 }, 'from 2 to'],
    [{ deadline: '20d', timeout: '25h' }, 'from 1 to 86400000 ms'],
    [{ attempts: 0 }, 'standard: option "attempts"'],
    [{ attempts: 1_001 }, 'standard: option "attempts"'],
    [{ maxKeys: 0 }, 'standard: option "maxKeys"'],
    [{ maxKeys: 1_000_001 }, 'standard: option "maxKeys"'],
    [{ onDiscard: true }, '"onDiscard"'],
    [{ breakerHandles: true }, '"breakerHandles"'],
    [{ deadline: '1s', timeout: '2s' }, 'below "deadline" (1000 ms)'],
    [{ attempt: 3 }, 'did you mean "attempts"?'],
  ])('refuses %j', (options, message) => {
    expect(() => standard(options as object)).toThrow(OptionsError);
    expect(() => standard(options as object)).toThrow(message);
  });
});
