/** Shortened: names that come with a request, such as a bearer token or a path with one in it, may be longer than what they are given to takes. */
import { nodeCrypto } from '../coordination/idempotency/hashing.js';

/** The name itself, or its hash if it is longer than that. Whoever takes it checks what it is. */
export function shortened(name: string, longest: number): string {
  if (typeof name !== 'string' || name.length <= longest) return name;
  // JSON, because half a surrogate pair has no UTF-8: two different names would get the same hash.
  return `sha256:${nodeCrypto().createHash('sha256').update(JSON.stringify(name)).digest('base64url')}`;
}
