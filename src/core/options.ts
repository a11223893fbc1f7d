/**
 * Options: checked when a policy is built, so that a mistake does not surface only at the first failure.
 *
 * Promise: an unknown key is refused with the nearest known name, a wrong value with a description of what is allowed. The given object is neither
 * changed nor kept.
 */
import { nearestName } from '../structures/edit-distance.js';
import { type Clock, longestWaitMs } from './clock.js';
import { parseDuration } from './duration.js';
import { OptionsError } from './errors.js';
import type { HoldfastEvent } from './events.js';

/** How one option is read: a description of what is allowed, and a function that returns the normalised value, or undefined if the given value is wrong. */
export interface Field<T> {
  readonly allowed: string;
  /** A description of what is allowed that depends on the given value. */
  readonly allowedFor?: ((value: unknown) => string) | undefined;
  parse(value: unknown): T | undefined;
  /** How the error shows the given value, where `show` would reveal a secret to the logs or say too little. */
  readonly shown?: (value: unknown) => string;
  /** Names of this option in other packages. */
  readonly elsewhere?: readonly string[];
  /** The value of an absent option. Without a fallback the option is required. */
  readonly fallback?: { readonly value: T };
}

type Checked<Fields> = { readonly [Key in keyof Fields]: Fields[Key] extends Field<infer T> ? T : never };

/** Reads an options object by its fields, or throws an {@link OptionsError} that says what is wrong. */
export function checkOptions<const Fields extends Readonly<Record<string, Field<unknown>>>>(
  policy: string,
  options: unknown,
  fields: Fields,
): Checked<Fields> {
  const given = options === undefined ? {} : options;
  if (typeof given !== 'object' || given === null || Array.isArray(given) || given instanceof Promise) {
    throw new OptionsError(`${policy}: options must be an object, got ${show(options)}`, {
      policy,
      value: options,
      allowed: 'an object',
    });
  }
  const names = Object.keys(fields);
  for (const key of Object.keys(given)) {
    if (!names.includes(key)) throw unknownOption(policy, key, given, fields);
  }
  const checked: Record<string, unknown> = {};
  for (const name of names) {
    checked[name] = readField(policy, name, (given as Record<string, unknown>)[name], fields[name]!);
  }
  return checked as Checked<Fields>;
}

/** Reads a single argument that is not an options object, such as the duration of `timeout('2s')`. */
export function checkArgument<T>(policy: string, name: string, value: unknown, field: Field<T>): T {
  return readField(policy, name, value, field);
}

/** Refuses a second argument, which would otherwise be ignored. An index is allowed there, as in `['1s', '2s'].map(timeout)`. */
export function refuseSecond(policy: string, second: unknown): void {
  if (second === undefined || typeof second === 'number') return;
  const message = `${policy}: takes one argument, got ${show(second)} as a second one`;
  throw new OptionsError(message, { policy, value: second, allowed: 'one argument' });
}

/** The error for an option that is valid by itself but contradicts the others. */
export function impossibleOption(
  policy: string,
  option: string,
  value: unknown,
  allowed: string,
  given = show(value),
): OptionsError {
  return new OptionsError(`${policy}: option "${option}" must be ${allowed}, got ${given}`, {
    policy,
    option,
    value,
    allowed,
  });
}

function readField<T>(policy: string, name: string, value: unknown, field: Field<T>): T {
  if (value === undefined) {
    if (field.fallback !== undefined) return field.fallback.value;
    throw new OptionsError(`${policy}: option "${name}" is required: ${field.allowed}`, {
      policy,
      option: name,
      value,
      allowed: field.allowed,
    });
  }
  const parsed = field.parse(value);
  if (parsed !== undefined) return parsed;
  throw impossibleOption(policy, name, value, field.allowedFor?.(value) ?? field.allowed, field.shown?.(value));
}

function unknownOption(
  policy: string,
  key: string,
  given: object,
  fields: Readonly<Record<string, Field<unknown>>>,
): OptionsError {
  const names = Object.keys(fields);
  const value = (given as Record<string, unknown>)[key];
  const nearest = names.find((name) => fields[name]!.elsewhere?.includes(key)) ?? nearestName(key, names);
  const allowed = names.map((name) => `"${name}"`).join(', ');
  const shown = show(given);
  // A store or a client was passed in place of options: its fields are not misspelt options.
  const known = shown === 'an object' ? `the options are ${allowed}` : `options are a plain object, got ${shown}`;
  const advice = nearest === undefined ? known : `did you mean "${nearest}"?`;
  return new OptionsError(`${policy}: unknown option "${key}", ${advice}`, { policy, option: key, value, allowed });
}

interface Bounds {
  readonly min?: number;
  readonly max?: number;
}

/** Gives a field a default. */
export function withDefault<T>(field: Field<T>, value: T): Field<T> {
  return { ...field, fallback: { value } };
}

/** An option that may be absent. */
export function optional<T>(field: Field<T>): Field<T | undefined> {
  return { ...(field as Field<T | undefined>), fallback: { value: undefined } };
}

export function integer({ min = 0, max = Number.MAX_SAFE_INTEGER }: Bounds): Field<number> {
  const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
  return {
    allowed: `an integer ${range}`,
    parse: (value) =>
      Number.isSafeInteger(value) && within(value as number, min, max) ? (value as number) : undefined,
  };
}

export function number({ min = 0, max = Number.MAX_VALUE }: Bounds): Field<number> {
  const range = max === Number.MAX_VALUE ? `of at least ${min}` : `from ${min} to ${max}`;
  return {
    allowed: `a number ${range}`,
    parse: (value) => (typeof value === 'number' && within(value, min, max) ? value : undefined),
  };
}

/** A duration, in milliseconds. */
export function duration({ min = 1, max = longestWaitMs }: Bounds): Field<number> {
  const plain = "a duration such as 5000 or '5s'";
  const ranged = `${plain}, from ${min} to ${max} ms`;
  const allowed = min === 1 && max === longestWaitMs ? plain : ranged;
  return {
    allowed,
    // A value such as '25d' or 0 is a duration, so the message has to give the range.
    allowedFor: (value) => (parseDuration(value) === undefined ? allowed : ranged),
    parse(value) {
      const ms = parseDuration(value);
      return ms !== undefined && within(ms, min, max) ? ms : undefined;
    },
  };
}

export function text(): Field<string> {
  return {
    allowed: 'a string of 1 to 200 characters',
    parse: (value) => (typeof value === 'string' && within(value.length, 1, 200) ? value : undefined),
  };
}

export function flag(): Field<boolean> {
  return { allowed: 'true or false', parse: (value) => (typeof value === 'boolean' ? value : undefined) };
}

export function oneOf<const Word extends string>(words: readonly Word[]): Field<Word> {
  return {
    allowed: words.map((word) => `'${word}'`).join(' or '),
    parse: (value) => words.find((word) => word === value),
  };
}

// biome-ignore lint/suspicious/noExplicitAny: the caller names the signature; a function's parameters cannot be checked at run time.
export function func<Signature extends (...args: any[]) => unknown>(): Field<Signature> {
  return {
    allowed: 'a function',
    parse: (value) => (typeof value === 'function' && !isClass(value) ? (value as Signature) : undefined),
  };
}

/**
 * Whether a value is a class. A class cannot be called, and what `Error` returns when called is not a valid answer. Without this check the mistake
 * would surface only at the first call that needs the function.
 */
function isClass(value: { readonly prototype?: unknown }): boolean {
  if (value === Error || value.prototype instanceof Error) return true;
  // Not `String`, which would call a `toString` of the value. A method may be named `class`, but it has no prototype.
  return value.prototype !== undefined && /^class\b/.test(Function.prototype.toString.call(value));
}

/** An object with the given methods. */
export function having<T>(allowed: string, ...methods: readonly (keyof T & string)[]): Field<T> {
  return {
    allowed,
    parse(value) {
      if (typeof value !== 'object' || value === null) return undefined;
      return methods.every((method) => typeof (value as Record<string, unknown>)[method] === 'function')
        ? (value as T)
        : undefined;
    },
  };
}

/** The fields of the options that every policy takes. */
export function commonFields(name: string) {
  return {
    name: withDefault<string>(text(), name),
    on: optional(func<(event: HoldfastEvent) => void>()),
    clock: optional(having<Clock>('a clock such as systemClock', 'now', 'wallNow', 'schedule', 'cancel')),
  };
}

/** Options that every policy takes. */
export interface CommonOptions {
  /** Names the policy in errors and events. Default: the factory's name. */
  readonly name?: string | undefined;
  /** Receives this policy's events. An exception in it is contained and reported once as a warning. */
  readonly on?: ((event: HoldfastEvent) => void) | undefined;
  /** The time source. Default: the pipeline's, which is `systemClock` unless one of its policies names another. */
  readonly clock?: Clock | undefined;
}

/** Options of every policy that refuses calls. */
export interface RefusalOptions {
  /** Captures a stack for each refusal, about 3 microseconds on Node 24. Default `false`. */
  readonly stack?: boolean | undefined;
}

/** What the checked options of policies that refuse calls have in common. */
export interface CheckedRefusalOptions {
  readonly stack: boolean;
  readonly name: string;
  readonly on: CommonOptions['on'];
  readonly clock: Clock | undefined;
}

function within(value: number, min: number, max: number): boolean {
  return value >= min && value <= max;
}

/** A value as an error message shows it: short, and distinguishing `5` from `'5'`. */
export function show(value: unknown): string {
  if (typeof value === 'string') {
    // An address passed in place of a client: its password must not reach a log.
    const text = value.replace(/\/\/[^/]*@/, '//...@');
    return text.length > 60 ? `'${text.slice(0, 57)}...'` : `'${text}'`;
  }
  if (typeof value === 'bigint') return `${value}n`;
  // A client's class passed in place of a client.
  if (typeof value === 'function') return isClass(value) ? `the class ${value.name}` : 'a function';
  if (Array.isArray(value)) return 'an array';
  if (typeof value !== 'object' || value === null) return String(value);
  const { name = '' } = value.constructor ?? {};
  return name === '' || name === 'Object' ? 'an object' : `an object of class ${name}`;
}
