/** Form: recognises the `FormData` of the platform and that of the undici package. Their classes differ, and each `fetch` knows only its own. */

/**
 * Whether a body is a form whose parts the platform knows. A stream that calls itself a form, as that of the form-data package, can be read only once
 * and is none.
 */
export function isForm(body: unknown): body is FormData {
  if (typeof body !== 'object' || body === null || !(Symbol.iterator in body)) return false;
  if ((body as { readonly [Symbol.toStringTag]?: unknown })[Symbol.toStringTag] !== 'FormData') return false;
  return [...(body as FormData)].every(([, value]) => typeof value === 'string' || value instanceof Blob);
}

/** The same form for the platform, which would write one of another class as the text `[object FormData]`. */
export function ofPlatform(form: FormData): FormData {
  const own = new FormData();
  for (const [name, value] of form) own.append(name, value);
  return own;
}
