/**
 * Watching: what one flight hears of its key, and of the tags of its value. Without a store nothing is ever told.
 *
 * Promise: what is told between two looks at the store is not missed, whenever the watches began.
 */
import type { Backing, KeyWatch } from './backing.js';

export class Watching {
  /** Whether every change since the store was last asked has been told. */
  isWhole = false;
  private readonly backing: Backing | undefined;
  private readonly text: string;
  private ofKey: KeyWatch | undefined = undefined;
  private readonly ofTags: KeyWatch[] = [];
  private toldBefore = 0;

  constructor(backing: Backing | undefined, text: string) {
    this.backing = backing;
    this.text = text;
  }

  /** Of the key, from now on. */
  key(): KeyWatch {
    this.ofKey ??= this.backing!.watch('key', this.text);
    return this.ofKey;
  }

  /** Whether word of a change of the key will come. */
  get isReady(): boolean {
    return this.ofKey?.isReady === true;
  }

  /** How many changes have been told. */
  get told(): number {
    return this.ofTags.reduce((sum, { changes }) => sum + changes, this.ofKey?.changes ?? 0);
  }

  /** The store is asked now: what is told from here on came after that. */
  note(): void {
    this.toldBefore = this.told;
    this.isWhole = this.isReady;
  }

  /** Whether anything was told since the store was last asked. */
  get hasHeard(): boolean {
    return this.told !== this.toldBefore;
  }

  /** Begun before the store is asked for the tags, so that what changes later is told. */
  tags(tags: Iterable<string>): void {
    // What was told of the key meanwhile still counts.
    const toldMeanwhile = this.told - this.toldBefore;
    const old = this.ofTags.splice(0);
    for (const tag of tags) this.ofTags.push(this.backing!.watch('tag', tag));
    for (const watch of old) this.backing!.release(watch);
    this.toldBefore = this.told - toldMeanwhile;
    this.isWhole &&= this.ofTags.every(({ isReady }) => isReady);
  }

  end(): void {
    for (const watch of this.ofTags) this.backing!.release(watch);
    if (this.ofKey !== undefined) this.backing!.release(this.ofKey);
  }
}
