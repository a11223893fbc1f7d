/**
 * Message: copies the values that travel between nodes.
 *
 * Promise: sender and receiver share no memory. Plain data is copied here, which is several times cheaper than `structuredClone`; other values go through
 * that.
 */
import { messageOf } from '../core/errors.js';
import type { TraceHash } from './hash.js';

const deepest = 100;

/** A deep copy. With a hash, everything in the value is added to it. */
export function copyMessage<T>(value: T, hash?: TraceHash): T {
  return copy(value, hash, 0) as T;
}

/** The value as a trace line shows it. */
export function preview(value: unknown): string {
  if (value === undefined) return '';
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch {
    // A bigint, for example.
  }
  text ??= messageOf(value);
  return text.length > 100 ? `${text.slice(0, 97)}...` : text;
}

function copy(value: unknown, hash: TraceHash | undefined, depth: number): unknown {
  switch (typeof value) {
    case 'string':
      hash?.text(value);
      return value;
    case 'number':
      hash?.number(value);
      return value;
    case 'bigint':
      hash?.text(value.toString());
      return value;
    case 'boolean':
    case 'undefined':
      hash?.word(value === undefined ? 0x75 : value ? 0x74 : 0x66);
      return value;
    case 'object':
      if (depth > deepest) throw new TypeError(`a message nests at most ${deepest} deep and holds no cycle`);
      return value === null ? copyNull(hash) : copyObject(value, hash, depth + 1);
    default:
      throw new TypeError(`a ${typeof value} cannot be sent in a message`);
  }
}

function copyNull(hash: TraceHash | undefined): null {
  hash?.word(0x6e);
  return null;
}

function copyObject(value: object, hash: TraceHash | undefined, depth: number): unknown {
  if (Array.isArray(value)) {
    hash?.word(value.length);
    return value.map((item) => copy(item, hash, depth));
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype === Object.prototype || prototype === null) {
    const fields: Record<string, unknown> = {};
    for (const key of Object.keys(value)) {
      hash?.text(key);
      const field = copy((value as Record<string, unknown>)[key], hash, depth);
      // Assigning to this key would set the prototype.
      if (key === '__proto__')
        Object.defineProperty(fields, key, { value: field, enumerable: true, configurable: true, writable: true });
      else fields[key] = field;
    }
    return fields;
  }
  if (value instanceof Uint8Array) {
    hash?.word(value.length);
    for (const byte of value) hash?.word(byte);
    return new Uint8Array(value);
  }
  if (value instanceof Date) {
    hash?.number(value.getTime());
    return new Date(value.getTime());
  }
  if (value instanceof Map) return new Map(copyObject([...value], hash, depth) as [unknown, unknown][]);
  if (value instanceof Set) return new Set(copyObject([...value], hash, depth) as unknown[]);
  hash?.text(Object.prototype.toString.call(value));
  const clone: object = structuredClone(value);
  if (hash !== undefined) addContents(clone, hash, depth);
  return clone;
}

/** Adds the contents of a clone to the hash, so that different messages differ there too: in a clone, a class instance has become a plain object. */
function addContents(clone: object, hash: TraceHash, depth: number): void {
  if (ArrayBuffer.isView(clone))
    copyObject(new Uint8Array(clone.buffer, clone.byteOffset, clone.byteLength), hash, depth);
  else if (clone instanceof ArrayBuffer) copyObject(new Uint8Array(clone), hash, depth);
  else if (Object.getPrototypeOf(clone) === Object.prototype) copyObject(clone, hash, depth);
  else hash.text(String(clone));
}
