/** Group: what a registry of circuit breakers and its members know about each other. */
import type { Rank } from '../../structures/ranked-cache.js';
import type { GroupSettings } from './settings.js';

/** A circuit breaker as its registry sees it. */
export interface GroupMember {
  joinGroup(group: Group): void;
  leaveGroup(): void;
  /** What forgetting the member now would cost. */
  rank(): Rank;
}

/** The registry as its circuit breakers see it. */
export interface Group {
  /** Settings of the member that joined last. Members with equal settings share one object, which makes each member smaller. */
  settings: GroupSettings | undefined;
  /** Whether one more member may open now. */
  mayOpen(nowMs: number): boolean;
  /** A member opened. */
  opened(): void;
  /** A member is no longer open. */
  closed(): void;
}

/** Whether a policy can be a member of a group. */
export function isGroupMember(policy: object): policy is GroupMember {
  return typeof (policy as Partial<GroupMember>).joinGroup === 'function';
}
