/**
 * How many events per second does a simulated world play? Run after a build: `node bench/simulator.ts [runs]`.
 *
 * The scenario consists of real promises: each client awaits a sleep, then a request, whose handler awaits a sleep too. The world counts the events:
 * task starts, timers, requests arriving, replies arriving. One invariant is checked after each.
 */
import assert from 'node:assert/strict';
import { cpus } from 'node:os';
import { type SimulationReport, simulate } from 'holdfast/testing';

const clients = 20;
const rounds = 5000;
const runs = Number(process.argv[2] ?? 5);

async function play(seed: number): Promise<SimulationReport<number>> {
  return simulate({ seed }, async (world) => {
    let served = 0;
    const server = world.node('server', {
      start: (process) =>
        process.serve<{ round: number }>(async ({ round }) => {
          await process.sleep(process.random.between(1, 10));
          served++;
          return { round };
        }),
    });
    world.invariant('never more answers than questions', () => served <= clients * rounds);
    const tasks = Array.from({ length: clients }, (_, index) =>
      world.node(`client ${index}`).run('ask', async (client) => {
        for (let round = 0; round < rounds; round++) {
          await client.sleep(client.random.between(0, 20));
          const answer = await client.request<{ round: number }>(server, { round, from: index });
          assert.equal(answer.round, round);
        }
      }),
    );
    await Promise.all(tasks);
    return served;
  });
}

const figures: number[] = [];
const cpuFigures: number[] = [];
let digest: string | undefined;
for (let run = 0; run <= runs; run++) {
  const startedMs = performance.now();
  const startedCpu = process.cpuUsage();
  const report = await play(1);
  const seconds = (performance.now() - startedMs) / 1000;
  const { user, system } = process.cpuUsage(startedCpu);
  digest ??= report.digest;
  assert.equal(report.digest, digest, 'the same seed must replay bit for bit');
  assert.equal(report.result, clients * rounds);
  // The first run warms up.
  if (run === 0) continue;
  figures.push(report.steps / seconds);
  cpuFigures.push(report.steps / ((user + system) / 1e6));
}
for (const list of [figures, cpuFigures]) list.sort((left, right) => left - right);
const perSecond = (figure: number | undefined) => `${Math.round(figure ?? Number.NaN).toLocaleString('en')} events/s`;
console.log(
  `node ${process.version}, ${cpus()[0]?.model ?? 'unknown processor'}, ${runs} runs of ${clients * rounds} requests`,
);
console.log(
  `median ${perSecond(figures[figures.length >> 1])}, slowest ${perSecond(figures[0])}, fastest ${perSecond(figures.at(-1))}`,
);
console.log(`per second of processor time, all threads: median ${perSecond(cpuFigures[cpuFigures.length >> 1])}`);
console.log(`digest ${digest}`);
