/** The settings of both versions. */
export interface Settings {
  readonly redis: { readonly host: string; readonly port: number };
  /** Charges a card at the bank. With a key, the bank charges once per key. */
  readonly charge: (order: { readonly id: string }, key?: string) => Promise<unknown>;
  /** After this time without a renewal, BullMQ takes a job away from its worker. BullMQ's default is 30 s. */
  readonly stalledAfterMs: number;
}
