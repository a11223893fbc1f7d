/** Multi lease: several keys held as one. It is held while all of them are held, and lost with the first that is lost. */
import type { Duration } from '../../core/duration.js';
import { type Lease, LeaseBase, type LeaseRelease } from './lease-handle.js';

/** In order, from the best to the worst. */
const states = ['held', 'suspect', 'released', 'lost'] as const;
const releases = ['released', 'unknown', 'lost'] as const;

export class MultiLease extends LeaseBase {
  readonly leases: readonly Lease[];
  protected readonly policy: string;
  private releasing: Promise<LeaseRelease> | undefined = undefined;

  constructor(leases: readonly LeaseBase[], policy: string) {
    super();
    this.leases = leases;
    this.policy = policy;
    for (const lease of leases) lease.onLoss((reason) => this.noteLoss(reason));
  }

  get key(): string {
    return this.leases.map(({ key }) => key).join(', ');
  }

  get owner(): string {
    return this.leases.map(({ owner }) => owner).join(', ');
  }

  get fence(): number {
    return Math.max(...this.leases.map(({ fence }) => fence));
  }

  get state(): Lease['state'] {
    return states[Math.max(...this.leases.map(({ state }) => states.indexOf(state)))]!;
  }

  remaining(): number {
    return Math.min(...this.leases.map((lease) => lease.remaining()));
  }

  async extend(duration?: Duration): Promise<number> {
    const remaining = await Promise.all(this.leases.map((lease) => lease.extend(duration)));
    return Math.min(...remaining);
  }

  release(): Promise<LeaseRelease> {
    this.releasing ??= this.releaseAll();
    return this.releasing;
  }

  private async releaseAll(): Promise<LeaseRelease> {
    const results = await Promise.all(this.leases.map((lease) => lease.release()));
    return releases[Math.max(...results.map((result) => releases.indexOf(result)))]!;
  }
}
