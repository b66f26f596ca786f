/** The current notebook: its models, what is running, what was found, and what each cell took. */

import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { formatBytes, formatCount, formatGrowth, formatNumber, formatShare, provenance } from '../format';
import { PanelModel } from '../model';
import type { CellUse, KernelState } from '../records';
import { Button, PathName, Remark, Section } from './parts';

/** What the panel can ask of the current notebook. */
export interface INotebookActions {
  load: () => void;
  profileModel: (name: string) => void;
  stop: () => void;
  showCell: (cellId: string) => void;
}

interface IProps {
  model: PanelModel;
  actions: INotebookActions;
  trans: TranslationBundle;
}

const SHOWN_RESULTS = 5;
const SHOWN_CELLS = 12;
/** Of the cells that are older: those that grew memory the most, by so much at least. */
const SHOWN_GROWN = 3;
const LEAST_GROWN = 2 ** 20;

export function CurrentNotebook(props: IProps): JSX.Element {
  const { model, actions, trans } = props;
  const panel = model.links?.panel;
  if (!panel) {
    return (
      <Section title={trans.__('Notebook')}>
        <Remark>{trans.__('No notebook is open.')}</Remark>
      </Section>
    );
  }
  const state = model.kernelState;
  return (
    <Section title={trans.__('Notebook')}>
      <div className="jp-aimass-Head">
        <PathName path={panel.context.path} />
        <span className="jp-aimass-Status-word">{panel.sessionContext.kernelDisplayStatus}</span>
      </div>
      {state ? (
        <State state={state} {...props} />
      ) : (
        <>
          <Remark>
            {trans.__('AIMass Lab is not loaded in this kernel, so it tells nothing of its models and cells.')}
          </Remark>
          <Button
            label={trans.__('Load it')}
            caption={trans.__('Run %load_ext aimass_lab in the kernel')}
            disabled={!model.links?.kernel}
            onClick={actions.load}
          />
        </>
      )}
    </Section>
  );
}

function State(props: IProps & { state: KernelState }): JSX.Element {
  const { state, actions, trans } = props;
  const { models = [], results = [], running } = state;
  return (
    <>
      {running ? (
        <div className="jp-aimass-Running" role="status">
          <div className="jp-aimass-Head">
            <strong>{running.verb}</strong>
            <span>{running.share ? formatShare(running.share) : ''}</span>
            <Button
              label={trans.__('Stop')}
              caption={trans.__('Interrupt the kernel; what was found so far is kept')}
              onClick={actions.stop}
            />
          </div>
          <progress
            aria-label={trans.__('How far %1 is', running.verb)}
            {...(running.share ? { value: running.share } : {})}
          />
          <div className="jp-aimass-Small">{running.text}</div>
        </div>
      ) : null}
      {models.length ? (
        <ul className="jp-aimass-List" aria-label={trans.__('Models')}>
          {models.map(model => (
            <li key={model.name} className="jp-aimass-Entry">
              <div className="jp-aimass-Head">
                <code>{model.name}</code>
                <span className="jp-aimass-Small">{model.type}</span>
                <Button
                  label={trans.__('Profile')}
                  caption={trans.__('Insert and run: %aimass profile %1', model.name)}
                  disabled={!!running}
                  onClick={() => actions.profileModel(model.name)}
                />
              </div>
              <div className="jp-aimass-Small">
                {trans.__(
                  '%1 parameters, %2, on %3',
                  formatCount(model.num_parameters),
                  formatBytes(model.weight_bytes),
                  model.device
                )}
              </div>
            </li>
          ))}
        </ul>
      ) : (
        <Remark>{trans.__('No variable of this notebook is a model yet.')}</Remark>
      )}
      {results.length ? (
        <>
          <h4>{trans.__('Last results')}</h4>
          <ol className="jp-aimass-List" aria-label={trans.__('Last results')}>
            {results.slice(0, SHOWN_RESULTS).map((result, i) => (
              <li key={i} className="jp-aimass-Result jp-mod-clamped">
                <span className="jp-aimass-Verb">{result.verb}</span>
                <span title={result.headline}>{result.headline}</span>
              </li>
            ))}
          </ol>
        </>
      ) : null}
      <Cells {...props} />
    </>
  );
}

/** What each cell took, newest first, and older ones that grew memory the most; the one that grew it most of all stands out. */
function Cells(props: IProps & { state: KernelState }): JSX.Element | null {
  const { state, actions, trans } = props;
  const all = state.cells ?? [];
  if (!all.length) {
    return null;
  }
  const onGpu = all.some(cell => cell.gpu_memory_growth_bytes);
  const growth = (cell: CellUse) =>
    (onGpu ? cell.gpu_memory_growth_bytes : cell.memory_growth_bytes)?.value ?? 0;
  const grown = [...all].sort((a, b) => growth(b) - growth(a)).slice(0, SHOWN_GROWN);
  const cells = all.filter((cell, i) => i < SHOWN_CELLS || (grown.includes(cell) && growth(cell) > LEAST_GROWN));
  const most = Math.max(...cells.map(growth));
  return (
    <>
      <h4>{trans.__('Cells')}</h4>
      <table className="jp-aimass-Table" aria-label={trans.__('What each cell took')}>
        <thead>
          <tr>
            <th>{trans.__('cell')}</th>
            <th className="jp-mod-number">{trans.__('time')}</th>
            <th className="jp-mod-number">{trans.__('memory')}</th>
            {onGpu ? <th className="jp-mod-number">{trans.__('GPU memory')}</th> : null}
            {onGpu ? <th className="jp-mod-number">{trans.__('GPU time')}</th> : null}
          </tr>
        </thead>
        <tbody>
          {cells.map((cell, i) => (
            <tr key={i} className={growth(cell) === most && most > LEAST_GROWN ? 'jp-mod-most' : ''}>
              <td className="jp-aimass-CellName">
                <button
                  type="button"
                  className="jp-aimass-Link"
                  title={cell.raised ? trans.__('%1: raised %2', cell.first_line, cell.raised) : trans.__('Go to this cell: %1', cell.first_line)}
                  disabled={!cell.cell_id}
                  onClick={() => actions.showCell(cell.cell_id ?? '')}
                >
                  [{cell.number}]{cell.raised ? ' ⚠' : ''} <code>{afterMagic(cell.first_line)}</code>
                </button>
              </td>
              <td className="jp-mod-number" title={trans.__('processor time %1', formatNumber(cell.cpu_time))}>
                {formatNumber(cell.wall_time)}
              </td>
              <td className="jp-mod-number" title={provenance(cell.memory_growth_bytes)}>
                {cell.memory_growth_bytes ? formatGrowth(cell.memory_growth_bytes.value) : '–'}
              </td>
              {onGpu ? (
                <td className="jp-mod-number" title={provenance(cell.gpu_memory_growth_bytes)}>
                  {cell.gpu_memory_growth_bytes ? formatGrowth(cell.gpu_memory_growth_bytes.value) : '–'}
                </td>
              ) : null}
              {onGpu ? (
                <td className="jp-mod-number" title={provenance(cell.gpu_time)}>
                  {formatNumber(cell.gpu_time)}
                </td>
              ) : null}
            </tr>
          ))}
        </tbody>
      </table>
      <Accounts state={state} trans={trans} />
      {(state.notes ?? []).map(note => (
        <Remark key={note.code}>{note.text}</Remark>
      ))}
    </>
  );
}

/** What tells cells apart: most begin with our magic, and there is room for few letters. */
function afterMagic(line: string): string {
  return line.replace(/^%%?aimass +/, '');
}

/** Whose memory of each GPU it is: parts that add up to all of it. */
function Accounts(props: { state: KernelState; trans: TranslationBundle }): JSX.Element {
  const { state, trans } = props;
  return (
    <>
      {(state.gpus ?? []).map(gpu => {
        const parts: Array<[string, string, number]> = [
          ['tensors', trans.__('tensors'), gpu.tensors_bytes.value],
          ['cached', trans.__('kept by torch'), gpu.cached_bytes.value],
          ...(gpu.context_bytes
            ? ([['context', trans.__('CUDA context and libraries'), gpu.context_bytes.value]] as Array<[string, string, number]>)
            : []),
          ['elsewhere', gpu.context_bytes ? trans.__('others') : trans.__('contexts and others'), gpu.elsewhere_bytes.value],
          ['free', trans.__('free'), gpu.free_bytes.value]
        ];
        return (
          <div key={gpu.index} className="jp-aimass-Account">
            <h4>{trans.__('Memory of GPU %1', String(gpu.index))}</h4>
            <div className="jp-aimass-Stack" aria-hidden="true">
              {parts.map(([kind, , bytes]) => (
                <span key={kind} className={`jp-mod-${kind}`} style={{ flexGrow: bytes }} />
              ))}
            </div>
            <ul className="jp-aimass-Legend">
              {parts.map(([kind, words, bytes]) => (
                <li key={kind} className={`jp-mod-${kind}`}>
                  {words} <strong>{formatBytes(bytes)}</strong>
                </li>
              ))}
            </ul>
          </div>
        );
      })}
    </>
  );
}
