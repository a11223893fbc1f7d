/** What `idempotency` and its calls accept, and what the calls return: ends of ranges, words, special results. */
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { fingerprint } from '../../../src/coordination/idempotency/fingerprint.js';
import { type IdempotencyOptions, idempotency, memoryStore, OptionsError } from '../../../src/index.js';
import { plain, scope, setUp, setUpUnreliable } from './support.js';

const made = (options: object) => idempotency({ store: memoryStore(), ...options } as IdempotencyOptions);
const key32 = new Uint8Array(32);
const bytes = (...all: number[]) => Uint8Array.from(all);

describe('options of idempotency', () => {
  it.each<[object]>([
    [{ ttl: '3650d' }],
    [{ lease: 100 }],
    [{ lease: '1h', ttl: 3_600_001 }],
    [{ wait: 'off' }],
    [{ maxBodyBytes: 0 }],
    [{ maxBodyBytes: 1_073_741_824 }],
    [{ secret: 's'.repeat(16) }],
    [{ secret: new Uint8Array(16) }],
    [{ fingerprint: { exclude: ['/a', '/a/b', '/', '/~0~1', '/lines/0'] } }],
    [{ encryption: { current: 'k'.repeat(64), keys: { ['k'.repeat(64)]: key32 } } }],
    [{ encryption: { current: '~', keys: { '~': 'plain' } } }],
  ])('take %j', (options) => expect(made(options)).toBeDefined());

  it.each<[string, object]>([
    ['ttl', { ttl: '3651d' }],
    ['lease', { lease: 99 }],
    ['ttl', { lease: '1h', ttl: '1h' }],
    ['wait', { wait: 'of' }],
    ['wait', { wait: 0 }],
    ['maxBodyBytes', { maxBodyBytes: -1 }],
    ['maxBodyBytes', { maxBodyBytes: 1_073_741_825 }],
    ['attempts', { attempts: 0 }],
    ['attempts', { attempts: 1_000_001 }],
    ['onLost', { onLost: 'run' }],
    ['onStoreDown', { onStoreDown: 'rerun' }],
    ['secret', { secret: 's'.repeat(15) }],
    ['secret', { secret: new Uint8Array(15) }],
    ['secret', { secret: 1e16 }],
    ['secret', { secret: Array(16).fill(1) }],
    ['serializer', { serializer: { encode() {} } }],
    ...[['a'], ['/a', 'b'], ['x/a'], ['/a~'], ['/~2'], ['/a~b/c'], [7], [''], '/a', null].map(
      (exclude): [string, object] => ['fingerprint', { fingerprint: { exclude } }],
    ),
    ['fingerprint', { fingerprint: null }],
    ...[
      ...[null, 7, {}, { current: 'k' }, { current: 'k', keys: null }, { current: 'k', keys: 'kk' }],
      ...[{ keys: { undefined: key32 } }, { current: 0, keys: { 0: key32 } }, { current: 'j', keys: { k: key32 } }],
      ...[
        { current: 'toString', keys: {} },
        { current: 'k', keys: { k: key32, 'a b': key32 } },
      ],
      ...['', 'k'.repeat(65), 'ä', 'k ', ' k'].map((name) => ({ current: name, keys: { [name]: key32 } })),
      ...[new Uint8Array(33), 'k'.repeat(32), 'plaintext', null, Array(32).fill(1)].map((key) => ({
        ...{ current: 'k', keys: { k: key32, j: key } },
      })),
    ].map((encryption): [string, object] => ['encryption', { encryption }]),
  ])('refuse for %s: %j', (option, options) => {
    expect(() => made(options)).toThrow(expect.objectContaining({ code: 'ERR_OPTIONS', option }));
  });

  it('show no secret in the error that refuses it', () => {
    expect(() => made({ secret: 'too short' })).toThrow(/got a text of 9 characters$/);
    expect(() => made({ secret: 7 })).toThrow(/got 7$/);
  });

  it('are copied: later changes to them have no effect', async () => {
    const secret = new Uint8Array(16).fill(1);
    const exclude = ['/at'];
    const keys = { k: new Uint8Array(32).fill(1) };
    const { once, store, clock } = setUp({ secret, fingerprint: { exclude }, encryption: { current: 'k', keys } });
    await once.run('k', () => 1, { ...scope, input: { at: 1 } });
    const same = {
      secret: secret.slice(),
      fingerprint: { exclude: ['/at'] },
      encryption: { current: 'k', keys: { k: keys.k.slice() } },
    };
    secret.fill(2);
    exclude.pop();
    keys.k.fill(2);
    for (const one of [once, idempotency({ store, clock, ...same })]) {
      expect(await one.run('k', () => expect.unreachable(), { ...scope, input: { at: 2 } })).toBe(1);
    }
  });

  it('show only the name in a log', () => {
    const once = made({ name: 'pay', secret: 'sixteen bytes or more' });
    expect(inspect(once)).toBe(inspect({ name: 'pay' }));
  });
});

describe('a call', () => {
  it('refuses anything but a function before anything is done', async () => {
    const { once, store } = setUp();
    for (const fn of [undefined, 7, 'fn', {}]) {
      await expect(once.run('k', fn as never, scope)).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'fn' });
      const inside = once.transaction({}, 'k', fn as never, scope);
      await expect(inside).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'fn' });
    }
    expect(store.size).toBe(0);
  });

  it('accepts plain values as its input, and compares them', async () => {
    const { once } = setUp();
    const inputs = [5, -0.5, true, false, 'text', '', null, [], {}, '5', [5]];
    for (const [index, input] of inputs.entries()) {
      expect(await once.run(`k${index}`, () => index, { ...scope, input })).toBe(index);
      for (const [other, another] of inputs.entries()) {
        const call = once.run(`k${index}`, () => expect.unreachable(), { ...scope, input: another });
        if (other === index) expect(await call).toBe(index);
        else await expect(call).rejects.toMatchObject({ code: 'ERR_KEY_REUSED' });
      }
    }
  });

  it('accepts any view of bytes as its input, and compares only the bytes it covers', async () => {
    const { once } = setUp();
    const all = bytes(9, 1, 2, 3, 4, 9);
    const run = (input: unknown) => once.run('k', () => 'ran', { ...scope, input });
    await run(all.subarray(1, 5));
    expect(await run(new DataView(all.buffer, 1, 4))).toBe('ran');
    expect(await run(Buffer.from([1, 2, 3, 4]))).toBe('ran');
    for (const other of [all, all.subarray(1, 4), '\x01\x02\x03\x04', [1, 2, 3, 4]]) {
      await expect(run(other)).rejects.toMatchObject({ code: 'ERR_KEY_REUSED' });
    }
  });

  it('has a fingerprint that later releases and other processes reproduce', async () => {
    const { once } = setUp();
    for (const [key, input, made] of [
      ['none', undefined, { head: [] }],
      ['json', { b: 1, a: [2] }, { head: [], body: '{"a":[2],"b":1}', isJson: true }],
      ['bytes', bytes(1, 2), { head: [], body: bytes(1, 2) }],
    ] as const) {
      await once.run(key, () => 1, input === undefined ? scope : { ...scope, input });
      const request = { scope: 'shop', operation: 'idempotency', key, fingerprint: await fingerprint(made) };
      expect(await once.begin(request)).toMatchObject({ kind: 'replay' });
      expect(await once.begin({ ...request, fingerprint: await fingerprint({ head: [], body: 'x' }) })).toEqual({
        kind: 'mismatch',
      });
    }
  });

  it("gets the function's result itself if it could not be stored", async () => {
    const at = new Date(0);
    const large = setUp({ maxBodyBytes: 3 });
    expect(await large.once.run('k', () => at, scope)).toBe(at);
    const down = setUpUnreliable({ onStoreDown: 'run' });
    down.faulty.faults.push('fails');
    expect(await down.once.run('k', () => at, scope)).toBe(at);
    const { once } = setUp();
    expect(await once.run('stored', () => at, scope)).toBe('1970-01-01T00:00:00.000Z');
    expect(await once.run('no JSON', () => setUp, scope)).toBe(setUp);
  });

  it('that has lost its key gets no result, because another attempt may have one', async () => {
    const { once, store, outcomes } = setUp();
    const run = once.run(
      'k',
      async () => {
        const write = store.write.bind(store);
        store.write = async (key, value, options) => {
          store.write = write;
          await store.remove(key);
          await idempotency({ store }).run('k', () => 'another', scope);
          return store.write(key, value, options);
        };
        return 'mine';
      },
      scope,
    );
    await expect(run).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'lost' });
    expect(outcomes()).toEqual(['lost']);
  });

  it('describes each error, with the name of the engine', async () => {
    const { once, clock, store } = setUp({ name: 'pay', onLost: 'refuse', maxBodyBytes: 20 });
    const run = (input?: unknown, value: unknown = 1) => once.run('k', () => value, { ...scope, input });
    await run({ cents: 1 });
    await expect(run({ cents: 2 })).rejects.toThrow(/^"pay": /);
    await once.run('large', () => 'x'.repeat(30), scope);
    await expect(once.run('large', () => 1, scope)).rejects.toThrow(
      'the operation with this key has run, and its result could not be stored: it was too large, or not serializable',
    );
    void idempotency({ store, clock: setUp().clock, lease: '3s', name: 'pay' }).run(
      'lost',
      () => new Promise(() => {}),
      scope,
    );
    await clock.advance('3s');
    await expect(once.run('lost', () => 1, scope)).rejects.toThrow(
      '"pay": the process that ran the operation with this key was lost, or it failed too often; call resolve when its outcome is known',
    );
  });

  it('is in doubt if the serializer cannot read what it has written', async () => {
    const cause = new SyntaxError('no XML');
    const serializer = {
      encode: () => bytes(1),
      decode: () => {
        throw cause;
      },
    };
    const { once } = setUp({ serializer, name: 'pay' });
    for (let call = 0; call < 2; call++) {
      await expect(once.run('k', () => 1, scope)).rejects.toMatchObject({
        ...{ code: 'ERR_IN_DOUBT', reason: 'unreadable', policy: 'pay', cause },
        message: expect.stringContaining('has run, and the serializer cannot read its result'),
      });
    }
  });
});

describe('a resolution', () => {
  it('takes either a result or a release, not both', async () => {
    const { once } = setUp({}, plain);
    for (const wrong of [{}, { result: 1, release: true }, { release: false }, { release: 'yes' }, { release: 1 }]) {
      await expect(once.resolve('k', { ...scope, ...wrong } as never)).rejects.toThrow(OptionsError);
    }
    for (const right of [{ result: undefined }, { result: 0 }, { release: true }] as const) {
      expect(await once.resolve('k', { ...scope, ...right })).toBe(false);
    }
  });
});
