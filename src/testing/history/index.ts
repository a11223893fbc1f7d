export {
  History,
  type HistoryOptions,
  type Invocation,
  type OpenOperation,
  type RecordedOperation,
  type RecordedOutcome,
  type RunOptions,
} from './history.js';
export {
  checkLinearizability,
  type LinearizabilityOptions,
  type LinearizabilityVerdict,
  type Linearizable,
  type NotLinearizable,
  type Undecided,
} from './linearizability.js';
export {
  type LockOperation,
  type LockResult,
  type LockState,
  lockModel,
  type Model,
  type Observation,
  type RegisterOperation,
  type RegisterOptions,
  type RegisterResult,
  registerModel,
} from './models.js';
