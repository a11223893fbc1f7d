/** What an event point costs without listeners, and what listening costs. */
import { channel, subscribe } from 'node:diagnostics_channel';
import { atMost, type Contender, type Table } from '../table.ts';

const instances = 1024;

/** A copy of the check in front of each event, because the original is internal. */
class Events {
  readonly #on: (() => void) | undefined;
  readonly #channel = channel('holdfast-bench');

  constructor(on: (() => void) | undefined) {
    this.#on = on;
  }

  get heard(): boolean {
    return this.#on !== undefined || this.#channel.hasSubscribers;
  }
}

class Silent {
  readonly heard: boolean = false;
}

/** Visits many instances in turn, because the check of a single one would be hoisted out of the loop. */
function checking(make: () => { readonly heard: boolean }): Contender['prepare'] {
  return () => {
    const points = Array.from({ length: instances }, make);
    let index = 0;
    let heardCount = 0;
    return () => {
      index = (index + 1) % instances;
      if (points[index]!.heard) heardCount++;
      return heardCount;
    };
  };
}

export const eventPoint: Table = {
  name: 'event-point',
  title: 'An event without a listener',
  measure: 'ns per check',
  baseline: 'a field that is false',
  floor: 'a field that is false',
  contenders: [
    { name: 'a field that is false', prepare: checking(() => new Silent()) },
    { name: 'hook and channel', prepare: checking(() => new Events(undefined)) },
  ],
  targets: [
    atMost(3, 'an event point ≤ 3 ns', (round) => round['hook and channel']! - round['a field that is false']!),
  ],
};

/** A call that fails in its only attempt passes one event point. */
function failing(on: (() => void) | undefined): Contender['prepare'] {
  return async () => {
    const { pipeline, retry } = await import('holdfast');
    const once = pipeline(retry({ attempts: 1, ...(on === undefined ? {} : { on }) }));
    const error = new Error('down');
    const fail = async () => {
      throw error;
    };
    return () => once.attempt(fail);
  };
}

export const heard: Table = {
  name: 'heard',
  title: 'A failing call with one event that has a listener',
  note: 'A call that succeeds at once has no events.',
  measure: 'ns per call',
  once: ['B per call'],
  baseline: 'unheard',
  floor: 'unheard',
  contenders: [
    { name: 'unheard', prepare: failing(undefined) },
    { name: 'heard by `on`', prepare: failing(() => {}) },
    {
      name: 'heard on the channel',
      prepare: () => {
        subscribe('holdfast', () => {});
        return failing(undefined)();
      },
    },
  ],
  targets: [],
};
