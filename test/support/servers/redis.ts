/** Redis servers of one's own: alone, or with a replica. */
import { type Program, provide } from './provide.ts';
import { ServerProcess } from './server-process.ts';

/** How a Redis or Valkey is made here; undefined where it cannot be had. In CI that is an error: no suite is skipped there. */
export async function redisProgram(name = 'redis-server', packageName = name): Promise<Program | undefined> {
  const program = await provide(name, packageName);
  if (program !== undefined) return program;
  const missing = `${name} is neither on PATH nor in the package sources of this machine`;
  if (process.env.CI) throw new Error(missing);
  console.log(`Skipped: ${missing}.`);
  return undefined;
}

/** Starts one that keeps nothing on disk, unless the settings say so. */
export function startRedis(program: Program, settings: readonly string[] = []): Promise<ServerProcess> {
  return ServerProcess.start({
    name: 'redis',
    program,
    args: ({ port, folder }) => [
      ...['--bind', '127.0.0.1', '--port', `${port}`, '--dir', folder],
      ...['--save', '', '--appendonly', 'no', '--repl-diskless-sync-delay', '0', ...settings],
    ],
    ping: { request: 'PING\r\n', answer: '+PONG' },
  });
}

/** Starts one that copies another. */
export function startReplica(program: Program, primary: ServerProcess): Promise<ServerProcess> {
  return startRedis(program, ['--replicaof', primary.host, `${primary.port}`]);
}
