/**
 * Known: promises whose value is known when they are created, as from a store in memory, and can be read without waiting.
 *
 * Promise: the value read is the value that awaiting would give. A promise derived from a known one, for instance by a wrapper around the store, is
 * not known, so nothing in between is bypassed.
 */

// A property key that every copy of this package finds.
const knownKey = /* @__PURE__ */ Symbol.for('holdfast.known');

interface Known<T> {
  [knownKey]?: T;
}

/** Creates a promise of a value that is already there. */
export function known<T extends object>(value: T): Promise<T> {
  const promise: Promise<T> & Known<T> = Promise.resolve(value);
  promise[knownKey] = value;
  return promise;
}

/** The value of a known promise; undefined: it has to be awaited. */
export function knownOf<T extends object>(promise: Promise<T>): T | undefined {
  return (promise as Known<T>)[knownKey];
}
