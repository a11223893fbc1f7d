/**
 * Postgres transactions: tells the connection of a user's transaction from what resembles one.
 *
 * Promise: what is not recognised is refused before anything is sent. For the transaction of an ORM the error says what to pass in its place.
 */
import { type Field, show } from '../core/options.js';
import type { PostgresTransaction } from './postgres-drivers.js';

const allowed = 'a client of pg after its BEGIN, or what postgres.js gives to sql.begin';

export const transactionField: Field<PostgresTransaction> = {
  allowed,
  allowedFor(value) {
    const orm = ormOf(value);
    return orm === undefined
      ? allowed
      : `${allowed}; here ${orm.instead} (docs/recipes.md, "One transaction, with your ORM")`;
  },
  shown: (value) => ormOf(value)?.name ?? show(value),
  parse: (value) => (isTransaction(value) ? value : undefined),
};

/** On anything that merely resembles a transaction, a write would be committed at once, whatever became of the transaction. */
function isTransaction(value: unknown): value is PostgresTransaction {
  if (typeof value === 'function') return 'unsafe' in value && 'savepoint' in value;
  const { query, connect, on, totalCount, getTransactionStatus } = membersOf(value);
  // A QueryRunner of TypeORM has the first two as well, but answers a query in its own way.
  if (![query, connect, on].every((method) => typeof method === 'function') || totalCount !== undefined) return false;
  // 'I' is the server's state for idle. Older versions of pg do not report it.
  return typeof getTransactionStatus !== 'function' || getTransactionStatus.call(value) !== 'I';
}

interface Orm {
  readonly name: string;
  /** What to pass in its place. */
  readonly instead: string;
}

function ormOf(value: unknown): Orm | undefined {
  const { startTransaction, queryRunner, $executeRawUnsafe, raw, executeQuery } = membersOf(value);
  if (typeof startTransaction === 'function') {
    return { name: 'a QueryRunner of TypeORM', instead: 'what its connect() answers' };
  }
  if (typeof queryRunner === 'object') {
    return { name: 'an EntityManager of TypeORM', instead: 'what its queryRunner.connect() answers' };
  }
  if (typeof $executeRawUnsafe === 'function') {
    return { name: 'a client of Prisma', instead: 'none, because Prisma hides it' };
  }
  if (typeof raw === 'function') {
    return { name: 'a transaction of Knex', instead: 'one that Knex is given by .connection(client)' };
  }
  if (typeof executeQuery === 'function') {
    return { name: 'a transaction of Kysely', instead: 'one on which you run the compiled query' };
  }
  return undefined;
}

function membersOf(value: unknown): Readonly<Record<string, unknown>> {
  return (value ?? {}) as Readonly<Record<string, unknown>>;
}
