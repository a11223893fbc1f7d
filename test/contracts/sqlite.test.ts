/** The laws of a store against SQLite: several connections to one file, with every library that is installed here. */
import { mutexConformance, storeConformance } from 'holdfast/testing';
import { afterAll, describe, it } from 'vitest';
import { sqliteStore } from '../../src/stores/sqlite.js';
import { drivers, type OpenDatabase, temporaryDatabase } from '../stores/sqlite-files.js';

describe.each(drivers)('sqliteStore on $title keeps', ({ open }) => {
  const file = temporaryDatabase();
  const databases: OpenDatabase[] = [];
  const closeAll = async () => {
    for (const db of databases.splice(0)) db.close();
  };
  const connect = () => {
    const db = open(file.path);
    db.exec('PRAGMA synchronous = OFF');
    databases.push(db);
    return db;
  };
  afterAll(async () => {
    await closeAll();
    file[Symbol.dispose]();
  });

  const cases = storeConformance({
    entries: 'shared',
    make: ({ prefix, maxValueBytes }) => sqliteStore(connect(), { prefix, maxValueBytes }),
    restart: closeAll,
    histories: 30,
  });
  it.each(cases)('$name', ({ run }) => run());

  const lockCases = mutexConformance({
    make: ({ prefix }) => sqliteStore(connect(), { prefix, timeout: '10s' }),
    restart: closeAll,
    contenders: 5,
  });
  describe('locks:', () => {
    it.each(lockCases)('$name', ({ run }) => run(), 60_000);
  });
});
