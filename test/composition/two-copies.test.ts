/** Policies and clients of two copies of the package that work together, as where a CommonJS module and an ES module share them. */
import { describe, expect, it, vi } from 'vitest';
import { createFetch } from '../../src/client/fetch.js';
import { circuitBreaker, constant, pipeline, retry } from '../../src/index.js';

vi.resetModules();
const copy = { ...(await import('../../src/client/fetch.js')), ...(await import('../../src/index.js')) };

describe('with another copy of the package', () => {
  it('is another one', () => {
    expect(copy.retry).not.toBe(retry);
  });

  it('a retry discards the value that a breaker could not judge', async () => {
    const discarded: unknown[] = [];
    const handles = () => {
      throw new Error('broken');
    };
    const policy = pipeline(
      retry({ attempts: 1, onDiscard: (value) => discarded.push(value) }),
      copy.circuitBreaker({ handles }),
    );
    expect(await policy.attempt(() => 'value')).toMatchObject({ error: { code: 'ERR_HANDLES_FAILED' } });
    expect(discarded).toEqual(['value']);
  });

  it('handles takes a request that could not be made for no fault of the service', async () => {
    let sent = 0;
    const breaker = circuitBreaker({ window: { consecutive: 1 }, handles: copy.breakerHandles });
    const policy = pipeline(retry({ backoff: constant(1), handles: copy.handles }), breaker);
    const send: typeof fetch = (input, init) => {
      sent++;
      return fetch(input, init);
    };
    const http = createFetch({ policy, fetch: send as never });
    await expect(http('http://127.0.0.1:1/', { body: 'a GET with a body' })).rejects.toThrow(TypeError);
    expect([sent, breaker.state]).toEqual([1, 'closed']);
  });

  it('handles takes the answer of another origin to a request that has left its key behind for final', async () => {
    const answers = [
      new Response(null, { status: 307, headers: { location: 'http://b.test/' } }),
      new Response('busy', { status: 503 }),
    ];
    const policy = pipeline(retry({ backoff: constant(1), handles: copy.handles }));
    const http = createFetch({ policy, fetch: async () => answers.shift()! });
    const response = await http('http://a.test/', { method: 'POST', headers: { 'idempotency-key': '"1"' } });
    expect([response.status, await response.text()]).toEqual([503, 'busy']);
  });
});
