/**
 * Event loop: the platform's means to run something later in this turn, or in another turn.
 *
 * Promise: nothing waits for a test's fake timers. Fakes hold tasks back until the test advances its time, or for ever once it has removed them.
 * Fakes installed after the import are not seen; fakes already installed at the import are passed over.
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

// Read inside functions: code that reads globals at module level stays in every bundle.
const turnEnd = () => unlessFake<QueueTask>(globalThis.setImmediate);
const tickEnd = () => unlessFake<QueueTask>(globalThis.process?.nextTick);
const microtask = () => unlessFake<QueueTask>(globalThis.queueMicrotask);

/** Runs a task when everything queued for this event loop turn is done; undefined if the platform cannot tell. */
export const atTurnEnd: QueueTask | undefined = /* @__PURE__ */ turnEnd();

/** The same, but before all other waiting tasks. Not a timer: on some platforms a timer ends with the request that set it. */
export const atTickEnd: QueueTask | undefined = /* @__PURE__ */ tickEnd();

/** Runs a task as a microtask. */
export const asMicrotask: QueueTask = /* @__PURE__ */ microtask() ?? ((task) => void Promise.resolve().then(task));

/** Runs a task in a later event loop turn, alone or together with other queued tasks. */
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
