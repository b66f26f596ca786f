/** Live readings over one websocket for the whole page: closed while the page is hidden or nobody listens. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { IDisposable } from '@lumino/disposable';
import { ISignal, Signal } from '@lumino/signaling';

import { NAMESPACE } from './request';
import type { Live } from './records';

export const FIRST_RETRY_MS = 1000;
export const LONGEST_RETRY_MS = 60000;

/** `silent`: nobody listens, or the page is hidden; `lost`: the server does not answer, it is tried again. */
export type StreamState = 'silent' | 'connecting' | 'open' | 'lost';

/** How long to wait before trying again, after so many failures in a row. */
export function retryDelay(failures: number): number {
  return Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** failures);
}

export class LiveStream implements IDisposable {
  constructor(private _settings: ServerConnection.ISettings) {
    document.addEventListener('visibilitychange', this._adjust);
  }

  /** A reading arrived. */
  get frame(): ISignal<this, Live> {
    return this._frame;
  }

  get stateChanged(): ISignal<this, StreamState> {
    return this._stateChanged;
  }

  get state(): StreamState {
    return this._state;
  }

  /** Seconds from one reading to the next. */
  set interval(value: number) {
    this._interval = value;
    this._sendPace();
  }

  get interval(): number {
    return this._interval;
  }

  /** Who wants to hear: the panel while it can be seen, the status bar's item. */
  want(listener: string, wanted: boolean): void {
    if (wanted) {
      this._listeners.add(listener);
    } else {
      this._listeners.delete(listener);
    }
    this._adjust();
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  dispose(): void {
    if (this._isDisposed) {
      return;
    }
    this._isDisposed = true;
    document.removeEventListener('visibilitychange', this._adjust);
    this._close();
    Signal.clearData(this);
  }

  private _adjust = (): void => {
    const wanted = this._listeners.size > 0 && !document.hidden;
    if (!wanted) {
      this._close();
      this._setState('silent');
    } else if (!this._socket && !this._timer) {
      this._failures = 0;
      this._connect();
    }
  };

  private _connect(): void {
    this._timer = 0;
    this._setState(this._failures ? 'lost' : 'connecting');
    let url = URLExt.join(this._settings.wsUrl, NAMESPACE, 'live');
    if (this._settings.appendToken && this._settings.token) {
      url += `?token=${encodeURIComponent(this._settings.token)}`;
    }
    const socket = new this._settings.WebSocket(url);
    this._socket = socket;
    socket.onopen = () => {
      this._failures = 0;
      this._setState('open');
      this._sendPace();
    };
    socket.onmessage = event => {
      this._frame.emit(JSON.parse(event.data) as Live);
    };
    socket.onclose = () => {
      if (this._socket !== socket) {
        return; // closed by us
      }
      this._socket = null;
      this._setState('lost');
      this._timer = window.setTimeout(
        () => this._connect(),
        retryDelay(this._failures++)
      );
    };
  }

  private _close(): void {
    window.clearTimeout(this._timer);
    this._timer = 0;
    const socket = this._socket;
    this._socket = null;
    socket?.close();
  }

  private _sendPace(): void {
    if (this._socket?.readyState === 1) {
      this._socket.send(JSON.stringify({ interval: this._interval }));
    }
  }

  private _setState(state: StreamState): void {
    if (state !== this._state) {
      this._state = state;
      this._stateChanged.emit(state);
    }
  }

  private _socket: WebSocket | null = null;
  private _listeners = new Set<string>();
  private _state: StreamState = 'silent';
  private _timer = 0;
  private _failures = 0;
  private _interval = 2;
  private _isDisposed = false;
  private _frame = new Signal<this, Live>(this);
  private _stateChanged = new Signal<this, StreamState>(this);
}
