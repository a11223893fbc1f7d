/** Redis servers of one's own: alone, with a replica, with sentinels, as a cluster. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Program, provide } from './provide.ts';
import { freePort, ServerProcess } from './server-process.ts';

/** How a Redis or Valkey is made here; undefined where it cannot be had. In CI that is an error: no suite is skipped there. */
export async function redisProgram(name = 'redis-server'): Promise<Program | undefined> {
  try {
    return await provide(name, name);
  } catch (error) {
    if (process.env.CI) throw error;
    console.log(`Skipped: ${(error as Error).message}.`);
    return undefined;
  }
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
    ping: { request: 'PING', answer: '+PONG' },
  });
}

/** Starts one that copies another. */
export function startReplica(program: Program, primary: ServerProcess): Promise<ServerProcess> {
  return startRedis(program, ['--replicaof', primary.host, `${primary.port}`]);
}

export interface RedisCluster {
  /** The primaries, each with a third of the slots. */
  readonly nodes: readonly ServerProcess[];
  /** As many for each primary as were asked for, in the same order. */
  readonly replicas: readonly ServerProcess[];
}

/** Starts a cluster of three primaries, and waits until each node knows that all slots are served and all replicas follow. */
export async function startCluster(program: Program, { replicas = 0 } = {}): Promise<RedisCluster> {
  const size = 3;
  const total = size * (1 + replicas);
  const started: { readonly server: ServerProcess; readonly busPort: string }[] = [];
  try {
    while (started.length < total) {
      const busPort = `${await freePort()}`;
      const settings = ['--cluster-enabled', 'yes', '--cluster-node-timeout', '1000', '--cluster-port', busPort];
      started.push({ server: await startRedis(program, settings), busPort });
    }
    const slots = 16_384;
    for (const [index, { server, busPort }] of started.entries()) {
      if (index < size) {
        const [first, last] = [index, index + 1].map((bound) => Math.floor((bound * slots) / size));
        await server.ask(`CLUSTER ADDSLOTSRANGE ${first} ${last! - 1}`);
      }
      await server.ask(`CLUSTER SET-CONFIG-EPOCH ${index + 1}`);
      if (index > 0) await started[0]!.server.ask(`CLUSTER MEET ${server.host} ${server.port} ${busPort}`);
    }
    const isWhole = (info: string) =>
      info.includes('cluster_state:ok') && info.includes(`cluster_known_nodes:${total}`);
    for (const { server } of started) await until(async () => isWhole(await server.ask('CLUSTER INFO')));
    for (const [index, { server }] of started.slice(size).entries()) {
      const id = /[0-9a-f]{40}/.exec(await started[index % size]!.server.ask('CLUSTER MYID'))![0];
      await server.ask(`CLUSTER REPLICATE ${id}`);
    }
    for (const { server } of started.slice(size)) {
      await until(async () => (await server.ask('INFO replication')).includes('master_link_status:up'));
    }
  } catch (error) {
    for (const { server } of started) await server.dispose();
    throw error;
  }
  const servers = started.map(({ server }) => server);
  return { nodes: servers.slice(0, size), replicas: servers.slice(size) };
}

/** Starts three sentinels for a primary that has a replica, and waits until they agree on both. */
export async function startSentinels(program: Program, primary: ServerProcess): Promise<ServerProcess[]> {
  const settings = [
    ...['bind 127.0.0.1', `sentinel monitor main ${primary.host} ${primary.port} 2`],
    ...['sentinel down-after-milliseconds main 300', 'sentinel failover-timeout main 1500'],
  ];
  const sentinels: ServerProcess[] = [];
  try {
    while (sentinels.length < 3) {
      sentinels.push(
        await ServerProcess.start({
          name: 'sentinel',
          program,
          args({ port, folder }) {
            const file = join(folder, 'sentinel.conf');
            writeFileSync(file, [...settings, `port ${port}`, `dir ${folder}`, ''].join('\n'));
            return [file, '--sentinel'];
          },
          ping: { request: 'PING', answer: '+PONG' },
        }),
      );
    }
    const agreed = /\$10\r\nnum-slaves\r\n\$1\r\n1\r\n[\s\S]*num-other-sentinels\r\n\$1\r\n2\r\n/;
    for (const sentinel of sentinels) await until(async () => agreed.test(await sentinel.ask('SENTINEL MASTER main')));
  } catch (error) {
    for (const sentinel of sentinels) await sentinel.dispose();
    throw error;
  }
  return sentinels;
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  const endsAtMs = performance.now() + 30_000;
  while (!(await holds())) {
    if (performance.now() > endsAtMs) throw new Error('the servers did not come together within 30 s');
    await sleep(20);
  }
}
