import { describe, expect, it } from 'vitest';
import { simulate } from '../../src/testing/index.js';
import { copyMessage, preview } from '../../src/testing/message.js';

async function digestOf(message: unknown): Promise<string> {
  const { digest } = await simulate({ seed: 1 }, async (world) => {
    world.node('server', { start: (process) => process.serve(() => 'heard') });
    await world.node('client').run('ask', (process) => process.request('server', message));
  });
  return digest;
}

class Order {
  readonly id: number;

  constructor(id: number) {
    this.id = id;
  }
}

describe('a message between nodes', () => {
  it.each<[string, (variant: number) => unknown]>([
    ['an error', (variant) => new RangeError(`${variant}`)],
    ['a typed array', (variant) => new Float64Array([variant])],
    ['a view of a buffer', (variant) => new DataView(new Uint8Array([0, variant]).buffer, 1)],
    ['a buffer', (variant) => new Uint8Array([variant]).buffer],
    ['an instance of a class', (variant) => new Order(variant)],
    ['a regular expression', (variant) => new RegExp(`${variant}`)],
    ['what is deep in a map', (variant) => new Map([['a', [new Error(`${variant}`)]]])],
  ])('counts with what it holds in the digest: %s', async (_, make) => {
    expect(await digestOf(make(1))).toBe(await digestOf(make(1)));
    expect(await digestOf(make(1))).not.toBe(await digestOf(make(2)));
  });

  it('shares no memory with its copy', () => {
    const message = { bytes: new Float64Array([1]), order: new Order(1), nested: [{ a: 1 }] };
    const copy = copyMessage(message);
    expect(copy).toEqual({ ...message, order: { id: 1 } });
    message.bytes[0] = 2;
    message.nested[0]!.a = 2;
    expect([copy.bytes[0], copy.nested[0]?.a]).toEqual([1, 1]);
  });
});

describe('what a trace shows of a message', () => {
  it('is its JSON, or else what it says of itself, if anything', () => {
    expect(preview({ a: 1 })).toBe('{"a":1}');
    expect(preview({ a: 1n })).toBe('[object Object]');
    expect(preview(Object.assign(Object.create(null), { a: 1n }))).toBe('something that cannot be shown');
  });
});
