/**
 * Serializer: turns a value into bytes for the store, and back into an identical value.
 *
 * Promise: a built-in serializer refuses a value that would not come back identical when it is first set, with the path of the
 * part at fault. So no reader ever meets a `Date` that came back as a string, or an object without its methods.
 */
import { encodedBytes } from '../../core/bytes.js';
import type { Field } from '../../core/options.js';

/** Turns values into bytes and back. `decode(encode(value))` must equal the value. */
export interface Serializer<V> {
  /** Returns the bytes to store, at once. What it throws rejects the `set`, or the load. */
  encode(value: V): Uint8Array;
  /** Restores the value. If it throws, the entry counts as missing. */
  decode(bytes: Uint8Array): V;
}

/** The built-in serializers. */
export type SerializerName = 'json' | 'structured-clone' | 'bytes';

/** A serializer, and the mark that identifies its bytes. */
export interface MarkedSerializer {
  readonly mark: number;
  /** Throws a `TypeError` for a value that would not come back identical. */
  encode(value: unknown): Uint8Array;
  decode(bytes: Uint8Array): unknown;
}

const deepest = 500;

const json: MarkedSerializer = {
  mark: 1,
  encode(value) {
    refuseIf(jsonFault(value, '', 0), "'json'", "use serializer: 'structured-clone', or one of your own");
    return new TextEncoder().encode(JSON.stringify(value));
  },
  decode: (bytes) => JSON.parse(new TextDecoder().decode(bytes)),
};

const structuredCloner: MarkedSerializer = {
  mark: 2,
  encode(value) {
    refuseIf(cloneFault(value, '', new Set()), "'structured-clone'", 'use a serializer of your own');
    return new Uint8Array(v8().serialize(value));
  },
  decode: (bytes) => v8().deserialize(bytes),
};

const bytesAsTheyAre: MarkedSerializer = {
  mark: 3,
  encode(value) {
    const isPlain = value instanceof Uint8Array && Object.getPrototypeOf(value) === Uint8Array.prototype;
    refuseIf(isPlain ? undefined : ['', kindOf(value)], "'bytes'", 'give a Uint8Array: new Uint8Array(buffer)');
    return value as Uint8Array;
  },
  decode: (bytes) => bytes,
};

const builtIn: Readonly<Record<SerializerName, MarkedSerializer>> = {
  json,
  'structured-clone': structuredCloner,
  bytes: bytesAsTheyAre,
};

export const serializerField: Field<MarkedSerializer> = {
  allowed: "'json', 'structured-clone', 'bytes', or an object with encode and decode",
  parse(value) {
    if (typeof value === 'string') return Object.hasOwn(builtIn, value) ? builtIn[value as SerializerName] : undefined;
    const { encode, decode } = (value ?? {}) as Partial<Serializer<unknown>>;
    if (typeof encode !== 'function' || typeof decode !== 'function') return undefined;
    const own = value as Serializer<unknown>;
    return { mark: 0, encode: (one) => encodedBytes(own.encode(one)), decode: (bytes) => own.decode(bytes) };
  },
  fallback: { value: json },
};

/** The path of the part at fault, and what it is. */
type Fault = readonly [path: string, what: string] | undefined;

function refuseIf(fault: Fault, serializer: string, advice: string): void {
  if (fault === undefined) return;
  const [path, what] = fault;
  const place = path === '' ? 'the value' : `the value at ${path}`;
  throw new TypeError(`${place} is ${what}, which serializer ${serializer} would not bring back as it is; ${advice}`);
}

/** The first part that JSON would change, or undefined. */
function jsonFault(value: unknown, path: string, depth: number): Fault {
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return undefined;
    case 'number':
      return Number.isFinite(value) && !Object.is(value, -0)
        ? undefined
        : [path, Object.is(value, -0) ? '-0' : `${value}`];
    case 'object':
      break;
    default:
      return [path, kindOf(value)];
  }
  if (value === null) return undefined;
  if (depth > deepest) return [path, `nested more than ${deepest} deep, or a cycle`];
  if (Array.isArray(value)) {
    if (isOdd(value, Array.prototype, value.length + 1)) return [path, 'an array with holes or properties of its own'];
    for (let index = 0; index < value.length; index++) {
      const fault = jsonFault(value[index], `${path}[${index}]`, depth + 1);
      if (fault !== undefined) return fault;
    }
    return undefined;
  }
  const names = Object.keys(value);
  if (isOdd(value, Object.prototype, names.length)) return [path, kindOf(value)];
  for (const name of names) {
    const fault = jsonFault((value as Record<string, unknown>)[name], `${path}.${name}`, depth + 1);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

/** Classes whose objects a structured clone restores completely. */
const cloneable: readonly object[] = /* @__PURE__ */ [
  ...[Boolean, Number, String, Date, ArrayBuffer, DataView, BigInt64Array, BigUint64Array, Uint8Array, Int8Array],
  ...[Uint8ClampedArray, Uint16Array, Int16Array, Uint32Array, Int32Array, Float32Array, Float64Array],
].map(({ prototype }) => prototype);

function cloneFault(value: unknown, path: string, seen: Set<object>): Fault {
  if (typeof value === 'function' || typeof value === 'symbol') return [path, kindOf(value)];
  if (typeof value !== 'object' || value === null || seen.has(value)) return undefined;
  if (path.length > deepest * 20) return [path.slice(0, 60), 'nested too deep'];
  seen.add(value);
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype === Map.prototype || prototype === Set.prototype) {
    if (Reflect.ownKeys(value).length > 0) return [path, `${kindOf(value)} with properties of its own`];
    for (const part of value as Iterable<unknown>) {
      const fault = cloneFault(part, `${path}<${prototype === Map.prototype ? 'entry' : 'member'}>`, seen);
      if (fault !== undefined) return fault;
    }
    return undefined;
  }
  if (prototype === RegExp.prototype) return (value as RegExp).lastIndex === 0 ? undefined : [path, 'a RegExp in use'];
  if (ArrayBuffer.isView(value) && isBuffer(value)) return undefined;
  if (cloneable.includes(prototype as object)) return undefined;
  const isArray = Array.isArray(value);
  const names = Object.keys(value);
  if (isOdd(value, isArray ? Array.prototype : Object.prototype, names.length + (isArray ? 1 : 0))) {
    return [path, kindOf(value)];
  }
  for (const name of names) {
    const part = (value as Record<string, unknown>)[name];
    const fault = cloneFault(part, isArray ? `${path}[${name}]` : `${path}.${name}`, seen);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

/** An object of another class, or with symbols, hidden properties or holes. */
function isOdd(value: object, prototype: object, ownKeys: number): boolean {
  return Object.getPrototypeOf(value) !== prototype || Reflect.ownKeys(value).length !== ownKeys;
}

function isBuffer(value: object): boolean {
  const { Buffer } = globalThis as { Buffer?: { prototype: object } };
  return Buffer !== undefined && Object.getPrototypeOf(value) === Buffer.prototype;
}

function kindOf(value: unknown): string {
  if (value === undefined || value === null) return `${value}`;
  if (typeof value !== 'object') return `a ${typeof value}`;
  const prototype = Object.getPrototypeOf(value) as { constructor?: { name?: unknown } } | null;
  if (prototype === null) return 'an object without a prototype';
  if (prototype === Object.prototype) return 'an object with symbols or hidden properties';
  return `an object of class ${String(prototype.constructor?.name ?? '?')}`;
}

function v8(): Pick<typeof import('node:v8'), 'serialize' | 'deserialize'> {
  const found = globalThis.process?.getBuiltinModule?.('node:v8');
  if (found === undefined) throw new TypeError("serializer 'structured-clone' needs node:v8, which this runtime lacks");
  return found;
}
