/** Words, series and the stream's patience, without a browser. */

import * as assert from 'node:assert/strict';
import { test } from 'node:test';

import { formatBytes, formatCount, formatGrowth, formatPart, formatSeconds, formatShare } from '../format';
import type { Live } from '../records';
import { busyCores, pieces, Series, stolenShare, valuesOf } from '../series';

const number = (value: number, unit: string) =>
  ({ value, unit, source: 'measured', method: 'test' }) as never;

function live(change: object, cpu: object = {}): Live {
  return {
    record: 'live',
    version: '1',
    readings: {
      record: 'readings',
      taken_at: '2026-01-01T00:00:00Z',
      interval: number(1, 's'),
      cpu: { name: 'CPU', usable_cores: number(4, 'core'), cores: [1, 0.5, 0, 0], ...cpu },
      memory: { machine_used_bytes: number(3, 'B'), machine_total_bytes: number(8, 'B') },
      storage: {},
      ...change
    }
  } as unknown as Live;
}

test('quantities read as in the Python half', () => {
  assert.equal(formatBytes(0), '0 B');
  assert.equal(formatBytes(1536), '1.50 KiB');
  assert.equal(formatBytes(-(2 ** 30)), '−1.00 GiB');
  assert.equal(formatPart(2 ** 30, 2 ** 34), '1.00');
  assert.equal(formatPart(2 ** 20, 2 ** 34), '1.00 MiB');
  assert.equal(formatGrowth(2 ** 20), '+1.00 MiB');
  assert.equal(formatGrowth(0), '±0');
  assert.equal(formatSeconds(0.0123), '12.3 ms');
  assert.equal(formatSeconds(125), '2 min 5 s');
  assert.equal(formatCount(1234567), '1.23 M');
  assert.deepEqual([0, 0.0002, 0.043, 0.498, 0.99996, 1].map(formatShare), ['0 %', '< 0.1 %', '4.3 %', '50 %', '99.99 %', '100 %']);
});

test('a series forgets what is older than its window', () => {
  const series = new Series(() => 10);
  [0, 5, 11, 12].forEach(time => series.add(time, time));
  assert.deepEqual(series.points.map(p => p.time), [5, 11, 12]);
  assert.equal(series.highest, 12);
});

test('a line is broken where nothing was read', () => {
  const points = [0, 1, 2, 60, 61].map(time => ({ time, value: 1 }));
  assert.deepEqual(pieces(points, 3).map(piece => piece.length), [3, 2]);
});

test('a container with a quota counts its own use, a machine its usable cores', () => {
  assert.equal(busyCores(live({})), 1.5);
  const quota = { usable_cores: number(2, 'core'), container: number(0.7, 'core') };
  assert.equal(busyCores(live({}, quota)), 0.7);
  const limited = live({
    memory: { machine_used_bytes: number(3, 'B'), container_used_bytes: number(1, 'B'), container_limit_bytes: number(2, 'B') }
  });
  assert.equal(valuesOf(limited).get('memory'), 1);
});

test('what the host takes of the processor is told from one percent on, and drawn in cores', () => {
  const taken = (share: number) => live({}, { stolen: number(share, 'ratio') });
  assert.equal(stolenShare(taken(0.25)), 0.25);
  assert.equal(stolenShare(taken(0.001)), null);
  assert.equal(stolenShare(live({})), null);
  assert.equal(valuesOf(taken(0.25)).get('stolen'), 1);
  assert.equal(valuesOf(live({})).has('stolen'), false);
});

test('what is not known is absent, never zero', () => {
  const values = valuesOf(live({ gpus: [{ index: 0, name: 'GPU', memory_used_bytes: number(5, 'B') }] }));
  assert.equal(values.has('gpu0..busy'), false);
  assert.equal(values.get('gpu0..memory'), 5);
  assert.equal(values.has('receive'), false);
});
