/* The records that travel to the browser. Made by `jlpm records` from the published schemas: do not edit. */

export type AnyOfThem =
  | Live
  | Readings
  | Number
  | CpuReading
  | MemoryReading
  | GpuReading
  | GpuProcess
  | NetworkReading
  | StorageReading
  | Note
  | KernelUse
  | GpuMemory
  | GpuHolder
  | Service
  | KernelState
  | HeldModel
  | Task
  | Result
  | CellUse
  | GpuAccount
  | History
  | Run;

/**
 * One look at the machine, at the kernels of one Jupyter server, and at what is being served.
 */
export interface Live {
  record: 'live';
  version: string;
  readings: Readings;
  kernels?: KernelUse[];
  gpus?: GpuMemory[];
  services?: Service[];
  newest_run?: number;
  notes?: Note[];
}
/**
 * One look at the machine; rates are means over `interval`.
 */
export interface Readings {
  record: 'readings';
  taken_at: string;
  interval: Number;
  cpu: CpuReading;
  memory: MemoryReading;
  gpus?: GpuReading[];
  network?: NetworkReading[];
  storage: StorageReading;
  notes?: Note[];
}
/**
 * One value with its unit, its source and how sure it is.
 *
 *     Raises:
 *         ValueError: the value is not finite, the interval is reversed, or a derived number
 *             does not say how far its inputs can be trusted.
 */
export interface Number {
  value: number;
  unit:
    | 'B'
    | 'B/s'
    | 'FLOP'
    | 'FLOP/B'
    | 'FLOP/s'
    | 'Hz'
    | 'J'
    | 'USD'
    | 'USD/GB'
    | 'USD/h'
    | 'USD/item'
    | 'USD/month'
    | 'W'
    | 'core'
    | 'device'
    | 'item'
    | 'item/s'
    | 'layer'
    | 'node'
    | 'op'
    | 'op/s'
    | 'parameter'
    | 'point'
    | 'ratio'
    | 'replica'
    | 'request'
    | 'request/s'
    | 's'
    | 's/B'
    | 's/FLOP'
    | 'token'
    | 'token/s'
    | 'worker'
    | '°C';
  source: 'assumed' | 'datasheet' | 'derived' | 'estimated' | 'measured' | 'user';
  method: string;
  interval?: never[] | null;
  interval_kind?: string | null;
  n?: number | null;
  environment?: string | null;
  trust?: ('assumed' | 'datasheet' | 'derived' | 'estimated' | 'measured' | 'user') | null;
  inputs?: string[];
  quality?: 'extrapolated' | 'noisy' | 'ok';
}
/**
 * The processor.
 */
export interface CpuReading {
  name: string;
  usable_cores: Number;
  machine?: Number | null;
  process?: Number | null;
  container?: Number | null;
  cores?: number[];
  load_1min?: Number | null;
  frequency?: Number | null;
  power?: Number | null;
  stalled?: Number | null;
  throttled?: Number | null;
  stolen?: Number | null;
}
/**
 * Main memory.
 */
export interface MemoryReading {
  process_bytes?: Number | null;
  process_unique_bytes?: Number | null;
  machine_used_bytes?: Number | null;
  machine_total_bytes?: Number | null;
  container_used_bytes?: Number | null;
  container_limit_bytes?: Number | null;
  usable_bytes?: Number | null;
  swap_used_bytes?: Number | null;
  stalled?: Number | null;
}
/**
 * One GPU, or one MIG instance of it, as its driver sees it.
 */
export interface GpuReading {
  index: number;
  mig_instance?: number | null;
  name: string;
  uuid?: string | null;
  utilization?: Number | null;
  memory_utilization?: Number | null;
  memory_used_bytes?: Number | null;
  memory_total_bytes?: Number | null;
  power?: Number | null;
  power_limit?: Number | null;
  temperature?: Number | null;
  sm_clock?: Number | null;
  memory_clock?: Number | null;
  pcie_receive?: Number | null;
  pcie_transmit?: Number | null;
  throttled?: string[];
  processes?: GpuProcess[];
}
/**
 * One process on one GPU.
 */
export interface GpuProcess {
  pid: number;
  name?: string | null;
  ours: boolean;
  memory_bytes?: Number | null;
  utilization?: Number | null;
}
/**
 * One network interface that this process can see.
 */
export interface NetworkReading {
  interface: string;
  receive: Number;
  transmit: Number;
}
/**
 * What this process reads from and writes to storage; pages served from memory are not counted.
 */
export interface StorageReading {
  read?: Number | null;
  write?: Number | null;
  stalled?: Number | null;
}
/**
 * Something the reader of a result must know: a reading that is missing and why, a doubt, a remedy.
 */
export interface Note {
  code: string;
  text: string;
}
/**
 * What one kernel takes of the machine, its child processes included.
 */
export interface KernelUse {
  kernel_id: string;
  name: string;
  path?: string | null;
  busy?: boolean;
  pid?: number | null;
  num_processes?: number;
  cpu?: Number | null;
  memory_bytes?: Number | null;
  gpu_memory_bytes?: Number | null;
  gpu_utilization?: Number | null;
}
/**
 * Whose the memory of one GPU, or one MIG instance, is; holders, rest and free add up to all of it.
 */
export interface GpuMemory {
  index: number;
  mig_instance?: number | null;
  uuid?: string | null;
  holders?: GpuHolder[];
  rest_bytes: Number;
  free_bytes: Number;
}
/**
 * Whoever holds memory of one GPU: a kernel of this server with its child processes, or another process.
 */
export interface GpuHolder {
  kernel_id?: string | null;
  name: string;
  pids: number[];
  memory_bytes?: Number | null;
  utilization?: Number | null;
}
/**
 * A bundle that is being served.
 */
export interface Service {
  record: 'service';
  folder: string;
  url: string;
  grpc_address: string | null;
  pid: number;
}
/**
 * What a kernel with this package loaded tells the panel.
 */
export interface KernelState {
  record: 'kernel_state';
  version: string;
  pid: number;
  models?: HeldModel[];
  inputs?: string[];
  running?: Task | null;
  results?: Result[];
  cells?: CellUse[];
  gpus?: GpuAccount[];
  notes?: Note[];
}
/**
 * A variable of the notebook that is a model.
 */
export interface HeldModel {
  name: string;
  type: string;
  num_parameters: number;
  weight_bytes: number;
  device: string;
  inputs_known: boolean;
}
/**
 * A verb that is running.
 */
export interface Task {
  verb: string;
  share: number;
  text: string;
}
/**
 * What a verb found, in one line.
 */
export interface Result {
  verb: string;
  headline: string;
  taken_at: string;
}
/**
 * What running one cell took of its kernel's process.
 */
export interface CellUse {
  number: number;
  cell_id?: string | null;
  first_line: string;
  raised?: string | null;
  wall_time: Number;
  cpu_time: Number;
  memory_growth_bytes?: Number | null;
  gpu_memory_growth_bytes?: Number | null;
  gpu_time?: Number | null;
}
/**
 * Whose memory of one GPU it is, as this kernel sees it; the parts add up to what the driver reports.
 */
export interface GpuAccount {
  index: number;
  uuid?: string | null;
  tensors_bytes: Number;
  cached_bytes: Number;
  context_bytes?: Number | null;
  elsewhere_bytes: Number;
  free_bytes: Number;
}
/**
 * What was measured, newest first.
 */
export interface History {
  record: 'history';
  store: string;
  runs: Run[];
}
/**
 * One line of the history.
 */
export interface Run {
  id: number;
  verb: string;
  model: string;
  model_digest: string;
  taken_at: string;
  summary: string;
}
