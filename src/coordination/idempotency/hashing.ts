/**
 * Hashing: keys, fingerprints and derived keys, with the platform's cryptography.
 *
 * Promise: a key never reaches the store, an event or a log in clear text. With a secret, a reader of the store cannot test guesses of keys.
 */
import { HoldfastError } from '../../core/errors.js';

type NodeCrypto = typeof import('node:crypto');

let found: NodeCrypto | undefined;

/** Node's own module. Bun and Deno have it too, and so has workerd with `nodejs_compat`. */
export function nodeCrypto(): NodeCrypto {
  found ??= globalThis.process?.getBuiltinModule?.('node:crypto');
  if (found !== undefined) return found;
  throw new HoldfastError(
    'ERR_CRYPTO_UNAVAILABLE',
    'idempotency needs node:crypto; on Cloudflare turn on the compatibility flag "nodejs_compat"',
  );
}

/** Identifies one operation of one caller: base64url of 32 bytes. None of the parts may contain U+0000. */
export function keyHashOf(secret: Uint8Array | undefined, scope: string, operation: string, key: string): string {
  return hashOf(secret, `${scope}\0${operation}\0${key}`);
}

/** The key that a step sends to another system: the same in each attempt, different for each name. */
export function downstreamKeyOf(secret: Uint8Array | undefined, keyHash: string, name: string): string {
  return hashOf(secret, `${keyHash}\0${name}`);
}

function hashOf(secret: Uint8Array | undefined, text: string): string {
  const crypto = nodeCrypto();
  if (secret !== undefined) return crypto.createHmac('sha256', secret).update(text).digest('base64url');
  // Costs half as much as a hash object. Node has it from 20.12.
  return typeof crypto.hash === 'function'
    ? crypto.hash('sha256', text, 'base64url')
    : crypto.createHash('sha256').update(text).digest('base64url');
}

const ownerBytes = 16;
const ownersPerDraw = 256;

/** 128 random bits for each owner, by which it recognizes its own record. Drawn in pages: one at a time costs a microsecond. */
export class Owners {
  private page = new Uint8Array(0);
  private used = 0;

  next(): Uint8Array {
    if (this.used >= this.page.length) {
      this.page = globalThis.crypto.getRandomValues(new Uint8Array(ownersPerDraw * ownerBytes));
      this.used = 0;
    }
    this.used += ownerBytes;
    return this.page.subarray(this.used - ownerBytes, this.used);
  }
}
