/** Follows the current notebook's kernel: what it tells by the comm that the Python half opens there. */

import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Kernel, KernelMessage } from '@jupyterlab/services';
import { IDisposable } from '@lumino/disposable';
import { ISignal, Signal } from '@lumino/signaling';

import type { KernelState } from './records';

/** As `frontends/kernel.py` has it. */
export const TARGET = 'aimass-lab';

export class KernelLinks implements IDisposable {
  constructor(private _tracker: INotebookTracker) {
    _tracker.widgetAdded.connect(this._watch, this);
    _tracker.forEach(panel => this._watch(_tracker, panel));
    _tracker.currentChanged.connect(this._emit, this);
  }

  /** The current notebook, its kernel, or what it tells is another. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get panel(): NotebookPanel | null {
    return this._tracker.currentWidget;
  }

  get kernel(): Kernel.IKernelConnection | null {
    return this.panel?.sessionContext.session?.kernel ?? null;
  }

  /** What the current kernel tells; null where this package is not loaded in it. */
  get state(): KernelState | null {
    return this._states.get(this.kernel?.id ?? '') ?? null;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  dispose(): void {
    this._isDisposed = true;
    this._states.clear();
    Signal.clearData(this);
  }

  private _watch(_: INotebookTracker, panel: NotebookPanel): void {
    const context = panel.sessionContext;
    void this._attach(context.session?.kernel);
    context.kernelChanged.connect((_, change) => {
      if (change.oldValue) {
        this._states.delete(change.oldValue.id);
      }
      void this._attach(change.newValue);
      this._emit();
    }, this);
    context.statusChanged.connect((_, status) => {
      const kernel = context.session?.kernel;
      if (kernel && (status === 'restarting' || status === 'autorestarting')) {
        this._states.delete(kernel.id); // the process that told it is gone
      }
      this._emit();
    }, this);
  }

  private async _attach(
    kernel: Kernel.IKernelConnection | null | undefined
  ): Promise<void> {
    if (!kernel || !kernel.handleComms) {
      return;
    }
    kernel.registerCommTarget(TARGET, (comm, message) => {
      this._listen(kernel, comm);
      this._take(kernel, message.content.data);
    });
    // After a reload of the page the kernel's comm is still open: find it, and ask.
    try {
      const reply = await kernel.requestCommInfo({ target_name: TARGET });
      if (reply.content.status === 'ok' && !this._states.has(kernel.id)) {
        for (const id of Object.keys(reply.content.comms)) {
          const comm = kernel.createComm(TARGET, id);
          this._listen(kernel, comm);
          comm.send({});
        }
      }
    } catch {
      // The kernel went away meanwhile: its successor is attached on its own.
    }
    this._emit();
  }

  private _listen(kernel: Kernel.IKernelConnection, comm: Kernel.IComm): void {
    comm.onMsg = (message: KernelMessage.ICommMsgMsg) =>
      this._take(kernel, message.content.data);
    comm.onClose = () => {
      this._states.delete(kernel.id);
      this._emit();
    };
  }

  private _take(kernel: Kernel.IKernelConnection, data: unknown): void {
    const { state } = data as { state?: string };
    if (state) {
      this._states.set(kernel.id, JSON.parse(state) as KernelState);
      this._emit();
    }
  }

  private _emit(): void {
    if (!this._isDisposed) {
      this._changed.emit();
    }
  }

  private _states = new Map<string, KernelState>();
  private _isDisposed = false;
  private _changed = new Signal<this, void>(this);
}
