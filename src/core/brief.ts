/**
 * Brief: what `console.log` and `JSON.stringify` show of our objects. All that is inside one is thousands of lines long, runs in circles, and holds
 * what belongs in no log: keys, stored values, the passwords of a client.
 */

/** `toJSON`, and how Node, Deno and Bun ask an object what it shows of itself. */
const askedAs = ['toJSON', /* @__PURE__ */ Symbol.for('nodejs.util.inspect.custom')];

/**
 * Objects of this class show these figures and nothing else.
 *
 * Done by whoever makes one, as often as he likes: done when the module loads, it would keep unused classes in every bundle.
 */
export function showBriefly<T extends object>(prototype: T, figuresOf: (thing: T) => object): void {
  if (Object.hasOwn(prototype, 'toJSON')) return;
  const value = function (this: T) {
    return figuresOf(this);
  };
  for (const name of askedAs) Object.defineProperty(prototype, name, { value, configurable: true });
}
