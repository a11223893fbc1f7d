/** Bytes: what counts as bytes, and the check of what a serializer of the user returns. */
import { show } from './options.js';

/** Accepts bytes of another realm, for which `instanceof` is false: test runners have several realms. */
export function isBytes(value: unknown): value is Uint8Array {
  return ArrayBuffer.isView(value) && (value as Uint8Array)[Symbol.toStringTag] === 'Uint8Array';
}

/** @throws TypeError for text or a promise, say: copied as if they were bytes, they would be stored as nothing. */
export function encodedBytes(encoded: unknown): Uint8Array {
  if (isBytes(encoded)) return encoded;
  throw new TypeError(`"encode" of the serializer must return a Uint8Array, and not later, got ${show(encoded)}`);
}
