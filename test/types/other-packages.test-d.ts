/** Objects of other packages are accepted as the types that their users install declare them. Their declarations are repeated here as far as they matter. */

import type { Options } from 'p-retry';
import { describe, expectTypeOf, it } from 'vitest';
import { fromOpossum, fromOpossumOptions } from '../../src/integrations/opossum.js';
import { fromPRetry } from '../../src/integrations/p-retry.js';
import { sqliteStore } from '../../src/stores/sqlite.js';

/** As in `@types/better-sqlite3` 9.6. */
declare namespace BetterSqlite3 {
  interface Statement<Parameters extends unknown[], Result> {
    run(...values: Parameters): { changes: number; lastInsertRowid: number | bigint };
    all(...values: Parameters): Result[];
  }
  interface Database {
    inTransaction: boolean;
    prepare<Parameters extends unknown[] | object = unknown[], Result = unknown>(
      source: string,
    ): Parameters extends unknown[] ? Statement<Parameters, Result> : Statement<[Parameters], Result>;
    exec(source: string): this;
  }
}

/** As in `@types/opossum` 8.1. */
interface OpossumOfItsTypes<Arguments extends unknown[], Result> {
  readonly name: string;
  readonly opened: boolean;
  readonly halfOpen: boolean;
  // biome-ignore lint/suspicious/noExplicitAny: it is declared so.
  call(context: any, ...args: Arguments): Promise<Result>;
  fire(...args: Arguments): Promise<Result>;
}

describe('sqliteStore', () => {
  it('takes a database of better-sqlite3', () => {
    expectTypeOf(sqliteStore).toBeCallableWith({} as BetterSqlite3.Database);
  });
});

describe('fromOpossum', () => {
  it('takes a breaker of opossum', () => {
    expectTypeOf(fromOpossum).toBeCallableWith({} as OpossumOfItsTypes<[id: number], string>);
  });
});

describe('fromOpossumOptions', () => {
  it('takes a filter that names the error it looks at', () => {
    expectTypeOf(fromOpossumOptions).toBeCallableWith({ errorFilter: (error: TypeError) => error.message === 'no' });
  });

  it('refuses a filter that looks at the arguments', () => {
    // @ts-expect-error - it receives the error alone.
    fromOpossumOptions({ errorFilter: (_: Error, id: number) => id === 4 });
  });
});

describe('fromPRetry', () => {
  it('takes all of its options but shouldRetry as p-retry declares them', () => {
    expectTypeOf(fromPRetry).toBeCallableWith({} as Omit<Options, 'shouldRetry'>);
    expectTypeOf(fromPRetry).toBeCallableWith({ shouldRetry: ({ error }) => error.name === 'Busy' });
  });

  it('refuses a shouldRetry that answers later or looks at counters', () => {
    // @ts-expect-error - it must answer at once.
    fromPRetry({ shouldRetry: async () => true });
    // @ts-expect-error - it receives the error alone.
    fromPRetry({ shouldRetry: ({ retriesLeft }) => retriesLeft > 1 });
  });
});
