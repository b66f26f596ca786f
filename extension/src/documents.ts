/** Opens bundles, specs and saved records from the file browser: read only, and without a kernel. */

import { ABCWidgetFactory, DocumentRegistry, DocumentWidget } from '@jupyterlab/docregistry';
import type { ServerConnection } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

import { aimassIcon } from './icons';
import { Page } from './page';
import { requestPage } from './request';

export const FACTORY = 'AIMass Lab';
export const FILE_TYPE = 'aimass-record';
/** What a bundle's folder is known by. */
export const MANIFEST = 'manifest.json';

type PageDocument = DocumentWidget<Page>;

export class PageFactory extends ABCWidgetFactory<PageDocument> {
  constructor(
    private _settings: ServerConnection.ISettings,
    private _trans: TranslationBundle
  ) {
    super({
      name: FACTORY,
      label: _trans.__('AIMass Lab'),
      fileTypes: [FILE_TYPE, 'json'],
      defaultFor: [FILE_TYPE],
      readOnly: true,
      preferKernel: false,
      canStartKernel: false
    });
  }

  protected createNewWidget(context: DocumentRegistry.Context): PageDocument {
    const load = () =>
      requestPage(this._settings, `document/page?path=${encodeURIComponent(context.localPath)}`);
    const content = new Page(load, this._trans);
    context.fileChanged.connect(() => void content.refresh(), content);
    const widget = new DocumentWidget({ content, context });
    widget.title.icon = aimassIcon;
    return widget;
  }
}

/** Records that say by their name what they are; others are opened with "Open With". */
export function fileType(trans: TranslationBundle): Partial<DocumentRegistry.IFileType> {
  return {
    name: FILE_TYPE,
    displayName: trans.__('AIMass Lab record'),
    extensions: ['.aimass.json'],
    mimeTypes: ['application/json'],
    contentType: 'file',
    fileFormat: 'text',
    icon: aimassIcon
  };
}
