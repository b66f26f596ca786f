/** Wires the panel, the status bar's item, the commands and the documents to JupyterLab and Notebook 7. */

import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { ILauncher } from '@jupyterlab/launcher';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { addCommands, CommandIDs } from './commands';
import { fileType, PageFactory } from './documents';
import { KernelLinks } from './kernels';
import { PanelModel } from './model';
import { showCell } from './notebook';
import { Panel, PANEL_ID } from './panel';
import { StatusItem } from './status';
import { LiveStream } from './stream';

const PLUGIN_ID = 'aimass-lab:panel';
const STATUS_ID = 'aimass-lab-status';

const panel: JupyterFrontEndPlugin<void> = {
  id: PLUGIN_ID,
  description: 'The side panel of AIMass Lab, its status bar item, its commands and its documents.',
  autoStart: true,
  // Nothing is required: whatever an application lacks is left out, and the rest works.
  optional: [
    ITranslator,
    ILayoutRestorer,
    ICommandPalette,
    ILauncher,
    INotebookTracker,
    ISettingRegistry,
    IStatusBar,
    IDefaultFileBrowser
  ],
  activate: (
    app: JupyterFrontEnd,
    translator: ITranslator | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    tracker: INotebookTracker | null,
    registry: ISettingRegistry | null,
    statusBar: IStatusBar | null,
    browser: IDefaultFileBrowser | null
  ): void => {
    const trans = (translator ?? nullTranslator).load('aimass_lab');
    const settings = app.serviceManager.serverSettings;
    const stream = new LiveStream(settings);
    const model = new PanelModel(settings, stream, tracker ? new KernelLinks(tracker) : null);
    const run = (id: string, args = {}) => void app.commands.execute(id, args);
    addCommands(app, model, browser, trans);

    const widget = new Panel(
      model,
      {
        load: () => run(CommandIDs.load),
        profileModel: name => run(CommandIDs.profileModel, { name }),
        stop: () => run(CommandIDs.stop),
        showCell: cellId => {
          const current = model.links?.panel;
          if (current) {
            void showCell(current, cellId);
          }
        },
        openRun: number => run(CommandIDs.openRun, { run: number }),
        compareRuns: (before, after) => run(CommandIDs.compareRuns, { before, after }),
        stopService: (pid, folder) => run(CommandIDs.stopService, { pid, folder })
      },
      trans
    );
    app.shell.add(widget, 'left', { rank: 650, type: 'AIMass Lab' });
    restorer?.add(widget, PANEL_ID);

    app.docRegistry.addFileType(fileType(trans));
    app.docRegistry.addWidgetFactory(new PageFactory(settings, trans));

    const category = trans.__('AIMass Lab');
    for (const command of [CommandIDs.openPanel, CommandIDs.profileCell, CommandIDs.load, CommandIDs.stop, CommandIDs.refreshHistory]) {
      palette?.addItem({ command, category });
    }
    launcher?.add({ command: CommandIDs.openPanel, category: trans.__('Other'), rank: 5 });

    let showStatus = true;
    if (statusBar) {
      statusBar.registerStatusItem(STATUS_ID, {
        item: new StatusItem(model, () => run(CommandIDs.openPanel), trans),
        align: 'left',
        rank: 4,
        isActive: () => showStatus,
        activeStateChanged: model.stateChanged
      });
    }
    const apply = (values: ISettingRegistry.ISettings | null) => {
      const get = <T>(name: string, usual: T): T => (values?.get(name).composite as T | undefined) ?? usual;
      stream.interval = get('interval', 2);
      model.windowMinutes = get('windowMinutes', 3);
      model.historyLength = get('historyLength', 30);
      showStatus = get('statusBar', true);
      stream.want(STATUS_ID, !!statusBar && showStatus);
      model.stateChanged.emit();
    };
    apply(null);
    registry
      ?.load(PLUGIN_ID)
      .then(values => {
        values.changed.connect(apply);
        apply(values);
      })
      .catch((reason: unknown) => {
        console.error('aimass-lab: the settings cannot be read, so the usual ones hold', reason);
      });
  }
};

export default panel;
