/**
 * `npm run simulation`: 500 seeds of ten simulated minutes each, through `standard()` and through pipelines of arbitrary policies.
 *
 * `-- --seeds 20` runs fewer, `-- --seed 17` replays one. The run stops at the first seed that fails and prints it; replaying that seed fails again.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const checkout = fileURLToPath(new URL('../../', import.meta.url));
const { values } = parseArgs({ options: { seeds: { type: 'string', default: '500' }, seed: { type: 'string' } } });
for (const [name, value] of Object.entries(values)) {
  if (!/^[1-9]\d{0,8}$/.test(value)) throw new Error(`--${name} must be a whole number from 1, got ${value}`);
}
const vitest = join(checkout, 'node_modules', 'vitest', 'vitest.mjs');
const options = ['run', '--project', 'unit', 'test/simulation/long-worlds.test.ts', '--disable-console-intercept'];
const { status } = spawnSync(process.execPath, [vitest, ...options], {
  cwd: checkout,
  stdio: 'inherit',
  env: {
    ...process.env,
    // Hooks throw on purpose, and each would print a warning.
    NODE_NO_WARNINGS: '1',
    HOLDFAST_SIMULATION_SEEDS: values.seeds,
    ...(values.seed === undefined ? {} : { HOLDFAST_SEED: values.seed }),
  },
});
process.exitCode = status ?? 1;
