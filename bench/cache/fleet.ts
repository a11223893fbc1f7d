/**
 * Fleet: four processes ask for one hot key, 300 times a second each for 8 s, with a time to live of 1 s and a load of 200 ms; then the same while
 * the source is down. Redis is real. `node bench/cache/fleet.ts` after a build.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { redisProgram, startRedis } from '../../test/support/servers/redis.ts';
import type { Report, Settings } from './child.ts';

const program = await redisProgram();
if (program === undefined) throw new Error('this table needs a Redis');
const file = fileURLToPath(new URL('child.ts', import.meta.url));
const processes = 4;

async function play(settings: Omit<Settings, 'redisPort'>): Promise<readonly Report[]> {
  const server = await startRedis(program!);
  try {
    const given = JSON.stringify({ ...settings, redisPort: server.port });
    const all = Array.from({ length: processes }, () => fork(file, [given], { execArgv: ['--no-warnings'] }));
    await Promise.all(all.map((one) => once(one, 'message')));
    const reports = all.map((one) => once(one, 'message'));
    const atMs = Date.now() + 300;
    for (const one of all) one.send(atMs);
    return (await Promise.all(reports)).map(([report]) => report as Report);
  } finally {
    await server.dispose();
  }
}

const contenders = ['holdfast', 'look, load, store', 'bentocache', 'async-cache-dedupe'];
const common = { ratePerSecond: 300, seconds: 8, loadMs: 200 };
console.log('| contender | loads in 8 s | warm callers p99 ms | slowest ms |\n|---|---|---|---|');
for (const contender of contenders) {
  const reports = await play({ contender, ...common, fails: undefined });
  const loads = reports.reduce((sum, { loadsMs }) => sum + loadsMs.length, 0);
  const [p99, slowest] = (['p99Ms', 'slowestMs'] as const).map((name) => Math.max(...reports.map((one) => one[name])));
  console.log(`| ${contender} | ${loads} | ${p99!.toFixed(1)} | ${slowest!.toFixed(1)} |`);
}

console.log(
  '\n| contender | attempts in 8 s of outage | callers who failed | gaps between attempts, ms |\n|---|---|---|---|',
);
for (const contender of contenders) {
  const reports = await play({ contender, ...common, seconds: 10, fails: [1_000, 9_000] });
  const attempts = reports
    .flatMap(({ loadsMs }) => loadsMs)
    .filter((ms) => ms >= 1_000 && ms < 9_000)
    .sort((one, other) => one - other);
  const gaps = attempts.slice(1).map((ms, index) => Math.round(ms - attempts[index]!));
  const failed = reports.reduce((sum, one) => sum + one.failed, 0);
  const shown = gaps.length > 8 ? `${Math.min(...gaps)} to ${Math.max(...gaps)}` : gaps.join(', ');
  console.log(`| ${contender} | ${attempts.length} | ${failed} | ${shown} |`);
}
