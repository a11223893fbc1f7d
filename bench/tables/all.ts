/** All tables, in the order in which they are run. */
import type { Table } from '../table.ts';
import { breaker, permit } from './breaker.ts';
import { cacheHit, cachePeek, cachePeekMany, cacheWaiter } from './cache.ts';
import { empty } from './empty.ts';
import { idle } from './idle.ts';
import { mutex, mutexWaiters } from './mutex.ts';
import { redisLock } from './redis-lock.ts';
import { refusal } from './refusal.ts';
import { retry } from './retry.ts';
import { memoryRead, postgresRead, postgresWrite, redisRead, redisWrite } from './stores.ts';
import { eventPoint, heard } from './telemetry.ts';
import { expiry, expiryAlone, timeout } from './timeout.ts';
import { waiters } from './waiters.ts';
import { window } from './window.ts';
import { burst, wrap } from './wrap.ts';

export const tables: readonly Table[] = [
  ...[empty, retry, timeout, expiry, expiryAlone],
  ...[breaker, permit, refusal, window, idle, waiters],
  ...[mutex, mutexWaiters, redisLock],
  ...[memoryRead, redisRead, redisWrite, postgresRead, postgresWrite],
  ...[wrap, burst, eventPoint, heard],
  ...[cacheHit, cachePeek, cachePeekMany, cacheWaiter],
];
