/** A page that the Python half laid out, in a widget: runs, comparisons, and files opened from the file browser. */

import type { TranslationBundle } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';

import { RequestError } from './request';

export class Page extends Widget {
  constructor(
    private _load: () => Promise<string>,
    private _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-aimass-Page');
    this.node.setAttribute('role', 'region');
    this.node.tabIndex = 0;
    void this.refresh();
  }

  /** Fetch the page again. */
  async refresh(): Promise<void> {
    try {
      const html = await this._load();
      if (!this.isDisposed) {
        // Without scripts, and everything in it escaped by the server: `innerHTML` would not run one either.
        this.node.innerHTML = html;
        const title = this.node.querySelector('h4')?.textContent;
        this.node.setAttribute('aria-label', title ?? this._trans.__('AIMass Lab'));
        this.node.querySelectorAll('.wide-table').forEach(table => {
          table.setAttribute('tabindex', '0');
          table.setAttribute('role', 'group');
          table.setAttribute('aria-label', this._trans.__('Table'));
        });
      }
    } catch (error) {
      this._showError(error);
    }
  }

  private _showError(error: unknown): void {
    const text = document.createElement('p');
    text.setAttribute('role', 'alert');
    text.className = 'jp-aimass-Remark jp-mod-warn';
    text.textContent = error instanceof Error ? error.message : String(error);
    this.node.replaceChildren(text);
    this.node.setAttribute('aria-label', this._trans.__('AIMass Lab'));
    if (error instanceof RequestError && error.help) {
      const help = document.createElement('p');
      help.className = 'jp-aimass-Remark';
      help.textContent = error.help;
      this.node.append(help);
    }
  }
}
