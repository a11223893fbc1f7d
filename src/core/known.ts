/**
 * Known: promises that are kept when they are made, as of a store in memory, and say so to who looks before waiting.
 *
 * Promise: what is found is what waiting would give. A promise that was made from such a one, as by whoever wraps the store, is no such
 * one, so nothing that stands in between is passed by.
 */

// A property that any copy of this package finds.
const knownKey = /* @__PURE__ */ Symbol.for('holdfast.known');

interface Known<T> {
  [knownKey]?: T;
}

/** A promise of a value that is there already. */
export function known<T extends object>(value: T): Promise<T> {
  const promise: Promise<T> & Known<T> = Promise.resolve(value);
  promise[knownKey] = value;
  return promise;
}

/** What a promise is kept with, if it says so; undefined: it has to be waited for. */
export function knownOf<T extends object>(promise: Promise<T>): T | undefined {
  return (promise as Known<T>)[knownKey];
}
