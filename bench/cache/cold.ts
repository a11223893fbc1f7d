/** Cold keys while Redis is stopped (SIGSTOP): what each get costs in addition to its load. `node bench/cache/cold.ts` after a build. */
import { cache } from 'holdfast';
import { redisStore } from 'holdfast/redis';
import { Redis } from 'ioredis';
import { redisProgram, startRedis } from '../../test/support/servers/redis.ts';

const program = await redisProgram();
if (program === undefined) throw new Error('this table needs a Redis');
const server = await startRedis(program);
const clients = [1, 2].map(
  () => new Redis(server.port, '127.0.0.1', { autoResendUnfulfilledCommands: false, maxRetriesPerRequest: 0 }),
);
const loadMs = 50;
const load = () => new Promise((resolve) => setTimeout(resolve, loadMs, 'value'));
const values = cache({ store: redisStore(clients[0]!, { subscriber: clients[1]! }), ttl: '1m', load });
await values.get('warm');
server.freeze();
console.log('| cold get, in turn | ms beyond its load of 50 ms |\n|---|---|');
for (let call = 1; call <= 8; call++) {
  const startedMs = performance.now();
  await values.get(`key ${call}`);
  console.log(`| ${call} | ${Math.round(performance.now() - startedMs - loadMs)} |`);
}
server.wake();
await values.close();
for (const client of clients) client.disconnect();
await server.dispose();
