/**
 * Outcomes: what a function returned or threw, as bytes.
 *
 * Promise: 0, false, '', null and undefined come back unchanged; an error comes back as an error with the same name, message and code.
 */
import { encodedBytes } from '../../core/bytes.js';
import { messageOf } from '../../core/errors.js';
import type { Outcome } from '../../core/outcome.js';

/** Turns results of functions and phases into bytes and back. It never receives undefined. */
export interface ResultSerializer {
  encode(value: unknown): Uint8Array;
  decode(bytes: Uint8Array): unknown;
}

const undefinedKind = 0;
const valueKind = 1;
const errorKind = 2;

const encoder = /* @__PURE__ */ new TextEncoder();
const decoder = /* @__PURE__ */ new TextDecoder();

export const jsonSerializer: ResultSerializer = {
  encode(value) {
    const text: string | undefined = JSON.stringify(value);
    if (text === undefined) throw new TypeError(`a ${typeof value} has no JSON`);
    return encoder.encode(text);
  },
  decode: (bytes) => JSON.parse(decoder.decode(bytes)),
};

/** @throws What the serializer throws. */
export function encodeValue(serializer: ResultSerializer, value: unknown): Uint8Array {
  return value === undefined ? Uint8Array.of(undefinedKind) : behind(valueKind, encodedBytes(serializer.encode(value)));
}

export function encodeError(error: unknown): Uint8Array {
  const { name, code } = (error ?? {}) as { readonly name?: unknown; readonly code?: unknown };
  const told = {
    message: messageOf(error),
    ...(typeof name === 'string' ? { name } : {}),
    ...(typeof code === 'string' || typeof code === 'number' ? { code } : {}),
  };
  return behind(errorKind, encoder.encode(JSON.stringify(told)));
}

/** @throws What the serializer throws. */
export function decodeOutcome(serializer: ResultSerializer, bytes: Uint8Array): Outcome {
  const kind = bytes[0];
  if (kind === undefinedKind) return { ok: true, value: undefined };
  if (kind === valueKind) return { ok: true, value: serializer.decode(bytes.subarray(1)) };
  if (kind !== errorKind)
    throw new TypeError('it was not stored by run: another adapter uses the same scope and operation');
  const { message, ...more } = JSON.parse(decoder.decode(bytes.subarray(1)));
  return { ok: false, error: Object.assign(new Error(message), more) };
}

export function decodeValue(serializer: ResultSerializer, bytes: Uint8Array): unknown {
  const outcome = decodeOutcome(serializer, bytes);
  return outcome.ok ? outcome.value : undefined;
}

function behind(kind: number, bytes: Uint8Array): Uint8Array {
  const whole = new Uint8Array(bytes.length + 1);
  whole[0] = kind;
  whole.set(bytes, 1);
  return whole;
}
