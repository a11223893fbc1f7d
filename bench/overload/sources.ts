/** Lets Node run the sources: they name each other `.js`, as what is built of them will be called. Import it first. */
import { registerHooks } from 'node:module';

registerHooks({
  resolve(specifier, context, next) {
    const isSource =
      specifier.startsWith('.') && specifier.endsWith('.js') && !context.parentURL?.includes('node_modules');
    return next(isSource ? `${specifier.slice(0, -3)}.ts` : specifier, context);
  },
});
