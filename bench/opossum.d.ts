/** The part of opossum that the tables use; the package comes without types. */
declare module 'opossum' {
  import type { EventEmitter } from 'node:events';

  export interface Options {
    timeout?: number;
    errorThresholdPercentage?: number;
    resetTimeout?: number;
    capacity?: number;
    rollingCountTimeout?: number;
    rollingPercentilesEnabled?: boolean;
    enableSnapshots?: boolean;
    rotateBucketController?: EventEmitter;
  }

  export default class CircuitBreaker<Values extends readonly unknown[] = []> {
    constructor(task: (...values: Values) => Promise<unknown>, options?: Options);
    readonly opened: boolean;
    fire(...values: Values): Promise<unknown>;
    open(): void;
    shutdown(): void;
  }
}
