import { AsyncLocalStorage, AsyncResource, executionAsyncId } from 'node:async_hooks';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { emptyAsyncContext, keepAsyncContext } from '../../src/core/async-context.js';

const requests = new AsyncLocalStorage<string>();

function look(this: unknown, ...given: unknown[]) {
  return [requests.getStore(), this, ...given];
}

describe('keepAsyncContext', () => {
  it('runs a function later, with its object and arguments, in the kept context', () => {
    const kept = requests.run('mine', keepAsyncContext);
    const self = {};
    expect(requests.run('another', () => kept.runInAsyncScope(look, self, 1, 2))).toEqual(['mine', self, 1, 2]);
  });

  it('shows the kept context to everything that the function starts', async () => {
    const kept = requests.run('mine', keepAsyncContext);
    const later = async () => {
      await Promise.resolve();
      return requests.getStore();
    };
    expect(await kept.runInAsyncScope(later, undefined)).toBe('mine');
  });

  it('also keeps the absence of a context', () => {
    const kept = keepAsyncContext();
    expect(requests.run('another', () => kept.runInAsyncScope(look, undefined))).toEqual([undefined, undefined]);
  });

  describe('on a platform', () => {
    afterEach(() => {
      vi.restoreAllMocks();
      vi.resetModules();
    });

    async function keptOn(hooks: unknown) {
      vi.resetModules();
      vi.spyOn(process, 'getBuiltinModule').mockReturnValue(hooks as undefined);
      const { keepAsyncContext } = await import('../../src/core/async-context.js');
      return requests.run('mine', keepAsyncContext);
    }

    it.each([
      ['without node:async_hooks', undefined],
      ['whose node:async_hooks has no AsyncResource', {}],
    ])('%s runs the function as it is', async (_, hooks) => {
      const kept = await keptOn(hooks);
      const self = {};
      expect(requests.run('another', () => kept.runInAsyncScope(look, self, 1))).toEqual(['another', self, 1]);
    });

    it.each([
      ['without a process', undefined],
      ['whose process gives no modules', {}],
    ])('%s runs the function as it is', async (_, platform) => {
      vi.resetModules();
      vi.stubGlobal('process', platform);
      try {
        const { keepAsyncContext } = await import('../../src/core/async-context.js');
        const kept = requests.run('mine', keepAsyncContext);
        expect(requests.run('another', () => kept.runInAsyncScope(look, undefined))).toEqual(['another', undefined]);
      } finally {
        vi.unstubAllGlobals();
      }
    });

    it('that accepts no number beside the name, like workerd, keeps the context', async () => {
      class Strict extends AsyncResource {
        constructor(type: string, options?: object) {
          if (typeof options === 'number') throw new TypeError("parameter 2 is not of type 'Options'");
          super(type, options);
        }
      }
      const kept = await keptOn({ AsyncResource: Strict, executionAsyncId });
      expect(requests.run('another', () => kept.runInAsyncScope(look, undefined))).toEqual(['mine', undefined]);
    });
  });
});

describe('emptyAsyncContext', () => {
  it('holds nothing, wherever it is made', () => {
    const empty = requests.run('mine', emptyAsyncContext);
    expect(requests.run('another', () => empty.runInAsyncScope(look, undefined))).toEqual([undefined, undefined]);
  });

  it('holds what was there where Node keeps that under another name, or lets nobody take it out', async () => {
    const renamed = Symbol('renamed');
    class Other {
      constructor() {
        Object.defineProperty(this, renamed, { value: AsyncLocalStorage.snapshot() });
        for (const name of ['context_frame', 'kResourceStore'])
          Object.defineProperty(this, Symbol(name), { value: name });
      }
      runInAsyncScope(this: { [renamed]: ReturnType<typeof AsyncLocalStorage.snapshot> }, task: () => unknown) {
        return this[renamed](task);
      }
    }
    vi.resetModules();
    vi.spyOn(process, 'getBuiltinModule').mockReturnValue({ AsyncResource: Other } as never);
    try {
      const fresh = await import('../../src/core/async-context.js');
      const kept = requests.run('mine', fresh.emptyAsyncContext);
      expect(requests.run('another', () => kept.runInAsyncScope(() => requests.getStore(), undefined))).toBe('mine');
    } finally {
      vi.restoreAllMocks();
      vi.resetModules();
    }
  });
});
