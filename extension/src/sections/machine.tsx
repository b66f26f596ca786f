/** The machine: charts of what its processor, memory, network and GPUs do, and why something is not there. */

import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { formatBytes, formatNumber, formatPart, formatShare, provenance } from '../format';
import { PanelModel } from '../model';
import type { GpuReading, Live } from '../records';
import { hasQuota, stolenShare } from '../series';
import { Chart, IChart } from './chart';
import { GpuUsers } from './gpus';
import { Remark, Section } from './parts';

export function Machine(props: {
  model: PanelModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, trans } = props;
  const live = model.live;
  return (
    <Section title={trans.__('Machine')}>
      {live ? (
        <Charts live={live} model={model} trans={trans} />
      ) : (
        <Remark>
          {model.streamState === 'lost'
            ? trans.__('The Jupyter server does not answer; it is asked again.')
            : trans.__('Waiting for the first reading …')}
        </Remark>
      )}
    </Section>
  );
}

function Charts(props: {
  live: Live;
  model: PanelModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { live, model, trans } = props;
  const { cpu, memory, gpus = [], notes = [] } = live.readings;
  const window = 60 * model.windowMinutes;
  const shared: Pick<IChart, 'window' | 'longestGap' | 'describe'> = {
    window,
    longestGap: 3 * Math.max(model.stream.interval, 1),
    describe: highest => trans.__('Highest of the last minutes: %1.', highest)
  };
  const quota = hasQuota(live);
  const inContainer = !!memory.container_limit_bytes;
  const used = inContainer ? memory.container_used_bytes : memory.machine_used_bytes;
  const total = inContainer ? memory.container_limit_bytes : memory.machine_total_bytes;
  const cores = model.series('cpu').last;
  const stolen = stolenShare(live);
  const receive = model.series('receive').last;
  const transmit = model.series('transmit').last;
  const noGpu = notes.find(note => note.code === 'missing:gpu');
  const noNetwork = notes.find(note => note.code === 'missing:network');
  return (
    <>
      {cores !== null ? (
        <Chart
          {...shared}
          label={trans.__('Processor')}
          caption={[
            quota ? trans.__('this container') : '',
            stolen ? trans.__('its host took %1 of the processor', formatShare(stolen)) : ''
          ]
            .filter(Boolean)
            .join(' · ')}
          series={model.series('cpu')}
          other={model.series('stolen').highest ? model.series('stolen') : undefined}
          limit={quota ? cpu.usable_cores.value : (cpu.cores ?? []).length}
          format={value => trans.__('%1 cores', value.toFixed(2))}
          text={trans.__(
            '%1 of %2 cores',
            cores.toFixed(2),
            String(quota ? cpu.usable_cores.value : (cpu.cores ?? []).length)
          )}
          tooltip={
            quota
              ? provenance(cpu.container)
              : trans.__('Busy cores of those that may be used, and dashed what the host of a virtual machine took; %1', cpu.name)
          }
        />
      ) : null}
      {used && total ? (
        <Chart
          {...shared}
          label={trans.__('Memory')}
          caption={inContainer ? trans.__('this container, up to its limit') : undefined}
          series={model.series('memory')}
          limit={total.value}
          format={formatBytes}
          text={trans.__('%1 of %2', formatPart(used.value, total.value), formatBytes(total.value))}
          tooltip={provenance(used)}
        />
      ) : null}
      {receive !== null && transmit !== null ? (
        <Chart
          {...shared}
          label={trans.__('Network')}
          series={model.series('receive')}
          other={model.series('transmit')}
          format={value => `${formatBytes(value)}/s`}
          text={`↓ ${formatBytes(receive)}/s  ↑ ${formatBytes(transmit)}/s`}
          tooltip={trans.__('All interfaces but the loopback; filled: received, line: sent')}
        />
      ) : (
        <Remark>
          {trans.__('Network: %1.', noNetwork?.text ?? trans.__('there is only the loopback interface'))}
        </Remark>
      )}
      {gpus.map(gpu => (
        <Gpu key={`${gpu.index}.${gpu.mig_instance}`} gpu={gpu} model={model} shared={shared} trans={trans} />
      ))}
      <div className="jp-aimass-Chart-caption">
        {trans.__('Charts: the last %1 min, up to all there is; the network up to its highest.', String(model.windowMinutes))}
      </div>
      {noGpu ? (
        <Remark>
          {trans.__('GPU: %1.', noGpu.text)}
        </Remark>
      ) : null}
    </>
  );
}

function Gpu(props: {
  gpu: GpuReading;
  model: PanelModel;
  shared: Pick<IChart, 'window' | 'longestGap' | 'describe'>;
  trans: TranslationBundle;
}): JSX.Element {
  const { gpu, model, shared, trans } = props;
  const name = `gpu${gpu.index}.${gpu.mig_instance ?? ''}`;
  const label =
    typeof gpu.mig_instance === 'number'
      ? trans.__('GPU %1, instance %2', String(gpu.index), String(gpu.mig_instance))
      : trans.__('GPU %1', String(gpu.index));
  const memory = (model.live?.gpus ?? []).find(
    one => one.index === gpu.index && (one.mig_instance ?? null) === (gpu.mig_instance ?? null)
  );
  const details = [
    gpu.name,
    gpu.power ? formatNumber(gpu.power) : '',
    gpu.temperature ? formatNumber(gpu.temperature) : '',
    (gpu.throttled ?? []).length ? trans.__('held back: %1', (gpu.throttled ?? []).join(', ')) : ''
  ];
  return (
    <>
      {gpu.utilization ? (
        <Chart
          {...shared}
          label={label}
          caption={details.filter(Boolean).join(' · ')}
          series={model.series(`${name}.busy`)}
          limit={1}
          format={formatShare}
          text={formatShare(gpu.utilization.value)}
          tooltip={provenance(gpu.utilization)}
        />
      ) : null}
      {gpu.memory_used_bytes && gpu.memory_total_bytes ? (
        <Chart
          {...shared}
          label={trans.__('%1 memory', label)}
          series={model.series(`${name}.memory`)}
          limit={gpu.memory_total_bytes.value}
          format={formatBytes}
          text={trans.__(
            '%1 of %2',
            formatPart(gpu.memory_used_bytes.value, gpu.memory_total_bytes.value),
            formatBytes(gpu.memory_total_bytes.value)
          )}
          tooltip={provenance(gpu.memory_used_bytes)}
        />
      ) : null}
      {memory ? <GpuUsers memory={memory} label={label} model={model} trans={trans} /> : null}
    </>
  );
}
