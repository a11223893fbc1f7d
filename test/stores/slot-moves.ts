/** Moves slots of a Redis cluster from one node to another, step by step, as `redis-cli --cluster reshard` does. */
import type { RedisCluster } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';

const [ioredis] = drivers;

interface Node {
  readonly server: ServerProcess;
  readonly admin: RedisConnection;
  readonly id: string;
}

export interface SlotMoves {
  /** The slots of all buckets of keys that were ever written with this prefix. */
  slots(prefix: string): Promise<number[]>;
  /** The slot that holds this key of a store. */
  slotOf(prefix: string, key: string): Promise<number>;
  /** The names of keys in a slot, on the node that serves it and then on its next node. */
  keysIn(slot: number): Promise<string[]>;
  /** From now on the node redirects requests for keys that it does not have to the next node. */
  begin(slot: number): Promise<void>;
  /** Moves this key to the other node. */
  carry(slot: number, name: string): Promise<void>;
  /** Moves what is left to the next node, and tells all nodes. */
  end(slot: number): Promise<void>;
  /** From now on no node serves the slot. */
  drop(slot: number): Promise<void>;
  takeBack(slot: number): Promise<void>;
  close(): void;
}

export async function slotMoves({ nodes: servers }: RedisCluster): Promise<SlotMoves> {
  const nodes: Node[] = [];
  for (const server of servers) {
    const admin = ioredis!.connect(server.port);
    nodes.push({ server, admin, id: `${await admin.command('CLUSTER', 'MYID')}` });
  }
  const owners = new Map<number, number>();
  const ownerOf = async (slot: number): Promise<number> => {
    const known = owners.get(slot);
    if (known !== undefined) return known;
    const ranges = (await nodes[0]!.admin.command('CLUSTER', 'SLOTS')) as [number, number, [string, number]][];
    const port = ranges.find(([first, last]) => first <= slot && slot <= last)![2][1];
    const owner = nodes.findIndex(({ server }) => server.port === port);
    owners.set(slot, owner);
    return owner;
  };
  const pathOf = async (slot: number) => {
    const from = await ownerOf(slot);
    const to = (from + 1) % nodes.length;
    return { from: nodes[from]!, to: nodes[to]!, next: to };
  };
  const namesAt = async ({ admin }: Node, slot: number) =>
    (await admin.command('CLUSTER', 'GETKEYSINSLOT', `${slot}`, '1000')) as string[];
  const slotOfName = async (name: string) => Number(await nodes[0]!.admin.command('CLUSTER', 'KEYSLOT', name));
  const namesLike = async (pattern: string) =>
    (await Promise.all(nodes.map(({ admin }) => admin.command('KEYS', pattern)))).flat() as string[];
  const carry = async (slot: number, ...names: readonly string[]) => {
    const { from, to } = await pathOf(slot);
    const { host, port } = to.server;
    if (names.length > 0) await from.admin.command('MIGRATE', host, `${port}`, '', '0', '10000', 'KEYS', ...names);
  };
  return {
    async slots(prefix) {
      const buckets = await namesLike(`${prefix}{*}`);
      return [...new Set(await Promise.all(buckets.map(slotOfName)))].sort((one, other) => one - other);
    },
    async slotOf(prefix, key) {
      return slotOfName((await namesLike(`${prefix}{*}:${key}`))[0]!);
    },
    async keysIn(slot) {
      const { from, to } = await pathOf(slot);
      return [...(await namesAt(from, slot)), ...(await namesAt(to, slot))].sort();
    },
    async begin(slot) {
      const { from, to } = await pathOf(slot);
      await to.admin.command('CLUSTER', 'SETSLOT', `${slot}`, 'IMPORTING', from.id);
      await from.admin.command('CLUSTER', 'SETSLOT', `${slot}`, 'MIGRATING', to.id);
    },
    carry,
    async end(slot) {
      const { from, to, next } = await pathOf(slot);
      for (;;) {
        const names = await namesAt(from, slot);
        if (names.length === 0) break;
        await carry(slot, ...names);
      }
      const others = nodes.filter((node) => node !== from && node !== to);
      for (const { admin } of [to, from, ...others])
        await admin.command('CLUSTER', 'SETSLOT', `${slot}`, 'NODE', to.id);
      owners.set(slot, next);
    },
    async drop(slot) {
      const { from } = await pathOf(slot);
      await from.admin.command('CLUSTER', 'DELSLOTS', `${slot}`);
    },
    async takeBack(slot) {
      const { from } = await pathOf(slot);
      await from.admin.command('CLUSTER', 'ADDSLOTS', `${slot}`);
    },
    close() {
      for (const { admin } of nodes) admin.close();
    },
  };
}
