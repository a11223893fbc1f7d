/** Runs all of the examples, one after the other. Each also runs by itself: `node timeout.ts`. */
for (const file of [
  'timeout.ts',
  'retry-with-budget.ts',
  'deadline.ts',
  'fallback.ts',
  'own-guard.ts',
  'own-strategy.ts',
  'virtual-clock.ts',
]) {
  console.log(`\n# ${file}`);
  await import(`./${file}`);
}

export {};
