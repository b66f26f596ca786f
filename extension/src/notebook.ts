/** What the panel and the menus do in a notebook: every click leaves a line of code, or runs the person's own. */

import { InputDialog, Notification } from '@jupyterlab/apputils';
import type { Cell } from '@jupyterlab/cells';
import { NotebookActions, NotebookPanel } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { KernelState } from './records';

export const LOAD = '%load_ext aimass_lab';

/** Python of the silent request that comes before a cell which is to be profiled. */
export function profileNextCode(cellId: string): string {
  return (
    'from importlib import import_module as _aimass_import\n' +
    `_aimass_import("aimass_lab.frontends.magics").profile_next(get_ipython(), ${JSON.stringify(cellId)})\n` +
    'del _aimass_import'
  );
}

/** The Python identifier at a place in a text; null where there is none. */
export function identifierAt(source: string, offset: number): string | null {
  for (const match of source.matchAll(/[\p{L}_][\p{L}\p{N}_]*/gu)) {
    const start = match.index ?? 0;
    if (start <= offset && offset <= start + match[0].length) {
      return match[0];
    }
  }
  return null;
}

export function isPython(panel: NotebookPanel): boolean {
  const language = panel.content.model?.defaultKernelLanguage;
  return !language || language === 'python';
}

/** Run code in the kernel without a trace in the notebook; its error as text, null if it went well. */
async function runSilently(
  panel: NotebookPanel,
  code: string
): Promise<string | null> {
  const kernel = panel.sessionContext.session?.kernel;
  if (!kernel) {
    return 'no kernel';
  }
  const reply = await kernel.requestExecute({
    code,
    silent: true,
    store_history: false
  }).done;
  const content = reply?.content;
  return content && content.status === 'error'
    ? `${content.ename}: ${content.evalue}`
    : null;
}

function complain(trans: TranslationBundle, error: string): void {
  const hint = error.startsWith('ModuleNotFoundError')
    ? trans.__('AIMass Lab is not installed in the environment of this kernel: pip install aimass-lab there.')
    : error;
  Notification.error(hint, { autoClose: false });
}

/** Load the Python half in the notebook's kernel. */
export async function load(
  panel: NotebookPanel,
  trans: TranslationBundle
): Promise<void> {
  // The magic only prints what failed; an import says it.
  const error = await runSilently(panel, `import aimass_lab\nget_ipython().run_line_magic("load_ext", "aimass_lab")`);
  if (error) {
    complain(trans, error);
  }
}

/** Run the active cell under the profiler: as it is, with its own output and number, and the profile below. */
export async function profileCell(
  panel: NotebookPanel,
  trans: TranslationBundle
): Promise<void> {
  const cell = panel.content.activeCell;
  if (!cell || cell.model.type !== 'code') {
    return;
  }
  const error = await runSilently(panel, profileNextCode(cell.model.id));
  if (error) {
    complain(trans, error);
    return;
  }
  await NotebookActions.run(panel.content, panel.sessionContext);
}

/** Insert a cell below the active one and run it. */
async function insertAndRun(panel: NotebookPanel, source: string): Promise<void> {
  NotebookActions.insertBelow(panel.content);
  panel.content.activeCell?.model.sharedModel.setSource(source);
  await NotebookActions.run(panel.content, panel.sessionContext);
}

/** Profile a model of the notebook; asks which variable it is called with, where that is not known yet. */
export async function profileModel(
  panel: NotebookPanel,
  state: KernelState,
  name: string,
  trans: TranslationBundle
): Promise<void> {
  const known = (state.models ?? []).find(model => model.name === name);
  if (!known) {
    return;
  }
  let inputs = '';
  if (!known.inputs_known) {
    const candidates = state.inputs ?? [];
    if (!candidates.length) {
      Notification.warning(
        trans.__('Nothing in this notebook can be given to %1: make a tensor, a tuple or a dictionary of tensors, and name it.', name)
      );
      return;
    }
    if (candidates.length === 1) {
      inputs = candidates[0];
    } else {
      const answer = await InputDialog.getItem({
        title: trans.__('Profile %1', name),
        label: trans.__('It is called with:'),
        items: candidates
      });
      if (!answer.button.accept || !answer.value) {
        return;
      }
      inputs = answer.value;
    }
  }
  await insertAndRun(panel, `%aimass profile ${name} ${inputs}`.trim());
}

/** Scroll to a cell and make it the active one; says whether it is still there. */
export async function showCell(
  panel: NotebookPanel,
  cellId: string
): Promise<boolean> {
  const index = panel.content.widgets.findIndex(cell => cell.model.id === cellId);
  if (index < 0) {
    return false;
  }
  panel.content.activeCellIndex = index;
  await panel.content.scrollToItem(index, 'smart');
  return true;
}

/** The identifier under a point of the page, in whichever cell is there. */
export function identifierUnder(
  panel: NotebookPanel,
  x: number,
  y: number
): string | null {
  const cell: Cell | undefined = panel.content.widgets.find(one =>
    one.inputArea?.editorWidget.node.contains(document.elementFromPoint(x, y))
  );
  const editor = cell?.editor;
  if (!editor) {
    return null;
  }
  const position = editor.getPositionForCoordinate({
    left: x,
    right: x,
    top: y,
    bottom: y,
    x,
    y,
    width: 0,
    height: 0
  } as DOMRect);
  return position
    ? identifierAt(cell.model.sharedModel.getSource(), editor.getOffsetAt(position))
    : null;
}
