/**
 * Sealing: results as they are stored, plain or encrypted with AES-256-GCM under a named key.
 *
 * Promise: bytes sealed for one place (a key hash, or a phase of it) do not open in any other, so a writer to the store can neither
 * move an answer to another caller nor plant one. A changed byte is an error. A key that is no longer current still opens what it
 * sealed.
 * Layout: 0, bytes; or 1, length of the key's name, name, nonce 12, tag 16, ciphertext.
 */
import { Slab } from '../../core/slab.js';
import { nodeCrypto } from './hashing.js';

/** Keys that encrypt what is stored. */
export interface IdempotencyEncryption {
  /** The name of the key that seals. */
  readonly current: string;
  /**
   * 32 bytes each, by name. To rotate, add one and make it current; drop the old one after `ttl`. `'plain'` in place of a
   * key stands for records in the clear, which are accepted only while one of the keys is `'plain'`: begin with it to encrypt existing records.
   */
  readonly keys: Readonly<Record<string, Uint8Array | 'plain'>>;
}

const inClear: IdempotencyEncryption = { current: '', keys: { '': 'plain' } };
const slab = /* @__PURE__ */ new Slab();
const plain = 0;
const aes256gcm = 1;
const nonceBytes = 12;
const tagBytes = 16;

export interface Sealing {
  seal(place: string, bytes: Uint8Array): Uint8Array;
  /** Throws when it cannot be opened. */
  open(place: string, bytes: Uint8Array): Uint8Array;
}

export function sealing(encryption: IdempotencyEncryption | undefined): Sealing {
  const { current, keys: byName } = encryption ?? inClear;
  const keys = new Map(Object.entries(byName));
  const currentKey = keys.get(current)!;
  // Otherwise anybody who can write to the store could plant an answer.
  const opensPlain = [...keys.values()].includes('plain');
  return {
    seal(place, bytes) {
      if (currentKey === 'plain') {
        // Plain bytes start with a zero, which the slab already holds.
        const sealed = slab.take(bytes.length + 1);
        sealed.set(bytes, 1);
        return sealed;
      }
      return encrypt(current, currentKey, place, bytes);
    },
    open(place, bytes) {
      if (bytes[0] === plain) {
        if (!opensPlain) throw new Error('stored in clear, and none of the keys of "encryption" is \'plain\'');
        return bytes.subarray(1);
      }
      if (bytes[0] !== aes256gcm) throw new Error(`sealed by an unknown method, ${bytes[0]}`);
      const name = new TextDecoder().decode(bytes.subarray(2, 2 + bytes[1]!));
      const key = keys.get(name);
      if (!(key instanceof Uint8Array))
        throw new Error(`sealed under key "${name}", which is not among the keys of "encryption"`);
      return decrypt(key, place, bytes.subarray(2 + bytes[1]!));
    },
  };
}

function encrypt(name: string, key: Uint8Array, place: string, bytes: Uint8Array): Uint8Array {
  const nonce = globalThis.crypto.getRandomValues(new Uint8Array(nonceBytes));
  const cipher = nodeCrypto().createCipheriv('aes-256-gcm', key, nonce, { authTagLength: tagBytes });
  cipher.setAAD(new TextEncoder().encode(place));
  const sealed = [cipher.update(bytes), cipher.final()];
  const nameBytes = new TextEncoder().encode(name);
  return joined([Uint8Array.of(aes256gcm, nameBytes.length), nameBytes, nonce, cipher.getAuthTag(), ...sealed]);
}

function decrypt(key: Uint8Array, place: string, sealed: Uint8Array): Uint8Array {
  const nonce = sealed.subarray(0, nonceBytes);
  const decipher = nodeCrypto().createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: tagBytes });
  decipher.setAAD(new TextEncoder().encode(place));
  decipher.setAuthTag(sealed.subarray(nonceBytes, nonceBytes + tagBytes));
  return joined([decipher.update(sealed.subarray(nonceBytes + tagBytes)), decipher.final()]);
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
