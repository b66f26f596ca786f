/** What the panel and the status bar show; holds and signals, knows nothing of how it looks. */

import { VDomModel } from '@jupyterlab/ui-components';
import { ServerConnection } from '@jupyterlab/services';

import { KernelLinks } from './kernels';
import type { History, KernelState, Live, Run } from './records';
import { requestRecord, RequestError, stopService } from './request';
import { Series, valuesOf } from './series';
import { LiveStream, StreamState } from './stream';
import { version } from './version';

export interface IVersions {
  front: string;
  server?: string;
  kernel?: string;
}

export class PanelModel extends VDomModel {
  constructor(
    readonly settings: ServerConnection.ISettings,
    readonly stream: LiveStream,
    readonly links: KernelLinks | null
  ) {
    super();
    stream.frame.connect(this._onFrame, this);
    stream.stateChanged.connect(this._emit, this);
    links?.changed.connect(this._emit, this);
  }

  /** The newest reading. */
  get live(): Live | null {
    return this._live;
  }

  get streamState(): StreamState {
    return this.stream.state;
  }

  /** What the current notebook's kernel tells. */
  get kernelState(): KernelState | null {
    return this.links?.state ?? null;
  }

  get runs(): Run[] {
    return this._runs;
  }

  /** Why the history is not there, if it is not. */
  get historyError(): string | null {
    return this._historyError;
  }

  /** Numbers of the runs to compare, in the order in which they were picked; two at most. */
  get picked(): number[] {
    return this._picked;
  }

  /** Minutes that the charts show. */
  get windowMinutes(): number {
    return this._windowMinutes;
  }

  set windowMinutes(value: number) {
    this._windowMinutes = value;
    this._emit();
  }

  /** How many runs are listed. */
  set historyLength(value: number) {
    if (value !== this._historyLength) {
      this._historyLength = value;
      if (this._live) {
        void this.refreshHistory();
      }
    }
  }

  series(name: string): Series {
    let found = this._series.get(name);
    if (!found) {
      found = new Series(() => 60 * this._windowMinutes);
      this._series.set(name, found);
    }
    return found;
  }

  /** The three versions, where they are known and not all the same. */
  get mismatch(): IVersions | null {
    const versions = {
      front: version,
      server: this._live?.version,
      kernel: this.kernelState?.version
    };
    const known = [versions.server, versions.kernel].filter(Boolean);
    return known.some(other => other !== version) ? versions : null;
  }

  pick(run: number, picked: boolean): void {
    const others = this._picked.filter(id => id !== run);
    this._picked = picked ? [...others, run].slice(-2) : others;
    this._emit();
  }

  async refreshHistory(): Promise<void> {
    try {
      const path = `runs?limit=${this._historyLength}`;
      const history = await requestRecord<History>(this.settings, path);
      this._runs = history.runs;
      this._historyError = null;
    } catch (error) {
      this._historyError =
        error instanceof RequestError ? error.message : String(error);
    }
    this._emit();
  }

  async stopService(pid: number): Promise<void> {
    await stopService(this.settings, pid);
    this._stopped.add(pid);
    this._emit();
  }

  /** Served bundles, without those that were stopped since the server last looked. */
  get services(): NonNullable<Live['services']> {
    return (this._live?.services ?? []).filter(s => !this._stopped.has(s.pid));
  }

  private _onFrame(_: LiveStream, live: Live): void {
    const before = this._live;
    this._live = live;
    const time = Date.parse(live.readings.taken_at) / 1000;
    for (const [name, value] of valuesOf(live)) {
      this.series(name).add(time, value);
    }
    const there = new Set((live.services ?? []).map(s => s.pid));
    this._stopped.forEach(pid => there.has(pid) || this._stopped.delete(pid));
    if (!before || before.newest_run !== live.newest_run) {
      void this.refreshHistory();
    }
    this._emit();
  }

  private _emit(): void {
    this.stateChanged.emit();
  }

  private _live: Live | null = null;
  private _runs: Run[] = [];
  private _historyError: string | null = null;
  private _picked: number[] = [];
  private _series = new Map<string, Series>();
  private _stopped = new Set<number>();
  private _windowMinutes = 3;
  private _historyLength = 30;
}
