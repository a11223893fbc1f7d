/** All tables, in the order in which they are run. */
import type { Table } from '../table.ts';
import { empty } from './empty.ts';
import { retry } from './retry.ts';
import { eventPoint, heard } from './telemetry.ts';
import { expiry, expiryAlone, timeout } from './timeout.ts';
import { burst, wrap } from './wrap.ts';

export const tables: readonly Table[] = [empty, retry, timeout, expiry, expiryAlone, wrap, burst, eventPoint, heard];
