/**
 * A reporter that names every test that failed and then passed, with its first failure.
 *
 * In CI a failed test runs a second time (vitest.config.ts), because a machine may stall at the wrong moment. That must not hide a race of ours: each
 * such test is printed, and counts as a bug of the test or of the source until somebody knows which.
 */
import { relative } from 'node:path';
import type { Reporter, TestCase } from 'vitest/node';

export default class SecondTry implements Reporter {
  readonly #lines: string[] = [];

  onTestCaseResult(test: TestCase): void {
    if (!test.diagnostic()?.flaky) return;
    const [error] = test.result().errors ?? [];
    const file = relative(process.cwd(), test.module.moduleId);
    this.#lines.push(
      `at the second try: ${file} > ${test.fullName}: ${error?.message.split('\n')[0] ?? 'no error told'}`,
    );
  }

  onTestRunEnd(): void {
    for (const line of this.#lines) console.log(line);
  }
}
