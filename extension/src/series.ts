/** Readings of the last minutes, one value after the other, for the charts. */

import type { Live } from './records';

export interface IPoint {
  /** Seconds since 1970. */
  time: number;
  value: number;
}

/** Values of a bounded time. */
export class Series {
  constructor(readonly windowSeconds: () => number) {}

  get points(): ReadonlyArray<IPoint> {
    return this._points;
  }

  get last(): number | null {
    return this._points.length ? this._points[this._points.length - 1].value : null;
  }

  get highest(): number {
    return this._points.reduce((top, p) => Math.max(top, p.value), 0);
  }

  add(time: number, value: number): void {
    const oldest = time - this.windowSeconds();
    this._points = [...this._points.filter(p => p.time >= oldest), { time, value }];
  }

  private _points: IPoint[] = [];
}

/** Pieces of a line, broken where nothing was read for a while: what happened there is not known. */
export function pieces(
  points: ReadonlyArray<IPoint>,
  longestGap: number
): IPoint[][] {
  const found: IPoint[][] = [];
  for (const point of points) {
    const piece = found[found.length - 1];
    if (piece && point.time - piece[piece.length - 1].time <= longestGap) {
      piece.push(point);
    } else {
      found.push([point]);
    }
  }
  return found;
}

/** Whether the container may use less than its cores: then its own use is what counts, not the machine's. */
export function hasQuota(live: Live): boolean {
  const { cpu } = live.readings;
  return !!cpu.container && cpu.usable_cores.value < (cpu.cores ?? []).length;
}

/** Cores kept busy, of those that may be used; null where that is not known. */
export function busyCores(live: Live): number | null {
  const { cpu } = live.readings;
  if (hasQuota(live)) {
    return cpu.container?.value ?? null;
  }
  return cpu.cores?.length ? cpu.cores.reduce((sum, share) => sum + share, 0) : null;
}

/** What the host took, where that is worth a word: from 1 % on. */
export function stolenShare(live: Live): number | null {
  const share = live.readings.cpu.stolen?.value ?? 0;
  return share >= 0.01 ? share : null;
}

/** The charts' values of one reading, by name; what is not known is absent. */
export function valuesOf(live: Live): Map<string, number> {
  const { memory, gpus = [], network = [] } = live.readings;
  const values = new Map<string, number>();
  const put = (name: string, number: { value: number } | null | undefined) => {
    if (number) {
      values.set(name, number.value);
    }
  };
  const cores = busyCores(live);
  if (cores !== null) {
    values.set('cpu', cores);
  }
  const { cores: each = [], stolen } = live.readings.cpu;
  if (stolen) {
    values.set('stolen', stolen.value * each.length);
  }
  put(
    'memory',
    memory.container_limit_bytes
      ? memory.container_used_bytes
      : memory.machine_used_bytes
  );
  const outside = network.filter(one => one.interface !== 'lo');
  if (outside.length) {
    values.set('receive', outside.reduce((sum, n) => sum + n.receive.value, 0));
    values.set('transmit', outside.reduce((sum, n) => sum + n.transmit.value, 0));
  }
  for (const gpu of gpus) {
    const name = `gpu${gpu.index}.${gpu.mig_instance ?? ''}`;
    put(`${name}.busy`, gpu.utilization);
    put(`${name}.memory`, gpu.memory_used_bytes);
  }
  return values;
}
