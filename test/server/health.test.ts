/** Liveness and readiness, through real servers of both frameworks. */
import { createServer } from 'node:http';
import express from 'express';
import Fastify from 'fastify';
import { afterEach, describe, expect, it } from 'vitest';
import { adaptiveLimit, bulkhead, circuitBreaker, keyed, memoryStore, pipeline, timeout } from '../../src/index.js';
import { health as expressHealth } from '../../src/server/express.js';
import { health as fastifyHealth } from '../../src/server/fastify.js';
import { HealthEngine, type HealthOptions } from '../../src/server/health.js';
import { virtualClock } from '../../src/testing/index.js';
import { forbidUnhandledRejections } from '../support/unhandled-rejections.ts';
import { running } from './support.js';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

const frameworks = [
  {
    name: 'express',
    async serve(options: HealthOptions) {
      const app = express();
      app.use(expressHealth(options));
      app.use((_request, response) => void response.status(404).end('the app'));
      const { port, close } = await running(createServer(app));
      closers.push(close);
      return `http://127.0.0.1:${port}`;
    },
  },
  {
    name: 'fastify',
    async serve(options: HealthOptions) {
      const app = Fastify({ forceCloseConnections: true });
      await app.register(fastifyHealth, options);
      closers.push(() => app.close());
      return app.listen({ port: 0, host: '127.0.0.1' });
    },
  },
];

function openBreaker(name: string) {
  const breaker = circuitBreaker({ name });
  breaker.isolate();
  return breaker;
}

const engineOf = (options: HealthOptions) => new HealthEngine(options);
async function readyOf(options: HealthOptions) {
  const { status, body } = await engineOf(options).ready();
  return { code: status, ...JSON.parse(body) };
}

describe.each(frameworks)('health of holdfast/$name', ({ serve }) => {
  it('answers liveness with 200 whatever is down, and readiness with 503 and details if something critical is', async () => {
    const url = await serve({ checks: { payments: { check: openBreaker('payments'), critical: true } } });
    const live = await fetch(`${url}/health/live`);
    expect([live.status, await live.json()]).toEqual([200, { status: 'pass' }]);
    for (const path of ['/health', '/health/ready']) {
      const ready = await fetch(url + path);
      expect(ready.status).toBe(503);
      expect(ready.headers.get('content-type')).toMatch(/^application\/health\+json/);
      expect(ready.headers.get('cache-control')).toBe('no-store');
      const detail = {
        componentType: 'circuit-breaker',
        componentId: 'payments',
        status: 'fail',
        observedValue: 'isolated',
      };
      expect(await ready.json()).toEqual({ status: 'fail', checks: { payments: [{ ...detail, critical: true }] } });
    }
  });

  it('answers HEAD without a body, and ignores other methods and paths', async () => {
    const url = await serve({ path: '/internal/health' });
    const head = await fetch(`${url}/internal/health/ready`, { method: 'HEAD' });
    expect([head.status, await head.text()]).toEqual([200, '']);
    expect((await fetch(`${url}/internal/health`, { method: 'POST' })).status).toBe(404);
    expect((await fetch(`${url}/health`)).status).toBe(404);
    expect((await fetch(`${url}/internal/health/other`)).status).toBe(404);
  });

  it('answers 503 while a critical subject throws', async () => {
    const link = { name: 'link', state: 'closed' };
    const url = await serve({ checks: { link: { check: link, critical: true } } });
    Object.defineProperty(link, 'state', { get: () => thrown('EBROKEN') });
    const answers = [await fetch(`${url}/health`), await fetch(`${url}/health`)];
    for (const answer of answers)
      expect([answer.status, await answer.text()]).toEqual([503, expect.not.stringContaining('hunter2')]);
  });

  it('refuses invalid options when the server is built', async () => {
    await expect(serve({ check: {} } as never)).rejects.toThrow(
      /health: unknown option "check", did you mean "checks"/,
    );
  });
});

/** Throws an error with this code; without one, an error whose code cannot even be read. */
function thrown(code: string | undefined): never {
  const error = new Error('hunter2');
  if (code !== undefined) throw Object.assign(error, { code });
  throw Object.defineProperty(error, 'code', {
    get() {
      throw error;
    },
  });
}

describe('readiness', () => {
  forbidUnhandledRejections();

  it('is "warn" and 200 while only non-critical checks are down', async () => {
    const checks = { payments: openBreaker('payments'), mail: () => Promise.reject(new Error('down')) };
    expect(await readyOf({ checks })).toMatchObject({ code: 200, status: 'warn' });
    expect(await readyOf({})).toEqual({ code: 200, status: 'pass', checks: {} });
  });

  it('shows the states of all policies of a pipeline, and the number of keyed ones', async () => {
    const calls = pipeline(
      keyed(() => timeout('1s'), { key: () => 'tenant-a' }),
      circuitBreaker({ name: 'payments' }),
      bulkhead({ name: 'slots', limit: 3 }),
      adaptiveLimit({ initial: 40 }),
      timeout('1s'),
    );
    await calls.execute(() => 1);
    const { checks, status } = await readyOf({ checks: { calls } });
    expect(status).toBe('pass');
    expect(checks.calls).toMatchObject([
      { componentType: 'keyed', observedValue: { size: 1 } },
      { componentType: 'circuit-breaker', componentId: 'payments', observedValue: 'closed' },
      { componentType: 'bulkhead', componentId: 'slots', observedValue: { running: 0, waiting: 0, abandoned: 0 } },
      { componentType: 'adaptive-limit', observedValue: { limit: 40, running: 0, waiting: 0 } },
    ]);
    expect(JSON.stringify(checks)).not.toContain('tenant-a');
  });

  it('checks a store with one read of a key that does not exist', async () => {
    const store = memoryStore();
    const read: string[] = [];
    const watched = Object.assign(Object.create(store) as typeof store, {
      read: (key: string) => {
        read.push(key);
        return store.read(key);
      },
    });
    const { checks } = await readyOf({ checks: { store: { check: watched, critical: true } } });
    expect(read).toEqual(['holdfast:health']);
    expect(checks.store).toEqual([
      {
        componentType: 'datastore',
        status: 'pass',
        observedValue: expect.any(Number),
        observedUnit: 'ms',
        critical: true,
      },
    ]);
  });

  it('shows the code of an error, never its text', async () => {
    const secret = (code: unknown) => () =>
      Promise.reject(Object.assign(new Error('redis://user:hunter2@host'), { code }));
    const checks = {
      known: secret('ECONNREFUSED'),
      odd: secret('hunter2 is wrong'),
      number: secret(7),
      bare: secret(undefined),
    };
    const answer = await readyOf({ checks });
    expect(answer.checks.known).toEqual([
      { componentType: 'component', status: 'fail', output: 'ECONNREFUSED', critical: false },
    ]);
    expect(answer.checks.odd).toEqual([{ componentType: 'component', status: 'fail', critical: false }]);
    expect(JSON.stringify(answer)).not.toContain('hunter2');
  });

  it.each([
    ['an error with a code', 'ECONNREFUSED', { output: 'ECONNREFUSED' }],
    ['an error whose code cannot be read', undefined, {}],
  ])('is 503 while a critical subject throws %s, and goes on afterwards', async (_, code, output) => {
    const clock = virtualClock();
    let isBroken = false;
    const link = {
      name: 'link',
      get state() {
        return isBroken ? thrown(code) : 'closed';
      },
    };
    const checks = { link: { check: link, critical: true }, payments: openBreaker('payments') };
    const engine = engineOf({ checks, maxAge: '1s', clock });
    isBroken = true;
    const down = await engine.ready();
    expect(down.status).toBe(503);
    expect(JSON.parse(down.body).checks).toEqual({
      link: [{ componentType: 'policy', componentId: 'link', status: 'fail', ...output, critical: true }],
      payments: [expect.objectContaining({ componentId: 'payments', observedValue: 'isolated' })],
    });
    isBroken = false;
    await clock.advance('1s');
    expect((await engine.ready()).status).toBe(200);
  });

  it('shows the other policies of a pipeline of which one throws', async () => {
    const own = { name: 'own', state: 'closed' };
    const engine = engineOf({
      checks: { calls: { name: 'calls', policies: [own, openBreaker('payments')] } as never },
    });
    Object.defineProperty(own, 'state', { get: () => thrown('EBROKEN') });
    expect(JSON.parse((await engine.ready()).body).checks.calls).toMatchObject([
      { componentId: 'own', status: 'fail', output: 'EBROKEN' },
      { componentId: 'payments', status: 'fail', observedValue: 'isolated' },
    ]);
  });

  it('gives a check its time, then aborts it, and does not start it again while it hangs', async () => {
    const clock = virtualClock();
    let begun = 0;
    let hangs = true;
    let letGo: (() => void) | undefined;
    let signal: AbortSignal | undefined;
    const mail = (context: { signal: AbortSignal }) => {
      begun++;
      signal = context.signal;
      return hangs ? new Promise<void>((resolve) => (letGo = resolve)) : undefined;
    };
    const engine = engineOf({ checks: { mail: { check: mail, critical: true } }, timeout: '300ms', maxAge: 0, clock });
    const first = engine.ready();
    await clock.advance('300ms');
    expect(JSON.parse((await first).body).checks.mail[0]).toMatchObject({ status: 'fail', output: 'ERR_TIMEOUT' });
    expect(signal?.aborted).toBe(true);
    expect((await engine.ready()).status).toBe(503);
    expect(begun).toBe(1);
    hangs = false;
    letGo?.();
    await clock.flush();
    expect((await engine.ready()).status).toBe(200);
    expect(begun).toBe(2);
    expect(clock.pendingTimers).toBe(0);
  });

  it('runs one round of checks for concurrent probes, and another when maxAge has passed', async () => {
    const clock = virtualClock();
    let looks = 0;
    const mail = () => {
      looks++;
      return clock.sleep(100);
    };
    const engine = engineOf({ checks: { mail }, maxAge: '1s', clock });
    const together = Promise.all([engine.ready(), engine.ready()]);
    await clock.advance(100);
    await together;
    await clock.advance(999);
    await engine.ready();
    expect(looks).toBe(1);
    await clock.advance(1);
    const later = engine.ready();
    await clock.advance(100);
    await later;
    expect(looks).toBe(2);
  });

  it.each([
    [
      { checks: { a: timeout('1s') } },
      /check "a" must be a policy that has a state, a pipeline of such, a store or a function/,
    ],
    [{ checks: { a: { check: () => {}, critical: 'yes' } } }, /check "a" "critical" must be true or false/],
    [{ checks: { 'a key': () => {} } }, /option "checks" must be an object of at most 100 checks/],
    [{ checks: { a: null } }, /check "a" must be a policy that has a state.*, got null/],
    [{ checks: { b: () => {}, a: 5 } }, /check "a" must be a policy that has a state.*, got 5/],
    [{ checks: { a: { check: 'db' } } }, /check "a" must be a policy that has a state.*, got 'db'/],
    [{ path: '/health/' }, /option "path" must be a path such as '\/health'/],
    [{ path: 'health' }, /option "path" must be a path/],
    [{ timeout: 0 }, /option "timeout" must be a duration/],
  ])('refuses invalid options: %#', (options, message) => {
    expect(() => engineOf(options as never)).toThrow(message);
  });
});
