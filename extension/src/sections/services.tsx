/** Bundles that are being served on this machine, with stop. */

import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { PanelModel } from '../model';
import { Button, PathName, Remark, Section } from './parts';

export function Services(props: {
  model: PanelModel;
  stop: (pid: number, folder: string) => void;
  trans: TranslationBundle;
}): JSX.Element | null {
  const { model, trans } = props;
  if (!model.live) {
    return null;
  }
  return (
    <Section title={trans.__('Being served')} count={model.services.length}>
      {model.services.length ? (
        <ul className="jp-aimass-List" aria-label={trans.__('Bundles that are being served')}>
          {model.services.map(service => (
            <li key={service.pid} className="jp-aimass-Model">
              <div>
                <PathName path={service.folder} />
                <div className="jp-aimass-Small">
                  {service.url}
                  {service.grpc_address ? ` · gRPC ${service.grpc_address}` : ''}
                </div>
              </div>
              <Button
                label={trans.__('Stop')}
                caption={trans.__('Let it finish what it accepted, and end')}
                onClick={() => props.stop(service.pid, service.folder)}
              />
            </li>
          ))}
        </ul>
      ) : (
        <Remark>{trans.__('No bundle is being served.')}</Remark>
      )}
    </Section>
  );
}
