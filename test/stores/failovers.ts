/**
 * Histories of clients behind sentinels whose primary dies, or freezes and comes back, while its replica takes over. They are judged by what asynchronous
 * replication can promise.
 */
import { setTimeout as sleep } from 'node:timers/promises';
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
import { draw, perform, versionIn } from '../../src/testing/store-histories.js';
import { deferred } from '../support/deferred.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { answered, until } from './faults.ts';

/** `'promotion'`: from now on two servers accept writes. `'demotion'`: the old primary accepts no more writes, and its data is gone. */
type Event = { readonly type: 'failover' } | { readonly type: 'promotion' } | { readonly type: 'demotion' };
type Operation = StoreOperation | Event;

interface State {
  readonly held: StoreModelState;
  /** What the old primary holds while it accepts writes beside the new one. */
  readonly old: StoreModelState | undefined;
  /** What the key held before, oldest first. The failover may bring any of it back; once it has happened, this is empty. */
  readonly earlier: readonly StoreModelState[] | undefined;
  /** The greatest version that was ever given. A failover does not lower it. */
  readonly greatest: number;
}

/**
 * One key of a primary that is replaced by its replica. The last writes may be lost, so the key may again hold what it held at some earlier moment. But each
 * new version is greater than all that were ever given, and between failovers the laws of a store hold as always. Where the old primary continues beside the
 * new one, the laws hold at each of the two, and versions are greater than those of both.
 */
function failoverModel(): Model<State, Operation, StoreResult> {
  const store = storeModel();
  return {
    name: 'store with failover',
    initial: { held: store.initial, old: undefined, earlier: [], greatest: 0 },
    step(state, operation, observation) {
      const { held, old, earlier, greatest } = state;
      if (operation.type === 'demotion') return old === undefined ? [] : [{ ...state, old: undefined }];
      if (operation.type === 'failover' || operation.type === 'promotion') {
        const goesOn = operation.type === 'promotion' ? held : undefined;
        return [...earlier!, held].map((one) => ({ held: one, old: goesOn, earlier: undefined, greatest }));
      }
      const result = observation.kind === 'ok' ? observation.result : undefined;
      if (isWritten(result) && result.version <= greatest) return [];
      const greatestOf = (next: StoreModelState) => Math.max(greatest, next.version ?? 0);
      // A read may reveal a version that was not known. It changes nothing else.
      const isLook = observation.kind === 'ok' && !isWritten(result) && result !== true;
      const atNew = store.step(held, operation, observation).map((next) => ({
        held: next,
        old,
        earlier: isLook || next === held ? earlier : earlier && [...earlier, held],
        greatest: greatestOf(next),
      }));
      if (old === undefined) return atNew;
      const atOld = store.step(old, operation, observation);
      return [...atNew, ...atOld.map((next) => ({ ...state, old: next, greatest: greatestOf(next) }))];
    },
    isReadOnly: (operation, result) => !isEvent(operation) && store.isReadOnly!(operation, result),
    isTooLate: ({ greatest }, _operation, result) => isWritten(result) && result.version <= greatest,
    keyOf({ held, old, earlier, greatest }) {
      const keyOf = (state: StoreModelState | undefined) => (state === undefined ? '' : store.keyOf!(state));
      return `${keyOf(held)}|${keyOf(old)}|${earlier?.map(keyOf).join()}|${greatest}`;
    },
    describe: (operation) => (isEvent(operation) ? operation.type : store.describe!(operation)),
  };
}

function isEvent(operation: Operation): operation is Event {
  return ['failover', 'promotion', 'demotion'].includes(operation.type);
}

function isWritten(result: StoreResult): result is { readonly ok: true; readonly version: number } {
  return typeof result === 'object' && 'ok' in result && result.ok;
}

/** How many verbs of each client are answered, or end with an unknown outcome. */
const verbsPerClient = 10;
/** How many of them follow once there is a primary again, and how many once there is only one. */
const verbsAfterwards = 5;
const verbsAtLast = 2;
const keys = ['x', 'y'];

/** A primary and its replica, which change roles, and the sentinels that see to that. */
export interface Pair {
  primary: ServerProcess;
  replica: ServerProcess;
  readonly sentinels: readonly ServerProcess[];
}

/**
 * Plays the histories of this many seeds, each through a failover that `atOnce` of them share. Claims that only the last writes were lost, and that versions
 * grow.
 */
export async function checkFailovers(
  stores: readonly ClosableStore[],
  pair: Pair,
  {
    strike,
    firstSeed,
    count,
    atOnce,
  }: { readonly strike: Strike; readonly firstSeed: number; readonly count: number; readonly atOnce: number },
): Promise<{ readonly losing: number; readonly unknown: number }> {
  // Counts the histories in which something was answered and later gone, and the operations whose outcome nobody knows.
  const shown = { losing: 0, unknown: 0 };
  for (let begun = 0; begun < count; begun += atOnce) {
    const seeds = Array.from({ length: Math.min(atOnce, count - begun) }, (_, index) => firstSeed + begun + index);
    const progress = new Progress();
    const plays = seeds.map((seed) => new Play(seed));
    await Promise.all([...plays.map((play) => play.run(stores, progress)), strike(stores, pair, plays, progress)]);
    if (begun + seeds.length < count) await changePlaces(pair);
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
  return shown;
}

class Progress {
  /** The verbs that count. */
  ended = 0;
  unknown = 0;
  isFailing = false;
  /** Clients wait while this lasts. On a busy machine it may last long, and they must not use up all their verbs meanwhile. */
  pause: Promise<unknown> | undefined = undefined;
  /** Clients may continue: there is a primary again. */
  readonly isBack = deferred();
  /** There is one primary, and all clients know which. */
  readonly isOver = deferred();
  private next = { least: Number.POSITIVE_INFINITY, reached: deferred() };

  end(): void {
    this.ended++;
    if (this.ended >= this.next.least) this.next.reached.resolve();
  }

  /** Resolves at the moment at which this many verbs have ended. */
  async from(least: number): Promise<void> {
    this.next = { least, reached: deferred() };
    if (this.ended < least) await this.next.reached.promise;
  }
}

class Play {
  readonly seed: number;
  readonly history = new History<Operation, StoreResult>();
  /** The same histories without the failover. */
  readonly asIfNone = new History<StoreOperation, StoreResult>();

  constructor(seed: number) {
    this.seed = seed;
  }

  /** Begins what happens to all keys at once. The function that it returns ends it. */
  begin(type: Event['type']): () => void {
    const open = keys.map((key) =>
      this.history.invoke({ client: 'sentinel', key: `${this.seed}/${key}`, operation: { type } }),
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
        await progress.pause;
        if (left <= verbsAfterwards) await progress.isBack.promise;
        if (left <= verbsAtLast) await progress.isOver.promise;
        const key = `${this.seed}/${own.pick(keys)}`;
        const operation = draw(own, `${index}.${count}`, seen.get(key) ?? 0);
        const invocation = { client: `client ${index}`, key, operation };
        const open = [this.history.invoke(invocation), this.asIfNone.invoke(invocation)];
        try {
          const result = await perform(store, key, operation);
          for (const one of open) one.ok(result);
          progress.end();
          left--;
          const version = versionIn(result);
          if (version !== undefined) seen.set(key, version);
        } catch (error) {
          if (!(error instanceof StoreError)) throw error;
          for (const one of open) error.applied === 'no' ? one.failed() : one.unknown();
          if (error.applied === 'unknown') {
            progress.unknown++;
            progress.end();
            left--;
          }
          // A client may lose its connection at any time, for example when it hears of the replica that came back.
          await (progress.isFailing ? progress.isBack.promise : sleep(10));
        }
      }
    });
    await Promise.all(clients);
  }
}

/** What happens to the primary in the middle of everything. */
type Strike = (
  stores: readonly ClosableStore[],
  pair: Pair,
  plays: readonly Play[],
  progress: Progress,
) => Promise<void>;

/** The primary dies. */
export const kill: Strike = async (stores, pair, plays, progress) => {
  await inTheMiddle(stores, pair, plays, progress);
  const ends = plays.map((play) => play.begin('failover'));
  await pair.primary.kill();
  await allAnswered(stores);
  for (const end of ends) end();
  progress.isBack.resolve();
  progress.isOver.resolve();
};

/** The primary freezes until its replica has taken over, and then wakes. Until somebody tells it about its new role, both accept writes. */
export const freeze: Strike = async (stores, pair, plays, progress) => {
  const { primary, replica, sentinels } = pair;
  await inTheMiddle(stores, pair, plays, progress);
  const promoted = plays.map((play) => play.begin('promotion'));
  primary.freeze();
  // If it woke before the sentinels agree, it might remain the primary, and the other one might step back.
  for (const sentinel of sentinels) {
    const told = () => sentinel.ask('SENTINEL GET-MASTER-ADDR-BY-NAME main');
    await until(told, (address) => address.includes(`${replica.port}`));
  }
  for (const end of promoted) end();
  const demoted = plays.map((play) => play.begin('demotion'));
  primary.wake();
  progress.isFailing = false;
  progress.isBack.resolve();
  const inAll = plays.length * stores.length * (verbsPerClient - verbsAtLast);
  await progress.from(inAll);
  // The sentinels would do this after 8 s, or much later on a busy machine, where they take the server for down again and again.
  await primary.ask(`REPLICAOF ${replica.host} ${replica.port}`);
  await primary.ask('CLIENT KILL TYPE normal');
  await allAnswered(stores);
  for (const end of demoted) end();
  progress.isOver.resolve();
  await primary.ask('ACL SETUSER default +@all');
};

/** Waits for the replica. Every other time the replica has lost its connection by then. */
async function inTheMiddle(
  stores: readonly ClosableStore[],
  { primary }: Pair,
  plays: readonly Play[],
  progress: Progress,
): Promise<void> {
  const random = seededRandom(plays[0]!.seed).fork('network');
  const all = plays.length * stores.length * verbsPerClient;
  await progress.from(random.integer(all / 8, all / 4));
  if (random() < 0.5) {
    const ready = deferred();
    progress.pause = ready.promise;
    await primary.ask('ACL SETUSER default -psync -sync');
    await primary.ask('CLIENT KILL TYPE REPLICA');
    progress.pause = undefined;
    ready.resolve();
    await progress.from(progress.ended + random.integer(1, all / 8));
  }
  progress.isFailing = true;
}

/** Sentinels disconnect all clients of a server that changes its role. */
async function untilReplication(server: ServerProcess, says: string): Promise<void> {
  const info = () => server.ask('INFO replication').catch(() => '');
  await until(info, (text) => text.includes(says));
}

async function allAnswered(stores: readonly ClosableStore[]): Promise<void> {
  const probe = (store: ClosableStore) => store.write('probe', new Uint8Array(), { ttlMs: 600_000 });
  await Promise.all(stores.map((store) => answered(() => probe(store))));
}

/** The former primary follows the other server, and all sentinels know it. */
async function changePlaces(pair: Pair): Promise<void> {
  const { primary: replica, replica: primary } = pair;
  if (!replica.isRunning) {
    await replica.start();
    await replica.ask(`REPLICAOF ${primary.host} ${primary.port}`);
  }
  await untilReplication(primary, 'state=online');
  // Sentinels ask for this every ten seconds, and promote no replica that they know less about.
  const good = ['flags slave', 'role-reported slave', 'master-link-status ok', `master-port ${primary.port}`];
  for (const sentinel of pair.sentinels) {
    const replicas = async () => (await sentinel.ask('SENTINEL REPLICAS main')).replace(/\r\n\$\d+\r\n/g, ' ');
    await until(replicas, (told) => good.every((words) => told.includes(` ${words} `)));
  }
  Object.assign(pair, { primary, replica });
}
