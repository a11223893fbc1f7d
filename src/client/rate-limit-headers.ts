/*!
 * This bundle contains structured-headers.
 *
 * MIT License
 *
 * Copyright (c) 2018-2026 Evert Pot
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
/**
 * Rate limit headers: how much of its quota the service says is left, and for how long.
 *
 * Promise: parsing never throws, whatever a header holds. At most the first 1,000 characters of a header are read. A value that makes no sense is
 * ignored.
 * After: draft-ietf-httpapi-ratelimit-headers (`RateLimit: "default";r=50;t=30`, and the dictionary and single headers of its earlier versions), RFC
 * 9651, and the `X-RateLimit-` and `X-Rate-Limit-` headers in common use.
 */
import { parseDictionary, parseList } from 'structured-headers';
import { headerOf, isInstant, msUntilReset, serverNowMs } from '../policies/retry/retry-after.js';

/** What is left of a quota. */
export interface Quota {
  /** Requests that may still be made. */
  readonly remaining: number;
  /** Milliseconds until the quota is full again. */
  readonly resetMs: number;
  /** Requests that a full quota allows, if stated. */
  readonly limit: number | undefined;
  /** Whether the reset was given as an instant, so that it does not matter how old the statement is. */
  readonly isInstant?: boolean;
}

const longestHeader = 1_000;

/** The most restrictive of all quotas that these headers state. */
export function quotaOf(headers: object, wallNowMs: number): Quota | undefined {
  try {
    const standard = headerOf(headers, 'ratelimit', longestHeader);
    if (standard !== undefined) return structuredQuota(standard, headerOf(headers, 'ratelimit-policy', longestHeader));
    return (
      singleQuota(headers, 'ratelimit', wallNowMs) ??
      singleQuota(headers, 'x-ratelimit', wallNowMs) ??
      singleQuota(headers, 'x-rate-limit', wallNowMs)
    );
  } catch {
    // Not a structured field, or a getter of a foreign object threw.
    return undefined;
  }
}

function structuredQuota(standard: string, policy: string | undefined): Quota | undefined {
  if (/^\s*[a-z]+=/.test(standard)) return dictionaryQuota(standard);
  const limits = new Map<unknown, unknown>();
  for (const [name, parameters] of policy === undefined ? [] : parseList(policy)) {
    limits.set(String(name), parameters.get('q'));
  }
  let tightest: Quota | undefined;
  for (const [name, parameters] of parseList(standard)) {
    const quota = quotaFrom(parameters.get('r'), msOf(parameters.get('t')), limits.get(String(name)));
    if (quota !== undefined && (tightest === undefined || msPerRequest(quota) > msPerRequest(tightest)))
      tightest = quota;
  }
  return tightest;
}

/** `RateLimit: limit=100, remaining=50, reset=5`, of the draft's versions before 8. */
function dictionaryQuota(standard: string): Quota | undefined {
  const members = parseDictionary(standard);
  const item = (name: string) => members.get(name)?.[0];
  return quotaFrom(item('remaining'), msOf(item('reset')), item('limit'));
}

/** Separate headers for limit, remaining and reset. */
function singleQuota(headers: object, prefix: string, wallNowMs: number): Quota | undefined {
  // An absent or malformed value becomes NaN, which is not a valid amount.
  const number = (name: string) =>
    Number(/^\s*(\d{1,15})(?:\.\d{1,9})?\s*(?:$|[,;])/.exec(headerOf(headers, name) ?? '')?.[1]);
  const reset = number(`${prefix}-reset`);
  if (Number.isNaN(reset)) return undefined;
  const nowMs = serverNowMs((name) => headerOf(headers, name), wallNowMs);
  const quota = quotaFrom(number(`${prefix}-remaining`), msUntilReset(reset, nowMs), number(`${prefix}-limit`));
  return quota !== undefined && isInstant(reset) ? { ...quota, isInstant: true } : quota;
}

/** Undefined for anything but a number. */
function msOf(seconds: unknown): number | undefined {
  return typeof seconds === 'number' ? seconds * 1_000 : undefined;
}

function quotaFrom(remaining: unknown, resetMs: unknown, limit: unknown): Quota | undefined {
  if (!isAmount(remaining) || !isAmount(resetMs)) return undefined;
  return { remaining, resetMs, limit: isAmount(limit) ? limit : undefined };
}

function isAmount(value: unknown): value is number {
  return typeof value === 'number' && value >= 0;
}

function msPerRequest({ remaining, resetMs }: Quota): number {
  return resetMs / Math.max(remaining, 1e-3);
}
