/** Lets Node run the sources, which import each other by `.js`, the extension of the built files. Must be imported first. */
import { registerHooks } from 'node:module';

registerHooks({
  resolve(specifier, context, next) {
    const isSource = /^\..*\.js$/.test(specifier) && /\.ts$/.test(context.parentURL ?? '');
    return next(isSource ? `${specifier.slice(0, -3)}.ts` : specifier, context);
  },
});
