/**
 * Hashing: keys, fingerprints and derived keys, by the cryptography of the platform.
 *
 * Promise: a key never reaches the store, an event or a log in clear; with a secret nobody who reads the store can try out keys.
 */
import { HoldfastError } from '../../core/errors.js';

type NodeCrypto = typeof import('node:crypto');

let found: NodeCrypto | undefined;

/** Node's own module, which Bun and Deno have, too, and workerd with `nodejs_compat`. */
export function nodeCrypto(): NodeCrypto {
  found ??= globalThis.process?.getBuiltinModule?.('node:crypto');
  if (found !== undefined) return found;
  throw new HoldfastError(
    'ERR_CRYPTO_UNAVAILABLE',
    'idempotency needs node:crypto; on Cloudflare turn on the compatibility flag "nodejs_compat"',
  );
}

/** Names one operation of one caller: base64url of 32 bytes. None of the parts may contain U+0000. */
export function keyHashOf(secret: Uint8Array | undefined, scope: string, operation: string, key: string): string {
  const text = `${scope}\0${operation}\0${key}`;
  if (secret !== undefined) return nodeCrypto().createHmac('sha256', secret).update(text).digest('base64url');
  return sha256(text);
}

/** The key that a step of an operation sends on: the same in each attempt, and another for each name. */
export function downstreamKeyOf(secret: Uint8Array | undefined, keyHash: string, name: string): string {
  const text = `${keyHash}\0${name}`;
  if (secret !== undefined) return nodeCrypto().createHmac('sha256', secret).update(text).digest('base64url');
  return sha256(text);
}

function sha256(text: string): string {
  const crypto = nodeCrypto();
  // Half the price of a hash object. Node has it from 20.12.
  return typeof crypto.hash === 'function'
    ? crypto.hash('sha256', text, 'base64url')
    : crypto.createHash('sha256').update(text).digest('base64url');
}

const ownerBytes = 16;
let pool = new Uint8Array(0);
let used = 0;

/** 128 random bits, by which an owner knows its own record again. Drawn by the page: one at a time costs a microsecond. */
export function newOwner(): Uint8Array {
  if (used >= pool.byteLength) {
    pool = globalThis.crypto.getRandomValues(new Uint8Array(256 * ownerBytes));
    used = 0;
  }
  used += ownerBytes;
  return pool.subarray(used - ownerBytes, used);
}
