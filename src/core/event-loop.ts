/**
 * Event loop: what the platform has to do something later in this turn, or in another one.
 *
 * Promise: nothing waits for the fakes that a test puts in the place of timers. They hold back what they are given until the test moves its
 * time on, or for ever once it has taken them away: those that come after the import are not seen, and those that are there by then are passed over.
 */

type QueueTask = (task: () => void) => void;

/**
 * Those of Sinon, Jest and Vitest have a clock; those of node:test are private methods that are bound to one. What a polyfill has bound, or an
 * agent that watches the process has wrapped, is taken for what the platform has.
 */
export function isFake(given: (...values: never[]) => unknown): boolean {
  return 'clock' in given || given.name.startsWith('bound #');
}

function unlessFake<Given extends QueueTask>(given: Given | undefined): Given | undefined {
  return given === undefined || isFake(given) ? undefined : given;
}

// Read inside of functions: what is read outside stays in each bundle.
const turnEnd = () => unlessFake<QueueTask>(globalThis.setImmediate);
const tickEnd = () => unlessFake<QueueTask>(globalThis.process?.nextTick);
const microtask = () => unlessFake<QueueTask>(globalThis.queueMicrotask);

/** Runs a task when all that was to be done in this turn is done; undefined: the platform tells nobody. */
export const atTurnEnd: QueueTask | undefined = /* @__PURE__ */ turnEnd();

/** The same, before anything else that waits. No timer: on some platforms those end with the request that set them. */
export const atTickEnd: QueueTask | undefined = /* @__PURE__ */ tickEnd();

/** Runs a task as a microtask. */
export const asMicrotask: QueueTask = /* @__PURE__ */ microtask() ?? ((task) => void Promise.resolve().then(task));

/** Runs a task in a turn of the event loop of its own, or beside others of its kind. */
export const queueTask: QueueTask = /* @__PURE__ */ taskQueueOfPlatform();

function taskQueueOfPlatform(): QueueTask {
  if (atTurnEnd !== undefined) return atTurnEnd;
  const { MessageChannel, setTimeout } = globalThis;
  if (typeof MessageChannel !== 'function') return setTimeout;
  return (task) => {
    const { port1, port2 } = new MessageChannel();
    port1.addEventListener('message', () => {
      port1.close();
      task();
    });
    port1.start();
    port2.postMessage(undefined);
  };
}
