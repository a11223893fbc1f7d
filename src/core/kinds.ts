/**
 * Kinds: what a value from outside is.
 *
 * Promise: the answer is also right for a value of another realm, for which `instanceof` says no: test runners have several realms.
 */

export function isBytes(value: unknown): value is Uint8Array {
  return ArrayBuffer.isView(value) && (value as Uint8Array)[Symbol.toStringTag] === 'Uint8Array';
}

export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function';
}

/** Whether a text can be encoded as UTF-8. A lone surrogate cannot: two different texts would become the same bytes. */
export function isWellFormed(text: string): boolean {
  // Every engine that this package runs on has it, but the ES2023 library does not declare it.
  return (text as string & { isWellFormed(): boolean }).isWellFormed();
}
