/** What both versions are started with. */
export interface Settings {
  readonly redis: { readonly host: string; readonly port: number };
  /** Charges a card at the bank. A bank that is given a key charges once for it. */
  readonly charge: (order: { readonly id: string }, key?: string) => Promise<unknown>;
  /** After this time BullMQ takes a job away from a worker that does not renew it. BullMQ's default is 30 s. */
  readonly stalledAfterMs: number;
}
