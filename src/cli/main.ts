#!/usr/bin/env node
/**
 * `npx holdfast`: finds the command and runs it. Each command is loaded only when it is used.
 *
 * Promise: exit code 0 on success, 1 if the command found what it looks for, 2 if it was used wrongly.
 */
import { readFileSync } from 'node:fs';
import { isMainThread } from 'node:worker_threads';
import { UsageError } from './usage-error.js';

type Command = (words: readonly string[], program: string) => Promise<number>;

const commands: Readonly<Record<string, { readonly does: string; readonly load: () => Promise<Command> }>> = {
  demo: {
    does: 'shows the same users on a naked and on a protected path, through six acts of trouble',
    load: () => import('./demo/demo.js').then(({ demo }) => demo),
  },
  simulate: {
    does: 'plays your pipeline through a brown-out, a spike, a slow and a dead dependency',
    load: () => import('./simulate/command.js').then(({ simulate }) => simulate),
  },
};

const help = [
  'holdfast COMMAND',
  '',
  ...Object.entries(commands).map(([name, { does }]) => `  ${name.padEnd(10)} ${does}`),
  '',
  'holdfast COMMAND --help tells more of a command, holdfast --version the version.',
].join('\n');

async function main([name, ...words]: readonly string[], program: string): Promise<number> {
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    console.log(help);
    return name === undefined ? 2 : 0;
  }
  if (name === '--version' || name === '-v') {
    // Relative to the folder that this file is built into.
    const manifest = readFileSync(new URL('../package.json', import.meta.url), 'utf8');
    console.log((JSON.parse(manifest) as { version: string }).version);
    return 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  try {
    if (command === undefined) throw new UsageError(`there is no command "${name}"`, help);
    const run = await command.load();
    return await run(words, program);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(
      error.help === undefined ? `holdfast: ${error.message}` : `holdfast: ${error.message}\n\n${error.help}`,
    );
    return 2;
  }
}

if (isMainThread) {
  main(process.argv.slice(2), process.argv[1] ?? '').then((code) => {
    process.exitCode = code;
  });
} else {
  // A scenario runs in its own thread, whose timers may be virtual.
  import('./simulate/player.js').then(({ playForParent }) => playForParent());
}
