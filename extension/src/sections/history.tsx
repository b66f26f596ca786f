/** The history of runs: open one, or set two side by side. */

import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { formatMoment } from '../format';
import { PanelModel } from '../model';
import { Button, Remark, Section } from './parts';

export function RunHistory(props: {
  model: PanelModel;
  open: (run: number) => void;
  compare: (before: number, after: number) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, trans } = props;
  const picked = [...model.picked].sort((a, b) => a - b);
  return (
    <Section title={trans.__('History')} count={model.runs.length}>
      {model.historyError ? (
        <Remark tone="warn">{model.historyError}</Remark>
      ) : null}
      {model.runs.length ? (
        <>
          <div className="jp-aimass-Head jp-aimass-Compare">
            <span className="jp-aimass-Small">
              {trans.__('Pick two to set them side by side.')}
            </span>
            <Button
              label={
                picked.length === 2
                  ? trans.__('Compare %1 with %2', String(picked[0]), String(picked[1]))
                  : trans.__('Compare')
              }
              disabled={picked.length !== 2}
              onClick={() => props.compare(picked[0], picked[1])}
            />
          </div>
          <ol className="jp-aimass-List jp-aimass-Runs" aria-label={trans.__('Runs, newest first')}>
            {model.runs.map(run => (
              <li key={run.id}>
                <input
                  type="checkbox"
                  aria-label={trans.__('Pick run %1 for a comparison', String(run.id))}
                  checked={picked.includes(run.id)}
                  onChange={event => model.pick(run.id, event.target.checked)}
                />
                <button
                  type="button"
                  className="jp-aimass-Link"
                  title={trans.__('Open run %1', String(run.id))}
                  onClick={() => props.open(run.id)}
                >
                  <span className="jp-aimass-Run-head">
                    <span className="jp-aimass-Verb">{run.verb.replace('_', ' ')}</span> {run.model}
                    <time dateTime={run.taken_at}>{formatMoment(run.taken_at)}</time>
                  </span>
                  <span className="jp-aimass-Small">{run.summary}</span>
                </button>
              </li>
            ))}
          </ol>
        </>
      ) : model.historyError ? null : (
        <Remark>{trans.__('Nothing was measured yet: %aimass profile MODEL INPUTS begins the history.')}</Remark>
      )}
    </Section>
  );
}
