/** What is refused in place of a transaction, without a server: objects with the shapes of four ORMs. */
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { idempotency } from '../../src/index.js';
import { postgresStore, transactionLock } from '../../src/stores/postgres.js';

const store = postgresStore(new pg.Pool());
const recipe = 'docs/recipes.md, "One transaction, with your ORM"';

/** A name that is not there is answered as Prisma's client does, by a proxy without own properties. */
const prisma = (asked: unknown[]) =>
  new Proxy(
    {},
    {
      get: (_, name) =>
        ['$executeRawUnsafe', '$queryRawUnsafe', '$executeRaw'].includes(String(name))
          ? (...given: unknown[]) => asked.push(given)
          : undefined,
      has: () => false,
    },
  );

const shapes: readonly (readonly [name: string, advice: string, make: (asked: unknown[]) => object])[] = [
  [
    'a QueryRunner of TypeORM',
    'what its connect() answers',
    (asked) => {
      class PostgresQueryRunner {
        readonly isTransactionActive = true;
        async connect() {}
        async startTransaction() {}
        async query(...given: unknown[]) {
          asked.push(given);
          // The rows themselves, not an object with rows.
          return [];
        }
      }
      return new PostgresQueryRunner();
    },
  ],
  [
    'an EntityManager of TypeORM',
    'what its queryRunner.connect() answers',
    (asked) => ({ queryRunner: {}, query: async (...given: unknown[]) => asked.push(given) }),
  ],
  ['a client of Prisma', 'none, because Prisma hides it', prisma],
  [
    'a transaction of Knex',
    'one that Knex is given by .connection(client)',
    (asked) => Object.assign(() => {}, { raw: (...given: unknown[]) => asked.push(given), savepoint() {}, on() {} }),
  ],
  [
    'a transaction of Kysely',
    'one on which you run the compiled query',
    (asked) => ({ isTransaction: true, executeQuery: async (...given: unknown[]) => asked.push(given) }),
  ],
];

describe('a transaction', () => {
  it.each(shapes)('is not %s, and the error says what to pass: %s', async (name, advice, make) => {
    const asked: unknown[] = [];
    const wrong = make(asked);
    let effects = 0;
    const once = idempotency({ store });
    const refused = {
      code: 'ERR_OPTIONS',
      message: expect.stringMatching(/"transaction" must be a client of pg after its BEGIN, or /),
    };
    const message = `; here ${advice} (${recipe}), got ${name}`;
    for (const attempt of [
      async () => store.native.within(wrong as never),
      () => transactionLock(wrong as never, 'key'),
      () => once.transaction(wrong, 'key', () => effects++, { scope: 'all' }),
    ]) {
      await expect(attempt()).rejects.toMatchObject(refused);
      await expect(attempt()).rejects.toThrow(message);
    }
    expect([asked, effects]).toEqual([[], 0]);
  });

  it('is not what has the methods of a client, but no events', async () => {
    const dataSource = { connect() {}, query: async () => [] };
    const message = 'a client of pg after its BEGIN, or what postgres.js gives to sql.begin, got an object';
    expect(() => store.native.within(dataSource as never)).toThrow(message);
  });

  it('is a client of pg, or what postgres.js gives to sql.begin', () => {
    const client = { query: async () => ({ rows: [] }), connect() {}, on() {}, off() {} };
    const begun = Object.assign(() => {}, { unsafe() {}, savepoint() {} });
    for (const right of [client, new pg.Client(), begun]) {
      expect(store.native.within(right as never)).toHaveProperty('write');
    }
  });
});
