/** What each kernel of this server takes of the machine. */

import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { formatNumber } from '../format';
import { PanelModel } from '../model';
import { PathName, Remark, Section, Value } from './parts';

export function Kernels(props: {
  model: PanelModel;
  trans: TranslationBundle;
}): JSX.Element | null {
  const { model, trans } = props;
  const live = model.live;
  if (!live) {
    return null;
  }
  const kernels = live.kernels ?? [];
  const onGpu = (live.readings.gpus ?? []).length > 0;
  const reasons = (live.notes ?? []).filter(note => note.code.startsWith('missing:kernel'));
  return (
    <Section title={trans.__('Kernels')} count={kernels.length}>
      {kernels.length ? (
        <table className="jp-aimass-Table" aria-label={trans.__('Kernels')}>
          <thead>
            <tr>
              <th>{trans.__('notebook')}</th>
              <th className="jp-mod-number">{trans.__('cores')}</th>
              <th className="jp-mod-number">{trans.__('memory')}</th>
              {onGpu ? <th className="jp-mod-number">{trans.__('GPU memory')}</th> : null}
            </tr>
          </thead>
          <tbody>
            {kernels.map(kernel => (
              <tr key={kernel.kernel_id}>
                <td>
                  <PathName path={kernel.path || kernel.name} />
                </td>
                <td className="jp-mod-number">
                  <Value of={kernel.cpu} />
                </td>
                <td className="jp-mod-number">
                  <Value of={kernel.memory_bytes} />
                </td>
                {onGpu ? (
                  <td className="jp-mod-number" title={trans.__('on all GPUs, busy %1', formatNumber(kernel.gpu_utilization))}>
                    <Value of={kernel.gpu_memory_bytes} />
                  </td>
                ) : null}
              </tr>
            ))}
          </tbody>
        </table>
      ) : (
        <Remark>{trans.__('No kernel is running.')}</Remark>
      )}
      {reasons.map(note => (
        <Remark key={note.code}>{note.text}</Remark>
      ))}
    </Section>
  );
}
