/** The status bar's item: processor, memory and the busiest GPU; a click opens the panel. */

import { TextItem } from '@jupyterlab/statusbar';
import type { TranslationBundle } from '@jupyterlab/translation';
import { VDomRenderer } from '@jupyterlab/ui-components';
import * as React from 'react';

import { formatBytes, formatShare } from './format';
import { PanelModel } from './model';
import type { Live } from './records';
import { busyCores, stolenShare } from './series';

export function statusText(live: Live, trans: TranslationBundle): string {
  const { memory, gpus = [] } = live.readings;
  const cores = busyCores(live);
  const stolen = stolenShare(live);
  const used = memory.container_limit_bytes ? memory.container_used_bytes : memory.machine_used_bytes;
  const busy = gpus.map(gpu => gpu.utilization?.value).filter((v): v is number => typeof v === 'number');
  return [
    cores !== null ? trans.__('CPU %1', cores.toFixed(1)) : '',
    stolen ? trans.__('host took %1', formatShare(stolen)) : '',
    used ? trans.__('Mem %1', formatBytes(used.value)) : '',
    busy.length ? trans.__('GPU %1', formatShare(Math.max(...busy))) : ''
  ]
    .filter(Boolean)
    .join(' · ');
}

export class StatusItem extends VDomRenderer<PanelModel> {
  constructor(
    model: PanelModel,
    private _open: () => void,
    private _trans: TranslationBundle
  ) {
    super(model);
    this.addClass('jp-aimass-Status');
  }

  protected render(): JSX.Element | null {
    const [live, trans] = [this.model?.live, this._trans];
    if (!live || this.model?.streamState === 'lost') {
      return <TextItem source={trans.__('AIMass Lab: no readings')} title={trans.__('The Jupyter server does not answer')} />;
    }
    return (
      <button type="button" className="jp-aimass-Status-button" onClick={this._open}>
        <TextItem source={statusText(live, trans)} title={trans.__('Busy cores, memory and GPU; open the AIMass Lab panel')} />
      </button>
    );
  }
}
