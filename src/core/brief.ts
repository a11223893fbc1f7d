/**
 * Brief: what `console.log` and `JSON.stringify` show of our objects. Their full contents are thousands of lines long, circular, and hold what must
 * not be logged: keys, stored values, the passwords of a client.
 */

/** `toJSON`, and the method by which Node, Deno and Bun ask an object for its representation. */
const askedAs = ['toJSON', /* @__PURE__ */ Symbol.for('nodejs.util.inspect.custom')];

/**
 * Makes objects of this class show these figures and nothing else.
 *
 * Called by the code that creates such objects, and may be called repeatedly. Doing this when the module loads would keep unused classes in every
 * bundle.
 */
export function showBriefly<T extends object>(prototype: T, figuresOf: (thing: T) => object): void {
  if (Object.hasOwn(prototype, 'toJSON')) return;
  const value = function (this: T) {
    return figuresOf(this);
  };
  for (const name of askedAs) Object.defineProperty(prototype, name, { value });
}
