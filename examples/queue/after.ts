/** The same endpoint with holdfast: a key for the request, the same for its job, the same for what the job does. */
import { type Job, Queue, Worker } from 'bullmq';
import express from 'express';
import { idempotency, pipeline, timeout } from 'holdfast';
import { idempotency as idempotent } from 'holdfast/express';
import { redisStore } from 'holdfast/redis';
import { Redis } from 'ioredis';
import type { Settings } from './settings.ts';

export function startApi({ redis }: Settings) {
  const store = redisStore(new Redis({ ...redis, autoResendUnfulfilledCommands: false }), { prefix: 'api' });
  const queue = new Queue('orders', { connection: redis });
  const enqueue = pipeline(timeout('2s'));
  const app = express().use(express.json());
  // Whose key it is: here everybody is one customer; yours is what the login says.
  app.use('/orders', idempotent({ store, scope: () => 'customer', required: true, lease: '2s', onLost: 'rerun' }));
  app.post('/orders', async (request, response) => {
    // The job's id comes from the request's key, so a second run of this handler adds nothing.
    const jobId = request.idempotency!.downstreamKey('job');
    // Tried for three days, so that no outage of the bank loses an order that was accepted.
    const again = { attempts: 20, backoff: { type: 'exponential', delay: 500 } };
    await enqueue.execute(() => queue.add('order', request.body, { jobId, ...again }));
    response.status(202).json({ job: jobId });
  });
  return app;
}

export function startWorker({ redis, charge, stalledAfterMs }: Settings) {
  const store = redisStore(new Redis({ ...redis, autoResendUnfulfilledCommands: false }), { prefix: 'jobs' });
  // More attempts than the queue makes: it decides when to give up.
  const once = idempotency({ store, ttl: '7d', lease: '2s', onLost: 'rerun', attempts: 100 });
  const bullmq = { lockDuration: stalledAfterMs, stalledInterval: stalledAfterMs, maxStalledCount: 1_000 };
  // What was charged and not said is charged again with the same key, which the bank knows.
  const work = (job: Job) =>
    once.run(job.id!, ({ downstreamKey }) => charge(job.data, downstreamKey('charge')), { scope: 'orders' });
  return new Worker('orders', work, { connection: redis, ...bullmq });
}
