import { createHash, createHmac } from 'node:crypto';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { downstreamKeyOf, keyHashOf, Owners } from '../../../src/coordination/idempotency/hashing.js';

const secret = new TextEncoder().encode('a secret');
const sha256 = (text: string) => createHash('sha256').update(text).digest('base64url');
const hmac = (text: string) => createHmac('sha256', secret).update(text).digest('base64url');

afterEach(() => {
  vi.unstubAllGlobals();
  vi.resetModules();
});

/** The module on another platform. */
function on(process: unknown) {
  vi.resetModules();
  vi.stubGlobal('process', process);
  return import('../../../src/coordination/idempotency/hashing.js');
}

describe('hash of an idempotency key', () => {
  it('is the SHA-256 of caller, operation and key, or their HMAC by the secret', () => {
    expect(keyHashOf(undefined, 'caller', 'POST /orders', 'key')).toBe(sha256('caller\0POST /orders\0key'));
    expect(keyHashOf(secret, 'caller', 'POST /orders', 'key')).toBe(hmac('caller\0POST /orders\0key'));
  });

  it('derives the key of a step in the same way', () => {
    expect(downstreamKeyOf(undefined, 'hash', 'charge')).toBe(sha256('hash\0charge'));
    expect(downstreamKeyOf(secret, 'hash', 'charge')).toBe(hmac('hash\0charge'));
  });

  it('is the same without crypto.hash', async () => {
    const older = { createHash };
    const module = await on({ getBuiltinModule: () => older });
    expect(module.keyHashOf(undefined, 'caller', 'POST /orders', 'key')).toBe(sha256('caller\0POST /orders\0key'));
  });

  it.each([undefined, {}, { getBuiltinModule: () => undefined }])(
    'fails with a clear error without cryptography: %j',
    async (process) => {
      const { keyHashOf: hashOf } = await on(process);
      expect(() => hashOf(undefined, 'caller', 'POST /orders', 'key')).toThrow('compatibility flag "nodejs_compat"');
      expect(() => hashOf(undefined, 'caller', 'POST /orders', 'key')).toThrow(
        expect.objectContaining({ code: 'ERR_CRYPTO_UNAVAILABLE' }),
      );
    },
  );
});

describe('owners', () => {
  it('are 16 bytes each, all different', () => {
    const owners = new Owners();
    const seen = new Set<string>();
    for (let count = 1; count <= 600; count++) {
      const owner = owners.next();
      expect(owner.length).toBe(16);
      seen.add(Buffer.from(owner).toString('hex'));
      expect(seen.size).toBe(count);
    }
  });

  it('are drawn 256 at a time', () => {
    const draw = vi.spyOn(globalThis.crypto, 'getRandomValues');
    try {
      const owners = new Owners();
      for (let count = 0; count < 512; count++) owners.next();
      expect(draw).toHaveBeenCalledTimes(2);
    } finally {
      draw.mockRestore();
    }
  });
});
