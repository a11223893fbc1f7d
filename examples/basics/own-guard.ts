/**
 * A custom guard: decide whether a call may start, and learn from how it ended.
 *
 * This guard lets no call through while a service is under maintenance. It learns of that from the service itself.
 */
import { type Guard, isRejected, type Permit, pipeline, RejectedError, refuse, retry } from 'holdfast';

class MaintenanceError extends Error {
  readonly untilMs: number;
  constructor(untilMs: number) {
    super('under maintenance');
    this.untilMs = untilMs;
  }
}

/** Refuses calls until the time given in a `MaintenanceError`. */
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

// A retry around it waits for as long as the refusal says, and wastes no attempt in between.
const patient = pipeline(retry({ attempts: 2 }), guard);
console.log(await patient.execute(service), 'with', calls, 'calls of the service');
