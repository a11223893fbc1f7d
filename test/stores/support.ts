/** What the tests of stores share: values as text, and the failure that a verb should end with. */
import { StoreError } from 'holdfast';
import { expect } from 'vitest';

export const bytes = (text: string) => new TextEncoder().encode(text);
export const text = (value: Uint8Array | undefined) => value && new TextDecoder().decode(value);

export async function failure(promise: Promise<unknown>): Promise<StoreError> {
  const error = await promise.catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(StoreError);
  return error as StoreError;
}
