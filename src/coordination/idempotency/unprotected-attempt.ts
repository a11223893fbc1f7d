/** Unprotected attempt: one that runs although the store is down. Nothing is recorded, and no other process knows of it. */
import type { AdapterHandle, Completion } from './attempt.js';
import type { Engine } from './engine.js';
import { downstreamKeyOf } from './hashing.js';

export class UnprotectedAttempt implements AdapterHandle {
  readonly attempt = 1;
  readonly fence = 0;
  readonly key: string;
  private readonly engine: Engine;
  private readonly keyHash: string;
  private isOver = false;
  private wanted: AdapterHandle['decision'] = undefined;
  private controller: AbortController | undefined = undefined;

  constructor(engine: Engine, key: string, keyHash: string) {
    this.engine = engine;
    this.key = key;
    this.keyHash = keyHash;
    engine.workBegins();
  }

  get decision(): AdapterHandle['decision'] {
    return this.wanted;
  }

  get signal(): AbortSignal {
    this.controller ??= new AbortController();
    return this.controller.signal;
  }

  readonly seal = async (): Promise<void> => {
    this.wanted = 'keep';
  };

  readonly release = (): void => {
    this.wanted = 'release';
  };

  readonly phase = async <T>(name: string, step: (downstreamKey: string) => T | PromiseLike<T>): Promise<T> => {
    return await step(this.downstreamKey(name));
  };

  readonly downstreamKey = (name: string): string => {
    return downstreamKeyOf(this.engine.settings.secret, this.keyHash, name);
  };

  async complete(): Promise<Completion> {
    if (!this.isOver) this.engine.workEnds();
    this.isOver = true;
    return 'unrecorded';
  }

  abandon(): Promise<Completion> {
    return this.complete();
  }

  assertPhasesKept(): void {}
}
