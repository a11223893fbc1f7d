/**
 * A guard of your own: decide whether a call may start, and learn from how it ended.
 *
 * This one lets nothing through while a service is under maintenance, which it learns from the service itself.
 */
import { type Guard, isRejected, type Permit, pipeline, RejectedError, refuse, retry } from 'holdfast';

class MaintenanceError extends Error {
  readonly untilMs: number;
  constructor(untilMs: number) {
    super('under maintenance');
    this.untilMs = untilMs;
  }
}

/** Holds calls back until the time that a `MaintenanceError` has told. */
function maintenanceWindow(): Guard {
  const name = 'maintenance-window';
  let untilMs = 0;
  const permit: Permit = {
    settle(outcome) {
      if (!outcome.ok && outcome.error instanceof MaintenanceError) untilMs = outcome.error.untilMs;
    },
    release() {},
  };
  return {
    name,
    admit({ clock }) {
      const retryAfterMs = untilMs - clock.now();
      if (retryAfterMs <= 0) return permit;
      return refuse(new RejectedError('ERR_MAINTENANCE', `"${name}" holds calls back`, { policy: name, retryAfterMs }));
    },
  };
}

let calls = 0;
const service = () => {
  calls++;
  if (performance.now() < backAtMs) throw new MaintenanceError(backAtMs);
  return 'done';
};
const backAtMs = performance.now() + 60;

const guard = maintenanceWindow();
const impatient = pipeline(guard);
await impatient.attempt(service);
const refused = await impatient.attempt(service);
console.log(refused.ok ? '' : String(refused.error), '- never started:', !refused.ok && isRejected(refused.error));

// A retry around it waits as long as the refusal says: no attempt is wasted meanwhile.
const patient = pipeline(retry({ attempts: 2 }), guard);
console.log(await patient.execute(service), 'with', calls, 'calls of the service');
