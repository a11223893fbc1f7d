/** A command that was used wrongly. Its message is printed to the terminal, and its exit code is 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  /** The usage text, if it helps. */
  readonly help: string | undefined;

  constructor(message: string, help?: string) {
    super(message);
    this.help = help;
  }
}
