/** What every client does around a request, observed through `createFetch` and the test's own `fetch`. */
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { type ClientOptions, createFetch, type Fetch, handles } from '../../src/client/fetch.js';
import {
  type AnyPolicy,
  bulkhead,
  CircuitOpenError,
  type Clock,
  circuitBreaker,
  constant,
  deadline,
  fallback,
  keyed,
  OptionsError,
  pipeline,
  RateLimitedError,
  retry,
  type Strategy,
  standard,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

/** A client that records for which origins its policy is made, and whose requests hang where the test says so. */
function client(options: ClientOptions = {}) {
  const made: string[] = [];
  const hanging = new Map<string, (response: Response) => void>();
  const hosts = new Set<string>();
  const http = createFetch({
    policy: (origin) => {
      made.push(origin.replace('http://', ''));
      return pipeline();
    },
    fetch: async (input) => {
      const { host } = new URL(String(input));
      if (!hosts.has(host)) return new Response();
      return new Promise((resolve) => hanging.set(host, resolve));
    },
    ...options,
  });
  const ask = (host: string) => http(`http://${host}/`);
  return { ask, made, hanging, hosts };
}

describe('the origins of a client', () => {
  it.each<ClientOptions['pacing']>([{}, 'off'])(
    'are forgotten by last use, and only for a new one (pacing %j)',
    async (pacing) => {
      const { ask, made } = client({ maxOrigins: 2, pacing: pacing! });
      for (const host of ['a', 'b', 'b', 'a', 'c', 'a', 'b']) await ask(host);
      expect(made).toEqual(['a', 'b', 'c', 'b']);
    },
  );

  it('are kept while they have running requests, if another origin can be evicted', async () => {
    const { ask, made, hanging, hosts } = client({ maxOrigins: 2 });
    hosts.add('a');
    const slow = ask('a');
    await ask('b');
    await ask('c');
    hosts.clear();
    await ask('a');
    expect(made).toEqual(['a', 'b', 'c']);
    hanging.get('a')!(new Response());
    await slow;
  });

  it.each([1, 11])('are evicted anyway if %i of the oldest have running requests', async (busy) => {
    const names = Array.from({ length: busy }, (_, index) => `busy${index}`);
    const { ask, made, hanging, hosts } = client({ maxOrigins: busy === 1 ? 1 : busy + 1 });
    for (const name of names) hosts.add(name);
    const slow = names.map(ask);
    if (busy > 1) await ask('idle');
    await ask('new');
    hosts.clear();
    made.length = 0;
    if (busy > 1) await ask('idle');
    await ask('busy0');
    expect(made).toEqual(['busy0']);
    for (const end of hanging.values()) end(new Response());
    await Promise.all(slow);
  });
});

describe('a request delayed by its origin', () => {
  /** So many refusals in a row stop an origin. */
  const refusals = 5;

  /** The first answers refuse, and ask for a pause of one second. */
  async function paused(policyWith: (clock: Clock) => AnyPolicy) {
    const clock = virtualClock();
    const policy = policyWith(clock);
    let sent = 0;
    const fetch = vi.fn<Fetch>(async () =>
      ++sent <= refusals ? new Response(null, { status: 503, headers: { 'retry-after': '1' } }) : new Response('here'),
    );
    const http = createFetch({ policy, fetch, clock });
    for (let refusal = 0; refusal < refusals; refusal++) await http('http://a.test/');
    return { http: () => http('http://a.test/'), clock, fetch };
  }

  const places: readonly [string, (policy: AnyPolicy) => AnyPolicy][] = [
    ['', (policy) => policy],
    [' that a registry keeps', (policy) => keyed(() => policy)],
  ];

  it.each(places)('takes no slot of a bulkhead%s', async (_, place) => {
    const slots = bulkhead({ limit: 1, queue: 0 });
    const { http, clock } = await paused(() => place(slots));
    const waiting = http();
    await setImmediate();
    expect(slots.running).toBe(0);
    await clock.advance(2_000);
    expect(await (await waiting).text()).toBe('here');
  });

  it.each(places)('does not start the timeout of an attempt%s', async (_, place) => {
    const { http, clock } = await paused((clock) => place(timeout({ after: '100ms', clock })));
    const waiting = http();
    await clock.advance(2_000);
    expect(await (await waiting).text()).toBe('here');
  });

  it('is refused at once if its deadline is earlier', async () => {
    const { http } = await paused((clock) =>
      pipeline(deadline({ after: '500ms', clock }), timeout({ after: '100ms', clock })),
    );
    await expect(http()).rejects.toBeInstanceOf(RateLimitedError);
  });

  it('does not start the timeout of the preset', async () => {
    const { http, clock } = await paused((clock) => standard({ timeout: '100ms', attempts: 1, clock }));
    const waiting = http();
    await clock.advance(2_000);
    expect(await (await waiting).text()).toBe('here');
  });

  it('waits anew for each attempt of a retry that a registry keeps', async () => {
    const clock = virtualClock();
    const kept = keyed(() =>
      pipeline(retry({ handles, backoff: constant(1), clock, attempts: 3 }), timeout({ after: '100ms', clock })),
    );
    const startsMs: number[] = [];
    const http = createFetch({
      policy: kept,
      clock,
      fetch: async () => {
        startsMs.push(clock.now());
        return startsMs.length <= refusals + 1
          ? new Response(null, { status: 503, headers: { 'retry-after': '1' } })
          : new Response();
      },
    });
    const first = Array.from({ length: refusals }, () => http('http://a.test/'));
    await clock.advance(1);
    const last = http('http://a.test/');
    await clock.advance(10_000);
    for (const response of await Promise.all([...first, last])) expect(response.status).toBe(200);
    expect(startsMs[refusals - 1]).toBe(0);
    expect(startsMs[refusals]).toBeGreaterThanOrEqual(1_000);
    expect(startsMs[refusals + 1]).toBeGreaterThanOrEqual(2_000);
  });

  it.each(places)('is refused at once if a breaker%s is open for its origin', async (_, place) => {
    const breaker = circuitBreaker({});
    const { http } = await paused(() => place(pipeline(breaker, timeout('1s'))));
    breaker.isolate();
    await expect(http()).rejects.toBeInstanceOf(CircuitOpenError);
  });
});

describe('answers collected by a policy', () => {
  /** Each body reports its end. */
  function bodies() {
    const log: string[] = [];
    let sent = 0;
    const fetch: Fetch = async () => {
      const number = ++sent;
      log.push(`sent ${number}`);
      const body = new ReadableStream(
        {
          pull: (controller) => {
            log.push(`read ${number}`);
            controller.enqueue(new TextEncoder().encode(`body ${number}`));
            controller.close();
          },
          cancel: () => void log.push(`given back ${number}`),
        },
        { highWaterMark: 0 },
      );
      return new Response(body, { status: number === 1 ? 503 : 200 });
    };
    return { log, fetch };
  }

  it('are released before the next request is sent if attempts run in turn, also inside a fallback', async () => {
    const { log, fetch } = bodies();
    const policy = pipeline(
      fallback(() => new Response()),
      retry({ attempts: 2, backoff: constant(0), handles }),
      timeout('10s'),
    );
    await createFetch({ policy, fetch })('http://a.test/');
    await setImmediate();
    expect(log).toEqual(['sent 1', 'read 1', 'sent 2']);
  });

  it('are kept until a custom policy has chosen, because it may want several at a time', async () => {
    const { log, fetch } = bodies();
    const choosy: Strategy = {
      name: 'choosy',
      async handle(call, next) {
        const first = await next(call.child());
        await next(call.child());
        return first;
      },
    };
    const response = await createFetch({ policy: pipeline(choosy, timeout('10s')), fetch })('http://a.test/');
    expect(await response.text()).toBe('body 1');
    await expect.poll(() => log).toContain('sent 2');
  });
});

describe('the call that the policies see', () => {
  async function seen(init: RequestInit) {
    let key: string | undefined;
    let attempts = 0;
    const spy: Strategy = {
      name: 'spy',
      handle(call, next) {
        key = call.idempotencyKey;
        return next(call);
      },
    };
    const policy = pipeline(spy, retry({ attempts: 2, backoff: constant(0), handles }));
    const fetch = async () => {
      attempts++;
      return new Response(null, { status: 503 });
    };
    await createFetch({ policy, fetch })('http://a.test/', init);
    return [key, attempts];
  }

  it('has an idempotency key only if that allows the request to be repeated', async () => {
    const headers = { 'idempotency-key': 'k' };
    expect(await seen({ method: 'POST', headers })).toEqual(['k', 2]);
    expect(await seen({ method: 'PUT' })).toEqual([undefined, 2]);
    expect(await seen({ method: 'POST' })).toEqual([undefined, 1]);
    const stream = { method: 'POST', headers, body: new Blob(['x']).stream(), duplex: 'half' };
    expect(await seen(stream as RequestInit)).toEqual([undefined, 1]);
  });
});

describe('the options of a client', () => {
  it.each([
    [{ idempotencyHeader: 5 }],
    [{ pacing: { queue: -1 } }],
    [{ pacing: { queue: 1_000_001 } }],
    [{ pacing: { maxWait: -1 } }],
    [{ pacing: { maxPause: 0 } }],
  ])('are refused at once: %j', (options) => {
    expect(() => createFetch(options as never)).toThrow(OptionsError);
  });

  it('may allow no delay', () => {
    expect(() => createFetch({ pacing: { queue: 0, maxWait: 0 } })).not.toThrow();
    expect(() => createFetch({ pacing: { queue: 1_000_000 } })).not.toThrow();
  });
});
