/** Processor time of this thread, in microseconds: what else runs on the machine does not count. */
export function threadUs(): number {
  // On Linux the time of a thread moves by the tick of the scheduler, unless that of the whole process has just been read. Node 22 has only that.
  const ofProcess = process.cpuUsage();
  const { user, system } = process.threadCpuUsage?.() ?? ofProcess;
  return user + system;
}
