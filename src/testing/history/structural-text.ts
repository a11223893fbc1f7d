/**
 * Structural text: one text per value, the same for two values exactly when they are structurally equal.
 *
 * Promise: unlike JSON it keeps apart `undefined`, `null`, `NaN`, `-0`, `1` and `1n`, and it ignores the order of an
 * object's properties. What it cannot read faithfully (maps, class instances, functions, cycles) has no text at all.
 */
import { messageOf } from '../../core/errors.js';

/** The text of a value, or undefined where two different values could get the same text. */
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

/** A text for people: structural where there is one, else whatever the value says of itself. */
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
