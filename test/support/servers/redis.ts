/** Private Redis servers: single, with a replica, with sentinels, or as a cluster. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Program, provide } from './provide.ts';
import { ServerProcess } from './server-process.ts';

/** How to start Redis or Valkey on this machine; undefined if it is not available. In CI that is an error: no suite is skipped there. */
export async function redisProgram(name = 'redis-server'): Promise<Program | undefined> {
  try {
    return await provide(name, name);
  } catch (error) {
    if (process.env.CI) throw error;
    console.log(`Skipped: ${(error as Error).message}.`);
    return undefined;
  }
}

/** Starts a server that stores nothing on disk, unless the settings say so. */
export function startRedis(program: Program, settings: readonly string[] = []): Promise<ServerProcess> {
  return startOne(program, () => settings);
}

function startOne(program: Program, settings: (port: number) => readonly string[]): Promise<ServerProcess> {
  return ServerProcess.start({
    name: 'redis',
    program,
    args: ({ port, folder }) => [
      ...['--bind', '127.0.0.1', '--port', `${port}`, '--dir', folder],
      ...['--save', '', '--appendonly', 'no', '--repl-diskless-sync-delay', '0', ...settings(port)],
    ],
    ping: { request: 'PING', answer: '+PONG' },
  });
}

/** Starts a replica of another server. */
export function startReplica(program: Program, primary: ServerProcess): Promise<ServerProcess> {
  return startRedis(program, ['--replicaof', primary.host, `${primary.port}`]);
}

export interface RedisCluster {
  /** The primaries, each with a third of the slots. */
  readonly nodes: readonly ServerProcess[];
  /** The requested number of replicas per primary, in the same order. */
  readonly replicas: readonly ServerProcess[];
}

/** Starts a cluster of three primaries, and waits until each node knows that all slots are served and all replicas follow. */
export async function startCluster(program: Program, { replicas = 0 } = {}): Promise<RedisCluster> {
  const size = 3;
  const total = size * (1 + replicas);
  const started: ServerProcess[] = [];
  const busPortOf = (port: number) => `${port + 1}`;
  try {
    while (started.length < total) {
      const settings = (port: number) => [
        ...['--cluster-enabled', 'yes', '--cluster-node-timeout', '1000', '--cluster-port', busPortOf(port)],
      ];
      started.push(await startOne(program, settings));
    }
    const slots = 16_384;
    for (const [index, server] of started.entries()) {
      if (index < size) {
        const [first, last] = [index, index + 1].map((bound) => Math.floor((bound * slots) / size));
        await server.ask(`CLUSTER ADDSLOTSRANGE ${first} ${last! - 1}`);
      }
      await server.ask(`CLUSTER SET-CONFIG-EPOCH ${index + 1}`);
    }
    let metMs = Number.NEGATIVE_INFINITY;
    const isWhole = async (server: ServerProcess) => {
      // A node forgets a meeting that does not take place in time.
      if (performance.now() - metMs > 2_000) {
        metMs = performance.now();
        for (const { host, port } of started.slice(1)) {
          await started[0]!.ask(`CLUSTER MEET ${host} ${port} ${busPortOf(port)}`);
        }
      }
      const info = await server.ask('CLUSTER INFO');
      const isComplete = info.includes('cluster_state:ok') && info.includes(`cluster_known_nodes:${total}`);
      // Messages published while a node has no link to another node are lost.
      return isComplete && !/handshake|disconnected/.test(await server.ask('CLUSTER NODES'));
    };
    for (const server of started) await until(() => isWhole(server));
    for (const [index, server] of started.slice(size).entries()) {
      const id = /[0-9a-f]{40}/.exec(await started[index % size]!.ask('CLUSTER MYID'))![0];
      await server.ask(`CLUSTER REPLICATE ${id}`);
    }
    for (const server of started.slice(size)) {
      await until(async () => (await server.ask('INFO replication')).includes('master_link_status:up'));
    }
    // The settings above let the nodes meet quickly. From now on, no node may be considered dead only because the machine is busy, unless replicas
    // wait for that.
    const deadAfterMs = replicas === 0 ? 15_000 : 3_000;
    for (const server of started) await server.ask(`CONFIG SET cluster-node-timeout ${deadAfterMs}`);
  } catch (error) {
    for (const server of started) await server.dispose();
    throw error;
  }
  return { nodes: started.slice(0, size), replicas: started.slice(size) };
}

/** Starts three sentinels for a primary that has a replica, and waits until they agree on both. */
export async function startSentinels(program: Program, primary: ServerProcess): Promise<ServerProcess[]> {
  const settings = [
    ...['bind 127.0.0.1', `sentinel monitor main ${primary.host} ${primary.port} 2`],
    // Longer than a busy machine usually delays a server.
    ...['sentinel down-after-milliseconds main 1000', 'sentinel failover-timeout main 3000'],
  ];
  // A sentinel that could not run for 2 s considers its clock broken, and would do nothing for 30 s.
  const trust = 'SENTINEL DEBUG TILT-TRIGGER 600000';
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
    for (const sentinel of sentinels) await sentinel.ask(trust);
    for (const sentinel of sentinels) await until(async () => agreed.test(await sentinel.ask('SENTINEL MASTER main')));
  } catch (error) {
    for (const sentinel of sentinels) await sentinel.dispose();
    throw error;
  }
  return sentinels;
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  const endsAtMs = performance.now() + 90_000;
  while (!(await holds())) {
    if (performance.now() > endsAtMs) throw new Error('the servers did not come together within 90 s');
    await sleep(20);
  }
}
