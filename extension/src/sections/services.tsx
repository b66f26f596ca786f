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
            <li key={service.pid} className="jp-aimass-Entry">
              <div className="jp-aimass-Head">
                <PathName path={service.folder} />
                <Button
                  label={trans.__('Stop')}
                  caption={trans.__('Let it finish what it accepted, and end')}
                  onClick={() => props.stop(service.pid, service.folder)}
                />
              </div>
              <Address protocol={trans.__('REST')} at={service.url} />
              {service.grpc_address ? <Address protocol={trans.__('gRPC')} at={service.grpc_address} /> : null}
            </li>
          ))}
        </ul>
      ) : (
        <Remark>{trans.__('No bundle is being served.')}</Remark>
      )}
    </Section>
  );
}

/** Where it answers: on one line, so that it can be read and copied as a whole. */
function Address(props: { protocol: string; at: string }): JSX.Element {
  return (
    <div className="jp-aimass-Address" title={props.at}>
      {props.protocol} <span>{props.at}</span>
    </div>
  );
}
