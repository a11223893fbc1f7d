/**
 * Postgres schema: one table, one sequence and one function for each verb, as SQL that a team can review and run by itself.
 *
 * A verb is one call of one function, so it takes one round trip, inside or outside a transaction, and works behind a pooler: it leaves no state in the
 * session. A version is assigned while the row of its key is locked, as the next value of the sequence or one more than the last version. So versions grow
 * per key in the order in which the writes were done. A removed key keeps its row, without a value, until its time is over, so that there is a row to lock. A
 * write waits for a row or a table that another transaction has locked no longer than its store does: otherwise the server would go on with verbs that clients
 * have given up, and each would occupy a connection. The function names contain the version of the schema, so an older program keeps working while a newer
 * one is deployed.
 * After: PostgreSQL 18 documentation, 13.2 "Transaction Isolation", 13.3 "Explicit Locking", 9.17 "Sequence Manipulation Functions".
 */
import { checkArgument } from '../core/options.js';

/** The version of what {@link postgresMigrations} makes now. */
const schemaVersion = 1;

/**
 * How often a row may be neither found nor inserted because others are quicker. If something else keeps it out, such as a trigger, the server would try for
 * ever, even after the client is gone.
 */
const mostMisses = 1000;

/** One step of the schema. Each may be run more than once, and leaves the steps before it in use. */
export interface PostgresMigration {
  readonly version: number;
  readonly sql: string;
}

/** The name of a table. It becomes part of the SQL as it is. */
export const tableField = {
  allowed: 'a name of 1 to 40 lower-case letters, digits and "_", with that of a schema before a dot if need be',
  parse: (value: unknown) =>
    typeof value === 'string' && /^(?:[a-z_][a-z0-9_]{0,39}\.)?[a-z_][a-z0-9_]{0,39}$/.test(value) ? value : undefined,
};

/** The names of the functions of a table. */
export function functionsOf(table: string) {
  const name = (verb: string) => `${table}_${verb}_v${schemaVersion}`;
  return {
    read: name('read'),
    readMany: name('read_many'),
    write: name('write'),
    remove: name('remove'),
    consume: name('consume'),
    sweep: name('sweep'),
  };
}

/**
 * The SQL of the schema, step by step, for a table of this name.
 *
 * Run it with your own tool, or let `store.migrate()` do it. The role that uses the store needs `SELECT`, `INSERT`, `UPDATE` and `DELETE` on the table, `USAGE`
 * on the sequence `<table>_versions`, and `EXECUTE` on the functions where that is revoked from all; the role that migrates must own them. Triggers, rules
 * and row-level security must let each row through.
 *
 * @param table - A name as for the option `table` of `postgresStore`, default `'holdfast'`.
 * @throws {@link OptionsError} `ERR_OPTIONS`, when it is no such name.
 * @example
 * ```ts
 * import { postgresMigrations } from 'holdfast/postgres';
 *
 * for (const { version, sql } of postgresMigrations('holdfast')) console.log(version, sql.includes('CREATE TABLE')); // 1 true
 * ```
 */
export function postgresMigrations(table = 'holdfast'): readonly PostgresMigration[] {
  checkArgument('postgresMigrations', 'table', table, tableField);
  const { read, readMany, write, remove, consume, sweep } = functionsOf(table);
  const sql = `
CREATE SEQUENCE IF NOT EXISTS ${table}_versions;

-- No index but that of keys: a row that is written again stays in its page, and needs no new place in any index. One of blocks (BRIN) on the end of
-- entries would cost each write, and says nothing any more once each block has had a row whose time was over.
CREATE TABLE IF NOT EXISTS ${table} (
  key bytea PRIMARY KEY,
  version bigint NOT NULL,
  -- Without a value it has been removed, and is kept for its version.
  value bytea,
  written_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL
) WITH (fillfactor = 70);

-- Stable, so that it becomes part of the statement that calls it, and is planned with it.
CREATE OR REPLACE FUNCTION ${read}(wanted bytea)
RETURNS TABLE (held_version bigint, held_value bytea, age_ms float8, left_ms float8)
LANGUAGE sql STABLE AS $$
  SELECT version, value,
    date_part('epoch', clock.now - written_at) * 1000, date_part('epoch', expires_at - clock.now) * 1000
  FROM ${table}, LATERAL (SELECT clock_timestamp() AS now) AS clock
  WHERE key = wanted AND value IS NOT NULL AND expires_at > clock.now
$$;

CREATE OR REPLACE FUNCTION ${readMany}(wanted text[])
RETURNS TABLE (held_key bytea, held_version bigint, held_value bytea, age_ms float8, left_ms float8)
LANGUAGE sql VOLATILE AS $$
  SELECT key, version, value,
    date_part('epoch', clock.now - written_at) * 1000, date_part('epoch', expires_at - clock.now) * 1000
  FROM ${table}, LATERAL (SELECT clock_timestamp() AS now) AS clock
  WHERE key = ANY (ARRAY (SELECT decode(base64, 'base64') FROM unnest(wanted) AS base64)) AND value IS NOT NULL AND expires_at > clock.now
$$;

-- if_version: NULL for any, 0 for none. announce: the channel that is told, or NULL. lock_ms: how long to wait for the row; that ends with
-- the transaction, and is set back before where it goes on. When a verb fails, so has its transaction. Answers the new version; or
-- of what is in the way version, age and time left in milliseconds, and value; or nothing.
CREATE OR REPLACE FUNCTION ${write}(
  wanted bytea, new_value bytea, ttl_ms float8, if_version float8, announce text, lock_ms integer, goes_on boolean
)
RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  answer text;
  misses integer;
  lock_before text := CASE WHEN goes_on THEN current_setting('lock_timeout') END;
  -- Before anything of the table is looked at, its type too: who rewrites a table keeps all of it locked.
  ignored text := set_config('lock_timeout', lock_ms::text, true);
BEGIN
  LOOP
    -- A row that somebody else has changed meanwhile is looked at again once it is locked, and the version drawn again. What a
    -- condition refuses needs no lock of a row.
    UPDATE ${table} AS entry
      SET version = greatest(nextval('${table}_versions'), entry.version + 1), value = new_value,
        written_at = clock_timestamp(), expires_at = clock_timestamp() + ttl_ms * interval '1 millisecond'
      WHERE entry.key = wanted AND (if_version IS NULL
        OR if_version = CASE WHEN entry.value IS NOT NULL AND entry.expires_at > clock_timestamp() THEN entry.version ELSE 0 END)
      RETURNING entry.version INTO answer;
    IF FOUND THEN
      IF announce IS NOT NULL THEN PERFORM pg_notify(announce, encode(wanted, 'base64')); END IF;
      EXIT;
    END IF;
    -- Variables of a block cost only where it is entered.
    DECLARE
      held record;
      now timestamptz;
      is_live boolean;
    BEGIN
      SELECT * INTO held FROM ${table} WHERE key = wanted;
      now := clock_timestamp();
      is_live := FOUND AND held.value IS NOT NULL AND held.expires_at > now;
      IF if_version <> (CASE WHEN is_live THEN held.version ELSE 0 END) THEN
        answer := CASE WHEN is_live THEN concat_ws(',', held.version, date_part('epoch', now - held.written_at) * 1000,
          date_part('epoch', held.expires_at - now) * 1000, encode(held.value, 'base64')) ELSE '' END;
        EXIT;
      END IF;
      -- A place to lock: were its version drawn before, others could write, remove and sweep the key in between. When somebody
      -- else is quicker, or the row has changed since it was looked for, there is a row to lock now.
      INSERT INTO ${table} (key, version, value, written_at, expires_at)
        VALUES (wanted, 0, NULL, clock_timestamp(), clock_timestamp())
        ON CONFLICT (key) DO NOTHING;
      IF NOT FOUND THEN
        misses := coalesce(misses, 0) + 1;
        IF misses > ${mostMisses} THEN RAISE 'the row is neither there nor to be made'; END IF;
      END IF;
    END;
  END LOOP;
  IF goes_on THEN ignored := set_config('lock_timeout', lock_before, true); END IF;
  RETURN answer;
END $$;

CREATE OR REPLACE FUNCTION ${remove}(wanted bytea, if_version float8, announce text, lock_ms integer, goes_on boolean)
RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  is_removed boolean;
  lock_before text := CASE WHEN goes_on THEN current_setting('lock_timeout') END;
  ignored text := set_config('lock_timeout', lock_ms::text, true);
BEGIN
  UPDATE ${table} AS entry SET value = NULL, version = greatest(nextval('${table}_versions'), entry.version + 1)
    WHERE entry.key = wanted AND entry.value IS NOT NULL AND entry.expires_at > clock_timestamp()
      AND (if_version IS NULL OR entry.version = if_version);
  is_removed := FOUND;
  IF is_removed AND announce IS NOT NULL THEN PERFORM pg_notify(announce, encode(wanted, 'base64')); END IF;
  IF goes_on THEN ignored := set_config('lock_timeout', lock_before, true); END IF;
  RETURN is_removed;
END $$;

-- A limit is a row of its own whose value is when all that was granted will be worked off, in milliseconds since a day in 2023, so that they have
-- fractions; then its time is over, too. Others can only add to what is seen without a lock, so what is refused needs none. If the clock was
-- put back since, what was owed then is owed now.
CREATE OR REPLACE FUNCTION ${consume}(
  wanted bytea, interval_ms float8, burst float8, cost float8, lock_ms integer, OUT granted boolean, OUT debt_ms float8
)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  held record;
  now timestamptz;
  now_ms float8;
  owed_ms float8;
  after_ms float8;
  is_put_back boolean;
  misses integer := 0;
  ignored text := set_config('lock_timeout', lock_ms::text, true);
BEGIN
  LOOP
    IF misses > 0 THEN
      SELECT * INTO held FROM ${table} WHERE key = wanted FOR UPDATE;
    ELSE
      SELECT * INTO held FROM ${table} WHERE key = wanted;
    END IF;
    now := clock_timestamp();
    now_ms := extract(epoch FROM now - timestamptz '2023-11-14 22:13:20+00')::float8 * 1000;
    owed_ms := greatest(coalesce(convert_from(held.value, 'UTF8')::float8 - now_ms, 0), 0);
    is_put_back := coalesce(held.written_at > now, false);
    IF is_put_back THEN owed_ms := greatest(owed_ms - extract(epoch FROM held.written_at - now)::float8 * 1000, 0); END IF;
    debt_ms := least(owed_ms, burst * interval_ms);
    after_ms := debt_ms + cost * interval_ms;
    granted := after_ms - burst * interval_ms <= 0.000001;
    EXIT WHEN (NOT granted OR after_ms <= debt_ms) AND NOT is_put_back;
    IF granted THEN owed_ms := after_ms; END IF;
    IF held.key IS NULL THEN
      INSERT INTO ${table} (key, version, value, written_at, expires_at)
        VALUES (wanted, 0, convert_to((now_ms + owed_ms)::text, 'UTF8'), now, now + owed_ms * interval '1 millisecond')
        ON CONFLICT (key) DO NOTHING;
      EXIT WHEN FOUND;
    ELSIF misses > 0 THEN
      UPDATE ${table}
        SET value = convert_to((now_ms + owed_ms)::text, 'UTF8'), written_at = now, expires_at = now + owed_ms * interval '1 millisecond'
        WHERE key = wanted;
      EXIT WHEN FOUND;
    END IF;
    misses := misses + 1;
    IF misses > ${mostMisses} THEN RAISE 'the row is neither there nor to be made'; END IF;
  END LOOP;
END $$;

-- Deletes rows whose time is over, at most so many, and none that somebody is at.
CREATE OR REPLACE FUNCTION ${sweep}(most integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  swept integer;
BEGIN
  DELETE FROM ${table} WHERE key IN (
    SELECT key FROM ${table} WHERE expires_at < now() LIMIT most FOR UPDATE SKIP LOCKED
  );
  GET DIAGNOSTICS swept = ROW_COUNT;
  RETURN swept;
END $$;`;
  return [{ version: schemaVersion, sql }];
}
