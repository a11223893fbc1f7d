import { createDecipheriv } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { sealing } from '../../../src/coordination/idempotency/sealing.js';

const bytesOf = (text: string) => new TextEncoder().encode(text);
const textOf = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const older = new Uint8Array(32).fill(1);
const newer = new Uint8Array(32).fill(2);
const keys = { older, newer };

describe('sealing without encryption', () => {
  it('puts a zero before the bytes, and returns them unchanged', () => {
    const { seal, open } = sealing(undefined);
    expect([...seal('hash', Uint8Array.of(7, 0, 9))]).toEqual([0, 7, 0, 9]);
    expect([...open('hash', seal('hash', Uint8Array.of(7, 0, 9)))]).toEqual([7, 0, 9]);
    expect([...open('hash', seal('hash', new Uint8Array(0)))]).toEqual([]);
    // Each is in a place of its own.
    const [one, other] = [seal('hash', Uint8Array.of(1)), seal('hash', Uint8Array.of(2))];
    expect([one[1], other[1]]).toEqual([1, 2]);
  });

  it('describes bytes that it cannot open', () => {
    const { open } = sealing(undefined);
    expect(() => open('hash', Uint8Array.of(2, 0))).toThrow('sealed by an unknown method, 2');
    expect(() => open('hash', sealing({ current: 'newer', keys }).seal('hash', bytesOf('a')))).toThrow(
      'sealed under key "newer", which is not among the keys of "encryption"',
    );
  });
});

describe('sealing with encryption', () => {
  const { seal, open } = sealing({ current: 'newer', keys });

  it('opens what it has sealed, which nobody can read, and never seals alike', () => {
    for (const text of ['', 'a secret result', 'long '.repeat(1_000)]) {
      const sealed = seal('hash', bytesOf(text));
      expect(textOf(open('hash', sealed))).toBe(text);
      if (text !== '') expect(Buffer.from(sealed).includes(text)).toBe(false);
      expect(sealed).not.toEqual(seal('hash', bytesOf(text)));
    }
  });

  it('is AES-256-GCM with the key hash as additional data: method, key name, nonce, tag, ciphertext', () => {
    const sealed = seal('hash', bytesOf('a secret result'));
    expect([...sealed.subarray(0, 7)]).toEqual([1, 5, ...bytesOf('newer')]);
    expect(sealed.length).toBe(7 + 12 + 16 + 15);
    const decipher = createDecipheriv('aes-256-gcm', newer, sealed.subarray(7, 19));
    decipher.setAAD(bytesOf('hash'));
    decipher.setAuthTag(sealed.subarray(19, 35));
    expect(decipher.update(sealed.subarray(35), undefined, 'utf8') + decipher.final('utf8')).toBe('a secret result');
  });

  it('opens under no other hash, and no bytes that were changed or truncated', () => {
    const sealed = seal('hash', bytesOf('a secret result'));
    expect(() => open('other', sealed)).toThrow();
    for (let at = 0; at < sealed.length; at++) {
      expect(() => open('hash', sealed.with(at, sealed[at]! ^ 0x80))).toThrow();
      expect(() => open('hash', sealed.subarray(0, at))).toThrow();
    }
  });

  it('opens nothing with a shortened tag, which could be guessed', () => {
    // With an empty text, nothing else is missing.
    const sealed = seal('hash', new Uint8Array(0));
    for (const length of [4, 8, 12, 15]) {
      expect(() => open('hash', sealed.subarray(0, sealed.length - 16 + length))).toThrow();
    }
  });

  it('opens bytes sealed with an earlier key, but not with a removed one', () => {
    const before = sealing({ current: 'older', keys: { older } }).seal('hash', bytesOf('a'));
    expect(textOf(open('hash', before))).toBe('a');
    expect(() => sealing({ current: 'newer', keys: { newer } }).open('hash', before)).toThrow('key "older"');
  });

  it('opens no plain bytes, which any writer to the store could have planted', () => {
    const planted = sealing(undefined).seal('hash', bytesOf('paid'));
    expect(() => open('hash', planted)).toThrow('stored in clear, and none of the keys of "encryption" is \'plain\'');
  });

  it('opens plain bytes for as long as one of its keys is plain', () => {
    const before = sealing(undefined).seal('hash', bytesOf('a'));
    const turning = sealing({ current: 'newer', keys: { newer, before: 'plain' } });
    expect(textOf(turning.open('hash', before))).toBe('a');
    expect(Buffer.from(turning.seal('hash', bytesOf('a secret result'))).includes('secret')).toBe(false);
  });

  it('seals plainly while its current key is plain, and already opens what the next key seals', () => {
    const first = sealing({ current: 'before', keys: { newer, before: 'plain' } });
    expect([...first.seal('hash', Uint8Array.of(7))]).toEqual([0, 7]);
    expect(textOf(first.open('hash', seal('hash', bytesOf('a'))))).toBe('a');
  });

  it('does not take bytes marked as sealed for plain', () => {
    const forged = Uint8Array.of(1, 6, ...bytesOf('before'), ...new Uint8Array(40));
    const { open: openTurning } = sealing({ current: 'newer', keys: { newer, before: 'plain' } });
    expect(() => openTurning('hash', forged)).toThrow('sealed under key "before", which is not among the keys');
  });
});
