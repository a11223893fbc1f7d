/** The part of redlock 4 that the tables use; the package comes without types. */
declare module 'redlock' {
  interface Lock {
    unlock(): Promise<unknown>;
  }

  export default class Redlock {
    constructor(clients: readonly unknown[], options?: { readonly retryCount?: number });
    lock(key: string, ttlMs: number): Promise<Lock>;
  }
}
