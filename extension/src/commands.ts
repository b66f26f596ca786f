/** The ids of the commands, one for all places from which they can be given, and their registration. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { MainAreaWidget, Notification, showDialog, Dialog } from '@jupyterlab/apputils';
import type { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import type { TranslationBundle } from '@jupyterlab/translation';

import { FACTORY, MANIFEST } from './documents';
import { baseName } from './format';
import { aimassIcon } from './icons';
import { PanelModel } from './model';
import { identifierUnder, isPython, load, profileCell, profileModel } from './notebook';
import { Page } from './page';
import { PANEL_ID } from './panel';
import { requestPage } from './request';

export const CommandIDs = {
  openPanel: 'aimass-lab:open-panel',
  load: 'aimass-lab:load',
  profileCell: 'aimass-lab:profile-cell',
  profileModel: 'aimass-lab:profile-model',
  stop: 'aimass-lab:stop',
  openRun: 'aimass-lab:open-run',
  compareRuns: 'aimass-lab:compare-runs',
  stopService: 'aimass-lab:stop-service',
  openBundle: 'aimass-lab:open-bundle',
  refreshHistory: 'aimass-lab:refresh-history'
};

const NO_ARGUMENTS = { args: { type: 'object' as const, properties: {} } };

export function addCommands(
  app: JupyterFrontEnd,
  model: PanelModel,
  browser: IDefaultFileBrowser | null,
  trans: TranslationBundle
): void {
  addPanelCommands(app, model, trans);
  addNotebookCommands(app, model, trans);
  addRunCommands(app, model, trans);
  addBundleCommand(app, browser, trans);
}

function addPanelCommands(app: JupyterFrontEnd, model: PanelModel, trans: TranslationBundle): void {
  app.commands.addCommand(CommandIDs.openPanel, {
    label: trans.__('AIMass Lab Panel'),
    caption: trans.__('Live readings, the current model, the history and served bundles'),
    icon: aimassIcon,
    describedBy: NO_ARGUMENTS,
    execute: () => app.shell.activateById(PANEL_ID)
  });
  app.commands.addCommand(CommandIDs.refreshHistory, {
    label: trans.__('Read the History Again'),
    describedBy: NO_ARGUMENTS,
    execute: () => model.refreshHistory()
  });
  app.commands.addCommand(CommandIDs.stopService, {
    label: trans.__('Stop a Served Bundle'),
    describedBy: {
      args: {
        type: 'object',
        properties: { pid: { type: 'integer' }, folder: { type: 'string' } },
        required: ['pid']
      }
    },
    isVisible: args => typeof args['pid'] === 'number',
    execute: async args => {
      const name = baseName(String(args['folder'] ?? ''));
      const answer = await showDialog({
        title: trans.__('Stop serving %1?', name),
        body: trans.__('It finishes what it accepted. Whoever calls it gets no answers any more.'),
        buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: trans.__('Stop') })]
      });
      if (answer.button.accept) {
        await told(model.stopService(args['pid'] as number));
      }
    }
  });
}

function addNotebookCommands(app: JupyterFrontEnd, model: PanelModel, trans: TranslationBundle): void {
  const panel = () => model.links?.panel ?? null;
  const cellIsCode = () => panel()?.content.activeCell?.model.type === 'code';
  const variable = pointedAt(model);
  app.commands.addCommand(CommandIDs.load, {
    label: trans.__('Load AIMass Lab in This Kernel'),
    describedBy: NO_ARGUMENTS,
    isEnabled: () => !!model.links?.kernel && !model.kernelState,
    execute: async () => {
      const current = panel();
      if (current) {
        await load(current, trans);
      }
    }
  });
  app.commands.addCommand(CommandIDs.profileCell, {
    label: trans.__('Profile This Cell'),
    caption: trans.__('Run this cell, and show what it took'),
    icon: aimassIcon,
    describedBy: NO_ARGUMENTS,
    isEnabled: () => cellIsCode() && !!model.links?.kernel,
    isVisible: () => cellIsCode() && isPython(panel()!),
    execute: async () => {
      const current = panel();
      if (current) {
        await profileCell(current, trans);
      }
    }
  });
  app.commands.addCommand(CommandIDs.profileModel, {
    label: args =>
      trans.__('Profile the Model %1', String(args['name'] ?? variable() ?? '')),
    icon: aimassIcon,
    describedBy: { args: { type: 'object', properties: { name: { type: 'string' } } } },
    isVisible: args => !!(args['name'] ?? variable()),
    isEnabled: args => !!(args['name'] ?? variable()),
    execute: async args => {
      const [current, state] = [panel(), model.kernelState];
      const name = args['name'] ?? variable();
      if (current && state && name) {
        await profileModel(current, state, String(name), trans);
      }
    }
  });
  app.commands.addCommand(CommandIDs.stop, {
    label: trans.__('Stop What Is Running'),
    caption: trans.__('Interrupt the kernel; what was found so far is kept'),
    describedBy: NO_ARGUMENTS,
    isEnabled: () => model.links?.kernel?.status === 'busy',
    execute: () => model.links?.kernel?.interrupt()
  });
}

/** The variable under the last click of the right mouse button, if it is a model of the current notebook. */
function pointedAt(model: PanelModel): () => string | null {
  let name: string | null = null;
  document.addEventListener(
    'contextmenu',
    event => {
      // Now, before the menu lies over it.
      const panel = model.links?.panel;
      name = panel ? identifierUnder(panel, event.clientX, event.clientY) : null;
    },
    true
  );
  return () => {
    const models = model.kernelState?.models ?? [];
    return models.some(one => one.name === name) ? name : null;
  };
}

function addRunCommands(app: JupyterFrontEnd, model: PanelModel, trans: TranslationBundle): void {
  const open = (id: string, label: string, path: string) => {
    const there = Array.from(app.shell.widgets('main')).some(one => one.id === id);
    if (!there) {
      app.shell.add(pageTab(id, label, () => requestPage(model.settings, path), trans), 'main');
    }
    app.shell.activateById(id);
  };
  app.commands.addCommand(CommandIDs.openRun, {
    label: trans.__('Open a Run of the History'),
    describedBy: {
      args: { type: 'object', properties: { run: { type: 'integer' } }, required: ['run'] }
    },
    isVisible: args => typeof args['run'] === 'number',
    execute: args => {
      const run = args['run'] as number;
      open(`aimass-lab-run-${run}`, trans.__('Run %1', String(run)), `runs/${run}/page`);
    }
  });
  app.commands.addCommand(CommandIDs.compareRuns, {
    label: trans.__('Compare Two Runs of the History'),
    describedBy: {
      args: {
        type: 'object',
        properties: { before: { type: 'integer' }, after: { type: 'integer' } },
        required: ['before', 'after']
      }
    },
    isVisible: args => typeof args['before'] === 'number',
    execute: args => {
      const { before, after } = args as { before: number; after: number };
      open(
        `aimass-lab-compare-${before}-${after}`,
        trans.__('Runs %1 and %2', String(before), String(after)),
        `compare/page?before=${before}&after=${after}`
      );
    }
  });
}

/** A page in a tab of its own. */
function pageTab(
  id: string,
  label: string,
  load: () => Promise<string>,
  trans: TranslationBundle
): MainAreaWidget<Page> {
  const tab = new MainAreaWidget({ content: new Page(load, trans) });
  tab.id = id;
  tab.title.label = label;
  tab.title.icon = aimassIcon;
  tab.title.closable = true;
  return tab;
}

function addBundleCommand(
  app: JupyterFrontEnd,
  browser: IDefaultFileBrowser | null,
  trans: TranslationBundle
): void {
  app.commands.addCommand(CommandIDs.openBundle, {
    label: trans.__('Open as AIMass Lab Bundle'),
    caption: trans.__('Show what a bundle promises, and whether it is still as it was written'),
    icon: aimassIcon,
    describedBy: { args: { type: 'object', properties: { path: { type: 'string' } } } },
    isVisible: args => !!args['path'] || selectedFolder(browser) !== null,
    execute: args => {
      const folder = args['path'] ? String(args['path']) : selectedFolder(browser);
      return app.commands.execute('docmanager:open', {
        path: `${folder}/${MANIFEST}`,
        factory: FACTORY
      });
    }
  });
}

function selectedFolder(browser: IDefaultFileBrowser | null): string | null {
  const item = browser?.selectedItems().next().value;
  return item?.type === 'directory' ? item.path : null;
}

/** Show what failed. */
async function told(work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    Notification.error(error instanceof Error ? error.message : String(error), { autoClose: false });
  }
}
