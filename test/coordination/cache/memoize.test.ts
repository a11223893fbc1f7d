import { describe, expect, it } from 'vitest';
import { memoize, OptionsError } from '../../../src/index.js';

describe('memoize', () => {
  it('calls the function once for the same arguments, and distinguishes 1 from "1"', async () => {
    const calls: unknown[][] = [];
    const join = memoize(
      (...args: (string | number | boolean | null)[]) => {
        calls.push(args);
        return args.join();
      },
      { ttl: '1m' },
    );
    const both = await Promise.all([join('a', 1), join('a', 1), join('a', '1'), join('a,1'), join(null, true)]);
    expect(both).toEqual(['a,1', 'a,1', 'a,1', 'a,1', ',true']);
    expect(calls.length).toBe(4);
    await join.cache.delete(['a', 1]);
    await join('a', 1);
    expect(calls.length).toBe(5);
  });

  it('refuses arguments that it cannot tell apart, and accepts a key function for them', async () => {
    const load = async ({ id }: { id: number }) => id;
    const naive = memoize(load, { ttl: '1m' });
    await expect(naive({ id: 1 })).rejects.toThrow('give the option "key"');
    const keyed = memoize(load, { ttl: '1m', key: ([{ id }]) => `${id}` });
    expect([await keyed({ id: 1 }), await keyed({ id: 2 })]).toEqual([1, 2]);
  });

  it('refuses anything but a function', () => {
    expect(() => memoize(undefined as never, { ttl: 1 })).toThrow(OptionsError);
    expect(() => memoize(() => 1, undefined as never)).toThrow(/memoize|cache/);
  });
});
