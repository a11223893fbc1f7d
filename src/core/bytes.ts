/** Bytes: the check of what a serializer of the user returns. */
import { isBytes } from './kinds.js';
import { show } from './options.js';

/** @throws TypeError for text or a promise, say: copied as if they were bytes, they would be stored as nothing. */
export function encodedBytes(encoded: unknown): Uint8Array {
  if (isBytes(encoded)) return encoded;
  throw new TypeError(`"encode" of the serializer must return a Uint8Array, and not later, got ${show(encoded)}`);
}
