/** A command that was called wrongly: its message is for the terminal, its exit code is 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  /** How the command is called, where that helps. */
  readonly help: string | undefined;

  constructor(message: string, help?: string) {
    super(message);
    this.help = help;
  }
}
