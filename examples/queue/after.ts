/** The same endpoint with holdfast: a key for the request, and keys derived from it for the job and for what the job does. */
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
  // The owner of the key: here there is one customer; in your service it is the authenticated user.
  app.use('/orders', idempotent({ store, scope: () => 'customer', required: true, lease: '2s', onLost: 'rerun' }));
  app.post('/orders', async (request, response) => {
    // The job's id derives from the request's key, so a second run of this handler adds no job.
    const jobId = request.idempotency!.downstreamKey('job');
    // Retried for three days, so that no outage of the bank loses an accepted order.
    const again = { attempts: 20, backoff: { type: 'exponential', delay: 500 } };
    await enqueue.execute(() => queue.add('order', request.body, { jobId, ...again }));
    response.status(202).json({ job: jobId });
  });
  return app;
}

export function startWorker({ redis, charge, stalledAfterMs }: Settings) {
  const store = redisStore(new Redis({ ...redis, autoResendUnfulfilledCommands: false }), { prefix: 'jobs' });
  // More attempts than the queue makes: the queue decides when to give up.
  const once = idempotency({ store, ttl: '7d', lease: '2s', onLost: 'rerun', attempts: 100 });
  const bullmq = { lockDuration: stalledAfterMs, stalledInterval: stalledAfterMs, maxStalledCount: 1_000 };
  // A charge whose result was not recorded is made again with the same key, which the bank recognises.
  const work = (job: Job) =>
    once.run(job.id!, ({ downstreamKey }) => charge(job.data, downstreamKey('charge')), { scope: 'orders' });
  return new Worker('orders', work, { connection: redis, ...bullmq });
}
