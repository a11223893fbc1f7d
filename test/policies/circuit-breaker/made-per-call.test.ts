import { afterEach, describe, expect, it, vi } from 'vitest';
import { circuitBreaker, keyed, systemClock } from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';

const warnings = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
const told = () => warnings.mock.calls.filter(([, options]) => (options as { code: string }).code === code);
const code = 'HOLDFAST_BREAKER_PER_CALL';

function make(name: string, count: number): void {
  for (let call = 0; call < count; call++) circuitBreaker({ name });
}

let aheadMs = 0;

/** Holds the system's clock at a time later than in all earlier tests. Returns a function that lets time pass. */
function holdTime(): (ms: number) => void {
  aheadMs += 3_600_000;
  let nowMs = systemClock.now() + aheadMs;
  vi.spyOn(systemClock, 'now').mockImplementation(() => nowMs);
  return (ms) => {
    nowMs += ms;
  };
}

// In this order: the last test uses up all the reports of this process.
describe('circuitBreaker, made for each call', { shuffle: false }, () => {
  afterEach(() => {
    warnings.mockClear();
    if (vi.isMockFunction(systemClock.now)) vi.mocked(systemClock.now).mockRestore();
  });

  it('is reported once, because such a breaker never opens', () => {
    holdTime();
    make('mistake', 99);
    expect(told()).toEqual([]);
    make('mistake', 200);
    expect(told()).toHaveLength(1);
    expect(told()[0]?.[0]).toContain('100 breakers named "mistake" were made within a second');
  });

  it('is no mistake if as many are made over a longer time', () => {
    const pass = holdTime();
    for (let second = 0; second < 5; second++) {
      make('slow', 60);
      pass(1_000);
    }
    expect(told()).toEqual([]);
  });

  it('is no mistake if a registry keeps one per key', () => {
    const hosts = keyed(() => circuitBreaker({ name: 'hosts' }), { maxKeys: 1_000 });
    for (let host = 0; host < 300; host++) hosts.for(`host ${host}`);
    expect(told()).toEqual([]);
  });

  it('is no mistake on a custom clock, where an hour may pass in a second, and does not reduce the count of others', () => {
    holdTime();
    const clock = virtualClock();
    make('simulated', 50);
    for (let run = 0; run < 200; run++) {
      const breaker = circuitBreaker({ name: 'simulated', clock });
      if (run < 10) keyed(() => breaker).for('key');
    }
    make('simulated', 49);
    expect(told()).toEqual([]);
    make('simulated', 1);
    expect(told()).toHaveLength(1);
  });

  it('is counted correctly even if a registry keeps one that was made long ago', () => {
    const pass = holdTime();
    const early = circuitBreaker({ name: 'early' });
    pass(1_000);
    make('another', 1);
    keyed(() => early).for('key');
    make('early', 99);
    expect(told()).toEqual([]);
    make('early', 1);
    expect(told()).toHaveLength(1);
  });

  it.each([
    ['no process', undefined],
    ['a process that warns of nothing', {}],
  ])('is no error on a platform with %s', (platform, process) => {
    vi.stubGlobal('process', process);
    try {
      make(platform, 100);
    } finally {
      vi.unstubAllGlobals();
    }
    expect(told()).toEqual([]);
  });

  it('is reported for a hundred names at most, if each call has a name of its own', () => {
    holdTime();
    for (let name = 0; name < 120; name++) make(`name ${name}`, 100);
    expect(told().length).toBeGreaterThan(90);
    expect(told().length).toBeLessThanOrEqual(101);
  });
});
