/**
 * Watching: what one flight is told about changes of its key, and of the tags of its value. Without a store it is told nothing.
 *
 * Promise: a change reported between two requests to the store is not missed, whenever the watches began.
 */
import type { Backing, KeyWatch } from './backing.js';

export class Watching {
  /** Whether every change since the store was last asked has been reported. */
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

  /** Starts to watch the key, and returns the watch. */
  key(): KeyWatch {
    this.ofKey ??= this.backing!.watch('key', this.text);
    return this.ofKey;
  }

  /** Whether changes of the key are being reported. */
  get isReady(): boolean {
    return this.ofKey?.isReady === true;
  }

  /** How many changes have been reported. */
  get told(): number {
    return this.ofTags.reduce((sum, { changes }) => sum + changes, this.ofKey?.changes ?? 0);
  }

  /** Called just before a request to the store: changes reported from here on came after it. */
  note(): void {
    this.toldBefore = this.told;
    this.isWhole = this.isReady;
  }

  /** Whether a change was reported since the store was last asked. */
  get hasHeard(): boolean {
    return this.told !== this.toldBefore;
  }

  /** Starts to watch the tags. Called before the store is asked for them, so that later changes are reported. */
  tags(tags: Iterable<string>): void {
    // Changes of the key reported in the meantime still count.
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
