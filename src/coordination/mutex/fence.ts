/**
 * Fences at the resource: reject a write from an owner that has lost the lock.
 *
 * Promise: a write whose fence is less than the greatest that the resource has seen is rejected. The same fence may come again: its owner
 * writes more than once, and no other owner has it.
 * After: Kleppmann, "How to do distributed locking" (2016).
 */
import { StaleFenceError } from '../../core/errors.js';
import { checkArgument, checkOptions, integer, oneOf, text, withDefault } from '../../core/options.js';

/** Options of {@link fenceGate}. */
export interface FenceGateOptions {
  /** How many resources are remembered; the one not checked for longest is forgotten first. From 1; default 10 000. */
  readonly max?: number | undefined;
}

/** What {@link fenceGate} returns. */
export interface FenceGate {
  /** Resources that are remembered. */
  readonly size: number;
  /**
   * Accepts a write, or throws.
   *
   * @throws {@link StaleFenceError} `ERR_STALE_FENCE`, when a greater fence has been accepted for this resource.
   */
  check(resource: string, fence: number): void;
}

const fenceField = /* @__PURE__ */ integer({});

/**
 * Remembers the greatest fence of each resource, in the memory of the process that owns the resource: a socket, a device, a file.
 *
 * If the resource is in a database, check the fence there, in the same statement or transaction: see {@link fencedUpdate}. For a resource that this process has
 * forgotten, after a restart or because `max` was exceeded, any fence is accepted.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { fenceGate, StaleFenceError } from 'holdfast';
 *
 * const gate = fenceGate();
 * gate.check('printer', 7);
 * gate.check('printer', 7); // the same owner again
 * try {
 *   gate.check('printer', 6);
 * } catch (error) {
 *   console.log(error instanceof StaleFenceError); // true
 * }
 * ```
 */
export function fenceGate(options: FenceGateOptions = {}): FenceGate {
  const { max } = checkOptions('fenceGate', options, { max: withDefault(integer({ min: 1 }), 10_000) });
  const newest = new Map<string, number>();
  return {
    get size() {
      return newest.size;
    },
    check(resource, fence) {
      checkArgument('fenceGate', 'resource', resource, text());
      checkArgument('fenceGate', 'fence', fence, fenceField);
      const newestFence = newest.get(resource) ?? 0;
      // Re-inserted, it becomes the last to be forgotten.
      newest.delete(resource);
      newest.set(resource, Math.max(newestFence, fence));
      if (newest.size > max) newest.delete(newest.keys().next().value!);
      if (fence < newestFence) throw new StaleFenceError({ resource, fence, newestFence, stack: true });
    },
  };
}

/** A statement and its values, for any SQL client. */
export interface SqlStatement {
  readonly text: string;
  readonly values: readonly unknown[];
}

/** How a statement names its values: `$1` in Postgres and SQLite, `?` in SQLite and MySQL. */
export type SqlPlaceholders = '$1' | '?';

/** Options of {@link fencedUpdate}. */
export interface FencedUpdateOptions {
  /** Names of the table and of columns: letters, digits, `_` and, between schema and table, `.`. They become part of the SQL: never take them from user input. */
  readonly table: string;
  /** Columns to set, at least 1. */
  readonly set: Readonly<Record<string, unknown>>;
  /** Columns that identify the row, at least 1. */
  readonly where: Readonly<Record<string, unknown>>;
  /** The lock's: `lease.fence`. */
  readonly fence: number;
  /** The column of the fence: `BIGINT NOT NULL DEFAULT 0`. Default `'fence'`. */
  readonly column?: string | undefined;
  /** Default `'$1'`. */
  readonly placeholders?: SqlPlaceholders | undefined;
}

/**
 * Builds an UPDATE that applies only if no greater fence has written the row. When it changes no row, throw a {@link StaleFenceError}.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, for an invalid option or name.
 * @example
 * ```ts
 * import { fencedUpdate } from 'holdfast';
 *
 * const { text, values } = fencedUpdate({ table: 'reports', set: { body: 'ready' }, where: { id: 4 }, fence: 33 });
 * console.log(text); // UPDATE reports SET body = $1, fence = $2 WHERE id = $3 AND fence <= $4
 * console.log(values); // [ 'ready', 33, 4, 33 ]
 * ```
 */
export function fencedUpdate(options: FencedUpdateOptions): SqlStatement {
  const { table, set, where, fence, column, placeholders } = checkOptions('fencedUpdate', options, {
    table: sqlName,
    set: sqlColumns,
    where: sqlColumns,
    fence: fenceField,
    column: withDefault(sqlName, 'fence'),
    placeholders: placeholdersField,
  });
  const values: unknown[] = [];
  const place = (value: unknown) =>
    `${placeholders === '?' ? '?' : `$${values.length + 1}`}${values.push(value) && ''}`;
  const assignments = [...set, [column, fence] as const].map(([name, value]) => `${name} = ${place(value)}`);
  const conditions = where.map(([name, value]) => `${name} = ${place(value)}`);
  const text = `UPDATE ${table} SET ${assignments.join(', ')} WHERE ${conditions.join(' AND ')} AND ${column} <= ${place(fence)}`;
  return { text, values };
}

/** Options of {@link fencedGuard}. */
export interface FencedGuardOptions {
  /** What is guarded: everything that is written under one lock. */
  readonly resource: string;
  /** The lock's: `lease.fence`. */
  readonly fence: number;
  /** The table of guards: `(resource TEXT PRIMARY KEY, fence BIGINT NOT NULL)`. Default `'holdfast_fences'`. */
  readonly table?: string | undefined;
  /** Default `'$1'`. */
  readonly placeholders?: SqlPlaceholders | undefined;
}

/**
 * Builds a guard: the first statement of a transaction that writes several rows. Other transactions with this resource wait until this one
 * ends. When it changes no row, roll back and throw a {@link StaleFenceError}. For Postgres and SQLite.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, for an invalid option or name.
 * @example
 * ```ts
 * import { DatabaseSync } from 'node:sqlite';
 * import { fencedGuard } from 'holdfast';
 *
 * const db = new DatabaseSync(':memory:');
 * db.exec('CREATE TABLE holdfast_fences (resource TEXT PRIMARY KEY, fence BIGINT NOT NULL)');
 * const guard = (fence: number) => {
 *   const { text, values } = fencedGuard({ resource: 'invoices', fence, placeholders: '?' });
 *   return db.prepare(text).run(...(values as [string, number])).changes;
 * };
 * console.log(guard(7), guard(7), guard(6)); // 1 1 0
 * ```
 */
export function fencedGuard(options: FencedGuardOptions): SqlStatement {
  const { resource, fence, table, placeholders } = checkOptions('fencedGuard', options, {
    resource: text(),
    fence: fenceField,
    table: withDefault(sqlName, 'holdfast_fences'),
    placeholders: placeholdersField,
  });
  const [first, second] = placeholders === '?' ? ['?', '?'] : ['$1', '$2'];
  // The column is qualified with its table, because `excluded` has a column of that name too.
  const own = table.slice(table.lastIndexOf('.') + 1);
  return {
    text: `INSERT INTO ${table} (resource, fence) VALUES (${first}, ${second}) ON CONFLICT (resource) DO UPDATE SET fence = excluded.fence WHERE ${own}.fence <= excluded.fence`,
    values: [resource, fence],
  };
}

const namePattern = /^[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?$/;

const sqlName = {
  allowed: 'a name of letters, digits and "_"',
  parse: (value: unknown) => (typeof value === 'string' && namePattern.test(value) ? value : undefined),
};

const sqlColumns = {
  allowed: 'an object with at least one column, each a name of letters, digits and "_"',
  parse(value: unknown) {
    if (typeof value !== 'object' || value === null) return undefined;
    const columns = Object.entries(value);
    return columns.length > 0 && columns.every(([name]) => namePattern.test(name)) ? columns : undefined;
  },
};

const placeholdersField = /* @__PURE__ */ withDefault(/* @__PURE__ */ oneOf(['$1', '?']), '$1');
