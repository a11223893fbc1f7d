import { afterEach, describe, expect, it, vi } from 'vitest';
import { circuitBreaker, keyed } from '../../../src/index.js';

const warnings = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
const told = () => warnings.mock.calls.filter(([, options]) => (options as { code: string }).code === code);
const code = 'HOLDFAST_BREAKER_PER_CALL';

describe('circuitBreaker, made for each call', () => {
  afterEach(() => warnings.mockClear());

  it('is told of once, because such a breaker never opens', () => {
    for (let call = 0; call < 300; call++) circuitBreaker({ name: 'mistake' });
    expect(told()).toHaveLength(1);
    expect(told()[0]?.[0]).toContain('100 breakers named "mistake" were made within a second');
  });

  it('is no mistake where a registry keeps one per key', () => {
    const hosts = keyed(() => circuitBreaker({ name: 'hosts' }), { maxKeys: 1_000 });
    for (let host = 0; host < 300; host++) hosts.for(`host ${host}`);
    expect(told()).toEqual([]);
  });
});
