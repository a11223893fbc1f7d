/**
 * The endpoint everybody writes: POST, a job for BullMQ, 202. Each number is a fault that `test/examples/queue.test.ts` shows.
 */
import { Queue, Worker } from 'bullmq';
import express from 'express';
import type { Settings } from './settings.ts';

export function startApi({ redis }: Settings) {
  const queue = new Queue('orders', { connection: redis });
  const app = express().use(express.json());
  app.post('/orders', async (request, response) => {
    // 1. Whoever clicks twice has two jobs. 2. So has whoever asks again because the answer was lost.
    // 3. While Redis is away this waits, without an end.
    const job = await queue.add('order', request.body);
    response.status(202).json({ job: job.id });
  });
  return app;
}

export function startWorker({ redis, charge, stalledAfterMs }: Settings) {
  // 4. A worker that dies after charging has not said so: the job runs again, and charges again.
  // 5. One that dies twice in the same job: the job counts as failed, and the order that was accepted is lost.
  const bullmq = { lockDuration: stalledAfterMs, stalledInterval: stalledAfterMs };
  return new Worker('orders', async (job) => charge(job.data), { connection: redis, ...bullmq });
}
