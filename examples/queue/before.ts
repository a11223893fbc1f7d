/** The endpoint that everybody writes: POST, a job for BullMQ, 202. Each number is a fault that `test/examples/queue.test.ts` demonstrates. */
import { Queue, Worker } from 'bullmq';
import express from 'express';
import type { Settings } from './settings.ts';

export function startApi({ redis }: Settings) {
  const queue = new Queue('orders', { connection: redis });
  const app = express().use(express.json());
  app.post('/orders', async (request, response) => {
    // 1. A user who clicks twice gets two jobs. 2. So does a client that retries because the answer was lost.
    // 3. While Redis is down this waits, without an end.
    const job = await queue.add('order', request.body);
    response.status(202).json({ job: job.id });
  });
  return app;
}

export function startWorker({ redis, charge, stalledAfterMs }: Settings) {
  // 4. A worker that dies after charging has not reported it: the job runs again, and charges again.
  // 5. If workers die twice in the same job, the job counts as failed, and the accepted order is lost.
  const bullmq = { lockDuration: stalledAfterMs, stalledInterval: stalledAfterMs };
  return new Worker('orders', async (job) => charge(job.data), { connection: redis, ...bullmq });
}
