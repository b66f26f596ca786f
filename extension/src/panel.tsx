/** The side panel: its sections, one below the other. */

import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import { aimassIcon } from './icons';
import { PanelModel } from './model';
import { RunHistory } from './sections/history';
import { Kernels } from './sections/kernels';
import { Machine } from './sections/machine';
import { CurrentNotebook, INotebookActions } from './sections/notebook';
import { Remark } from './sections/parts';
import { Services } from './sections/services';

export const PANEL_ID = 'aimass-lab-panel';

export interface IPanelActions extends INotebookActions {
  openRun: (run: number) => void;
  compareRuns: (before: number, after: number) => void;
  stopService: (pid: number, folder: string) => void;
}

export class Panel extends ReactWidget {
  constructor(
    private _model: PanelModel,
    private _actions: IPanelActions,
    private _trans: TranslationBundle
  ) {
    super();
    this.id = PANEL_ID;
    this.addClass('jp-aimass-Panel');
    this.title.icon = aimassIcon;
    this.title.caption = _trans.__('AIMass Lab');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', _trans.__('AIMass Lab'));
    this.node.tabIndex = 0; // so that the keyboard can scroll it
  }

  protected render(): JSX.Element {
    const [model, actions, trans] = [this._model, this._actions, this._trans];
    return (
      <UseSignal signal={model.stateChanged}>
        {() => (
          <>
            <Versions model={model} trans={trans} />
            <CurrentNotebook model={model} actions={actions} trans={trans} />
            <Machine model={model} trans={trans} />
            <Kernels model={model} trans={trans} />
            <Services model={model} stop={actions.stopService} trans={trans} />
            <RunHistory model={model} open={actions.openRun} compare={actions.compareRuns} trans={trans} />
          </>
        )}
      </UseSignal>
    );
  }

  protected onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this._model.stream.want(PANEL_ID, true);
  }

  protected onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this._model.stream.want(PANEL_ID, this.isVisible);
  }

  protected onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this._model.stream.want(PANEL_ID, false);
  }

  dispose(): void {
    this._model.stream.want(PANEL_ID, false);
    super.dispose();
  }
}

/** The halves were installed at different times: say so, and what to do. */
function Versions(props: {
  model: PanelModel;
  trans: TranslationBundle;
}): JSX.Element | null {
  const { model, trans } = props;
  const versions = model.mismatch;
  if (!versions) {
    return null;
  }
  return (
    <Remark tone="warn">
      {trans.__(
        'Versions differ: panel %1, Jupyter server %2, kernel %3. Install the same one everywhere, restart the server and reload this page.',
        versions.front,
        versions.server ?? '–',
        versions.kernel ?? '–'
      )}
    </Remark>
  );
}
