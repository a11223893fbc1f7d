/** Histories of clients behind sentinels while the primary dies and its replica takes its place, judged by what asynchronous replication can promise. */
import { StoreError } from 'holdfast';
import {
  checkLinearizability,
  History,
  type Model,
  type StoreModelState,
  type StoreOperation,
  type StoreResult,
  seededRandom,
  storeModel,
} from 'holdfast/testing';
import type { ClosableStore } from '../../src/stores/store.js';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { answered, until } from './faults.ts';
import { draw, pause, perform, versionIn } from './histories.ts';

type Operation = StoreOperation | { readonly type: 'failover' };

interface State {
  readonly held: StoreModelState;
  /** What the key held before, the oldest first: a failover may bring any of it back. */
  readonly earlier: readonly StoreModelState[];
  /** The greatest version that was given. A failover takes it from nobody. */
  readonly greatest: number;
}

/**
 * One key of a primary that is replaced by its replica. What was written last may be lost, so that the key holds again what it held at some earlier
 * moment; but each new version is above all that were ever given, and between failovers the laws of a store hold as always.
 */
function failoverModel(): Model<State, Operation, StoreResult> {
  const store = storeModel();
  return {
    name: 'store with failover',
    initial: { held: store.initial, earlier: [], greatest: 0 },
    step({ held, earlier, greatest }, operation, observation) {
      if (operation.type === 'failover') {
        const kept = earlier.map((state, index) => ({ held: state, earlier: earlier.slice(0, index), greatest }));
        return [...kept, { held, earlier, greatest }];
      }
      const result = observation.kind === 'ok' ? observation.result : undefined;
      if (isWritten(result) && result.version <= greatest) return [];
      // A look may tell a version that was not known, and changes nothing else.
      const isLook = observation.kind === 'ok' && !isWritten(result) && result !== true;
      return store.step(held, operation, observation).map((next) => ({
        held: next,
        earlier: isLook || next === held ? earlier : [...earlier, held],
        greatest: Math.max(greatest, next.version ?? 0),
      }));
    },
    isReadOnly: (operation, result) => operation.type !== 'failover' && store.isReadOnly!(operation, result),
    isTooLate: ({ greatest }, _operation, result) => isWritten(result) && result.version <= greatest,
    keyOf: ({ held, earlier, greatest }) => [...earlier, held].map(store.keyOf!).concat(`${greatest}`).join(),
    describe: (operation) => (operation.type === 'failover' ? 'failover' : store.describe!(operation)),
  };
}

function isWritten(result: StoreResult): result is { readonly ok: true; readonly version: number } {
  return typeof result === 'object' && 'ok' in result && result.ok;
}

/** Verbs of each client that are answered, or of which nobody knows. */
const verbsPerClient = 8;
const keys = ['x', 'y'];

/** A primary and its replica, which change places, and who sees to that. */
export interface Pair {
  primary: ServerProcess;
  replica: ServerProcess;
  readonly sentinels: readonly ServerProcess[];
}

/**
 * Plays histories of so many seeds, each through a failover, which `atOnce` of them share, and claims that nothing but what was written last was lost, and
 * that versions grow.
 */
export async function checkFailovers(
  stores: readonly ClosableStore[],
  pair: Pair,
  { firstSeed, count, atOnce }: { readonly firstSeed: number; readonly count: number; readonly atOnce: number },
): Promise<void> {
  // Histories in which something that was answered was gone afterwards, and operations of which nobody knows what became of them.
  const shown = { losing: 0, unknown: 0 };
  for (let begun = 0; begun < count; begun += atOnce) {
    if (begun > 0) await changePlaces(pair);
    const seeds = Array.from({ length: Math.min(atOnce, count - begun) }, (_, index) => firstSeed + begun + index);
    const progress = { ended: 0, unknown: 0, isFailing: false, isBack: deferred() };
    const plays = seeds.map((seed) => new Play(seed));
    await Promise.all([...plays.map((play) => play.run(stores, progress)), failOver(stores, pair, plays, progress)]);
    for (const { seed, history, asIfNone } of plays) {
      const verdict = checkLinearizability(history, failoverModel());
      if (verdict.verdict !== 'linearizable') throw new Error(`seed ${seed}\n${verdict}`);
      if (checkLinearizability(asIfNone, storeModel()).verdict !== 'linearizable') shown.losing++;
    }
    shown.unknown += progress.unknown;
    const done = begun + seeds.length;
    if (done % 500 === 0)
      console.log(`failovers: ${done} histories from seed ${firstSeed} keep what is promised`, shown);
  }
}

interface Progress {
  /** Verbs that count. */
  ended: number;
  unknown: number;
  isFailing: boolean;
  readonly isBack: { readonly promise: Promise<void>; resolve(): void };
}

class Play {
  readonly seed: number;
  readonly history = new History<Operation, StoreResult>();
  /** The same without the failover. */
  readonly asIfNone = new History<StoreOperation, StoreResult>();

  constructor(seed: number) {
    this.seed = seed;
  }

  /** Begins a failover; what it answers ends it. */
  beginFailover(): () => void {
    const open = keys.map((key) =>
      this.history.invoke({ client: 'sentinel', key: `${this.seed}/${key}`, operation: { type: 'failover' } }),
    );
    return () => {
      for (const one of open) one.ok(true);
    };
  }

  async run(stores: readonly ClosableStore[], progress: Progress): Promise<void> {
    const random = seededRandom(this.seed);
    const clients = stores.map(async (store, index) => {
      const own = random.fork(`client ${index}`);
      const seen = new Map<string, number>();
      for (let count = 0, left = verbsPerClient; left > 0; count++) {
        const key = `${this.seed}/${own.pick(keys)}`;
        const operation = draw(own, `${index}.${count}`, seen.get(key) ?? 0);
        const invocation = { client: `client ${index}`, key, operation };
        const open = [this.history.invoke(invocation), this.asIfNone.invoke(invocation)];
        try {
          const result = await perform(store, key, operation);
          for (const one of open) one.ok(result);
          progress.ended++;
          left--;
          const version = versionIn(result);
          if (version !== undefined) seen.set(key, version);
        } catch (error) {
          if (!(error instanceof StoreError)) throw error;
          for (const one of open) error.applied === 'no' ? one.failed() : one.unknown();
          if (error.applied === 'unknown') {
            progress.unknown++;
            progress.ended++;
            left--;
          }
          // A client may lose its connection at any time, as when it hears of the replica that came back.
          await (progress.isFailing ? progress.isBack.promise : pause(10));
        }
      }
    });
    await Promise.all(clients);
  }
}

/** Kills the primary in the middle of all, every other time after its replica has lost touch. */
async function failOver(
  stores: readonly ClosableStore[],
  { primary }: Pair,
  plays: readonly Play[],
  progress: Progress,
): Promise<void> {
  const random = seededRandom(plays[0]!.seed).fork('network');
  const all = plays.length * stores.length * verbsPerClient;
  const verbsFrom = (least: number) =>
    until(
      async () => progress.ended,
      (ended) => ended >= least,
    );
  await verbsFrom(random.integer(all / 8, all / 2));
  if (random() < 0.5) {
    await primary.ask('ACL SETUSER default -psync -sync');
    await primary.ask('CLIENT KILL TYPE REPLICA');
    await verbsFrom(progress.ended + random.integer(1, all / 8));
  }
  progress.isFailing = true;
  const ends = plays.map((play) => play.beginFailover());
  await primary.kill();
  await Promise.all(
    stores.map((store) => answered(() => store.write('probe', new Uint8Array(), { ttlMs: 600_000 }), 30_000)),
  );
  for (const end of ends) end();
  progress.isBack.resolve();
}

/** Starts the one that died, as the replica of the other. */
async function changePlaces(pair: Pair): Promise<void> {
  const { primary: dead, replica: primary } = pair;
  await dead.start();
  await dead.ask(`REPLICAOF ${primary.host} ${primary.port}`);
  await until(
    () => primary.ask('INFO replication'),
    (info) => info.includes('state=online'),
  );
  // They ask for that every ten seconds, and promote none of which they know less.
  const good = ['flags slave', 'role-reported slave', 'master-link-status ok', `master-port ${primary.port}`];
  for (const sentinel of pair.sentinels) {
    const replicas = async () => (await sentinel.ask('SENTINEL REPLICAS main')).replace(/\r\n\$\d+\r\n/g, ' ');
    await until(replicas, (told) => good.every((words) => told.includes(` ${words} `)), 30_000);
  }
  Object.assign(pair, { primary, replica: dead });
}

function deferred(): Progress['isBack'] {
  let resolve = () => {};
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}
