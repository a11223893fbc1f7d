/**
 * Structural text: one text per value; two values have the same text exactly if they are structurally equal.
 *
 * Promise: unlike JSON, it distinguishes `undefined`, `null`, `NaN`, `-0`, `1` and `1n`, and ignores the order of an object's properties. A value that it
 * cannot represent faithfully (maps, class instances, functions, cycles) has no text.
 */
import { messageOf } from '../../core/errors.js';

/** The text of a value, or undefined if two different values could get the same text. */
export function structuralText(value: unknown, enclosing: readonly object[] = []): string | undefined {
  if (typeof value === 'string') return JSON.stringify(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'number') return Object.is(value, -0) ? '-0' : String(value);
  if (value === null || value === undefined || typeof value === 'boolean') return String(value);
  if (typeof value !== 'object' || enclosing.includes(value)) return undefined;
  if (value instanceof Date) return `Date(${value.getTime()})`;
  if (value instanceof Uint8Array) return `bytes(${Array.from(value, hexOf).join('')})`;
  const within = [...enclosing, value];
  if (Array.isArray(value))
    return listText(
      '[',
      Array.from(value, (item) => structuralText(item, within)),
      ']',
    );
  if (!isPlain(value)) return undefined;
  const members = Object.keys(value)
    .sort()
    .map((name) => {
      const text = structuralText((value as Record<string, unknown>)[name], within);
      return text === undefined ? undefined : `${JSON.stringify(name)}:${text}`;
    });
  return listText('{', members, '}');
}

/** A text for people: structural if there is one, else the value's own `toString`. */
export function readableText(value: unknown): string {
  return structuralText(value) ?? messageOf(value);
}

function listText(open: string, items: readonly (string | undefined)[], close: string): string | undefined {
  return items.includes(undefined) ? undefined : `${open}${items.join(',')}${close}`;
}

function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return (prototype === null || prototype === Object.prototype) && Object.getOwnPropertySymbols(value).length === 0;
}

function hexOf(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}
