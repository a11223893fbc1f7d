/** The little of opossum that the tables use; the package comes without types. */
declare module 'opossum' {
  export default class CircuitBreaker {
    constructor(task: () => Promise<unknown>, options: { timeout: number; errorThresholdPercentage?: number });
    fire(): Promise<unknown>;
    shutdown(): void;
  }
}
