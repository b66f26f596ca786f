/** Whose memory a GPU's is: kernels of this server by their notebooks, other processes, and what nobody is named for. */

import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { formatBytes, provenance } from '../format';
import { PanelModel } from '../model';
import type { GpuAccount, GpuHolder, GpuMemory } from '../records';
import { PathName, Remark, Value } from './parts';

/** How many of the holders have a colour of their own; the others share the last. */
const COLOURS = 3;

export function GpuUsers(props: {
  memory: GpuMemory;
  label: string;
  model: PanelModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { memory, label, model, trans } = props;
  const holders = memory.holders ?? [];
  const told = holders.every(holder => holder.memory_bytes);
  const kind = (i: number) => `jp-mod-holder${Math.min(i, COLOURS)}`;
  return (
    <div className="jp-aimass-Account">
      <div className="jp-aimass-Stack" aria-hidden="true">
        {holders.map((holder, i) => (
          <span key={i} className={kind(i)} style={{ flexGrow: holder.memory_bytes?.value ?? 0 }} />
        ))}
        <span className="jp-mod-rest" style={{ flexGrow: memory.rest_bytes.value }} />
        <span className="jp-mod-free" style={{ flexGrow: memory.free_bytes.value }} />
      </div>
      <table className="jp-aimass-Table jp-aimass-Holders" aria-label={trans.__('Whose memory of %1 it is', label)}>
        <thead>
          <tr>
            <th>{trans.__('who')}</th>
            <th className="jp-mod-number">{trans.__('memory')}</th>
            <th className="jp-mod-number">{trans.__('busy')}</th>
          </tr>
        </thead>
        <tbody>
          {holders.map((holder, i) => (
            <React.Fragment key={holder.kernel_id ?? holder.pids.join()}>
              <tr>
                <td className={kind(i)}>
                  <Who holder={holder} trans={trans} />
                </td>
                <td className="jp-mod-number">
                  <Value of={holder.memory_bytes} />
                </td>
                <td className="jp-mod-number">
                  <Value of={holder.utilization} />
                </td>
              </tr>
              <Parts account={accountOf(model, memory, holder)} trans={trans} />
            </React.Fragment>
          ))}
          <Plain
            kind="jp-mod-rest"
            words={told ? trans.__('the driver, and what it does not list') : trans.__('used, and not told apart')}
            of={memory.rest_bytes}
          />
          <Plain kind="jp-mod-free" words={trans.__('free')} of={memory.free_bytes} />
        </tbody>
      </table>
      <Untold memory={memory} model={model} trans={trans} />
    </div>
  );
}

function Who(props: { holder: GpuHolder; trans: TranslationBundle }): JSX.Element {
  const { holder, trans } = props;
  const numbers = trans.__('process %1', holder.pids.join(', '));
  return holder.kernel_id ? (
    <span title={trans.__('the kernel of %1, %2', holder.name, numbers)}>
      <PathName path={holder.name} />
    </span>
  ) : (
    <span title={`${holder.name}, ${numbers}`}>{holder.name}</span>
  );
}

function Plain(props: { kind: string; words: string; of: GpuMemory['free_bytes'] }): JSX.Element {
  return (
    <tr>
      <td className={props.kind}>{props.words}</td>
      <td className="jp-mod-number">
        <Value of={props.of} />
      </td>
      <td />
    </tr>
  );
}

/** What the current notebook's kernel says of its own share. */
function Parts(props: { account: GpuAccount | null; trans: TranslationBundle }): JSX.Element | null {
  const { account, trans } = props;
  if (!account) {
    return null;
  }
  const parts: Array<[string, GpuAccount['tensors_bytes'] | null | undefined]> = [
    [trans.__('tensors'), account.tensors_bytes],
    [trans.__('kept by torch'), account.cached_bytes],
    [trans.__('CUDA context and libraries'), account.context_bytes]
  ];
  return (
    <>
      {parts.map(([words, of]) =>
        of ? (
          <tr key={words} className="jp-mod-part">
            <td>{words}</td>
            <td className="jp-mod-number" title={provenance(of)}>
              {formatBytes(of.value)}
            </td>
            <td />
          </tr>
        ) : null
      )}
    </>
  );
}

/** Of the kernel that the current notebook runs in, where it says which GPU it means. */
function accountOf(model: PanelModel, memory: GpuMemory, holder: GpuHolder): GpuAccount | null {
  const bare = (uuid: string | null | undefined) => uuid?.replace(/^(GPU|MIG)-/, '');
  const current = model.links?.kernel?.id;
  if (!current || holder.kernel_id !== current || !memory.uuid) {
    return null;
  }
  return (model.kernelState?.gpus ?? []).find(gpu => bare(gpu.uuid) === bare(memory.uuid)) ?? null;
}

/** Why something of this GPU is not told. */
function Untold(props: { memory: GpuMemory; model: PanelModel; trans: TranslationBundle }): JSX.Element {
  const { memory, model, trans } = props;
  const own = `missing:gpu${memory.index}${typeof memory.mig_instance === 'number' ? `.mig${memory.mig_instance}` : ''}.`;
  const notes = model.live?.readings.notes ?? [];
  const names = notes.find(note => note.code === 'missing:gpu.processes.names');
  const listed = notes.filter(note => note.code.startsWith(own));
  return (
    <>
      {names ? <Remark>{trans.__('Which process is which is not known: %1.', names.text)}</Remark> : null}
      {listed.map(note => (
        <Remark key={note.code}>{trans.__('%1: %2.', note.code.slice(own.length).replace(/[._]/g, ' '), note.text)}</Remark>
      ))}
    </>
  );
}
