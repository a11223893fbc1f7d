export type { Distribution } from './distribution.js';
export {
  type FaultDirection,
  type FaultProxy,
  type FaultProxyOptions,
  faultProxy,
  type ProxyFault,
} from './fault-proxy.js';
export * from './history/index.js';
export { type MutexConformanceOptions, mutexConformance } from './mutex-conformance.js';
export type { LinkOptions, NodeReference, ServedRequest, SimulatedNetwork } from './network.js';
export type { NodeOptions, SimulatedNode, SimulatedProcess, WaitOptions } from './node.js';
export { type SeededRandom, seededRandom } from './random.js';
export {
  ServiceBusyError,
  type ServiceModel,
  type ServiceModelOptions,
  type ServiceTimes,
  serviceModel,
} from './service-model.js';
export {
  type CheckSeedsOptions,
  checkSeeds,
  type SeedsReport,
  type SimulateOptions,
  type SimulationReport,
  simulate,
} from './simulation.js';
export {
  ConnectionRefusedError,
  ConnectionResetError,
  type FailurePoint,
  type FailureReason,
  NodeCrashedError,
  RemoteError,
  SimulationError,
} from './simulation-error.js';
export type { ConformanceSettings } from './store-bench.js';
export {
  type ConformanceCase,
  type StoreConformanceOptions,
  storeConformance,
} from './store-conformance.js';
export {
  type StoreModelEntry,
  type StoreModelState,
  type StoreOperation,
  type StoreResult,
  storeModel,
} from './store-model.js';
export { type RunAllOptions, type VirtualClock, type VirtualClockOptions, virtualClock } from './virtual-clock.js';
export type { Check, Scenario, World } from './world.js';
