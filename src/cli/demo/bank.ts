/**
 * Bank: the service behind the demo, one per path. It quotes prices, describes a product, charges cards and keeps a ledger.
 *
 * It serves about fifty calls per second and never refuses one: calls beyond that wait. It records everything that was done to it.
 */
import type { Clock } from '../../core/clock.js';
import type { SeededRandom } from '../../testing/random.js';
import { type ServiceModel, serviceModel } from '../../testing/service-model.js';
import { sleepOn } from '../../testing/virtual-clock.js';

export type BankRequest =
  | { readonly kind: 'quote' }
  | { readonly kind: 'product' }
  | { readonly kind: 'charge'; readonly order: string; readonly key?: string | undefined }
  | { readonly kind: 'ledger'; readonly owner: string; readonly run: string; readonly fence?: number | undefined };

/** The conditions for calls: the share that fails, and how long the work takes. */
export interface Weather {
  /** From 0 to 1. Half of the failing calls fail only after their work was done. */
  readonly failing: number;
  /** Mean time of one worker for one call, in milliseconds. */
  readonly meanMs: number;
}

export const fair: Weather = { failing: 0, meanMs: 100 };

/** What has happened at one bank. */
export interface Counts {
  /** Calls, not counting those to the ledger. */
  readonly calls: number;
  /** Loads of the product. */
  readonly loads: number;
  /** Orders that were charged at least once. */
  readonly charged: number;
  /** Charges beyond the first of each order. */
  readonly doubled: number;
  /** Ledger lines written by an owner whose successor had already begun to write. */
  readonly overlaps: number;
  /** Ledger lines refused because their fence was old. */
  readonly refused: number;
  /** The owner of the last line. */
  readonly owner: string | undefined;
}

const workers = 5;

export class Bank {
  private service: ServiceModel;
  private readonly clock: Clock;
  private readonly random: SeededRandom;
  private weatherNow = fair;
  private calls = 0;
  private loads = 0;
  private readonly charges = new Map<string, number>();
  private readonly receipts = new Set<string>();
  private readonly runs = new Set<string>();
  private run: string | undefined = undefined;
  private fence = 0;
  private overlaps = 0;
  private refused = 0;
  private owner: string | undefined = undefined;

  constructor(clock: Clock, random: SeededRandom) {
    this.clock = clock;
    this.random = random;
    this.service = this.restarted();
  }

  /** Forgets all waiting calls, like a restarted service, and works as usual again. */
  restart(): void {
    this.weatherNow = fair;
    this.service = this.restarted();
  }

  set weather(weather: Weather) {
    this.weatherNow = weather;
    this.service.setServiceTime(timeOf(weather));
  }

  async serve(request: BankRequest): Promise<unknown> {
    if (request.kind === 'ledger') return this.append(request);
    this.calls++;
    const fails = this.random() < this.weatherNow.failing;
    if (fails && this.random() < 0.5) {
      await sleepOn(this.clock, 5);
      throw new Error('the bank is out of order');
    }
    await this.service.serve();
    const answer = this.answer(request);
    if (fails) throw new Error('the bank has lost the answer');
    return answer;
  }

  counts(): Counts {
    const doubled = [...this.charges.values()].reduce((sum, times) => sum + times - 1, 0);
    const { calls, loads, overlaps, refused, owner } = this;
    return { calls, loads, charged: this.charges.size, doubled, overlaps, refused, owner };
  }

  private restarted(): ServiceModel {
    const random = this.random.fork(`service ${this.calls}`);
    return serviceModel({ workers, serviceTime: timeOf(this.weatherNow), random, clock: this.clock });
  }

  private answer(request: Exclude<BankRequest, { kind: 'ledger' }>): unknown {
    if (request.kind === 'quote') return { price: 100 };
    if (request.kind === 'product') return { name: 'kelp', load: ++this.loads };
    const { order, key } = request;
    if (key === undefined || !this.receipts.has(key)) {
      this.charges.set(order, (this.charges.get(order) ?? 0) + 1);
      if (key !== undefined) this.receipts.add(key);
    }
    return { receipt: order };
  }

  private append({ owner, run, fence }: Extract<BankRequest, { kind: 'ledger' }>): { accepted: boolean } {
    if (fence !== undefined && fence < this.fence) {
      this.refused++;
      return { accepted: false };
    }
    this.fence = fence ?? this.fence;
    // A run that was seen before and is not the latest has been overtaken.
    if (run !== this.run && this.runs.has(run)) this.overlaps++;
    else this.run = run;
    this.runs.add(run);
    this.owner = owner;
    return { accepted: true };
  }
}

function timeOf({ meanMs }: Weather) {
  return { mean: meanMs, shape: 4 };
}
