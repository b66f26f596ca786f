/** Quantities as people read them; the same words as the Python half's `units.py`. */

import type { Number } from './records';

const BINARY = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** Three significant digits, without an exponent. */
function significant(value: number): string {
  if (value === 0) {
    return '0';
  }
  const digits = 2 - Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.min(Math.max(digits, 0), 6));
}

/** `1.50 GiB`; bytes are whole. */
export function formatBytes(value: number): string {
  let size = Math.abs(value);
  let unit = 0;
  while (size >= 1023.5 && unit < BINARY.length - 1) {
    size /= 1024;
    unit++;
  }
  const text = unit === 0 ? String(Math.round(size)) : significant(size);
  return `${value < 0 ? '−' : ''}${text} ${BINARY[unit]}`;
}

/** Bytes that are a part of others: `2.85` of 23.5 GiB, without the unit where the whole has the same. */
export function formatPart(part: number, whole: number): string {
  const [figure, unit] = formatBytes(part).split(' ');
  return formatBytes(whole).endsWith(` ${unit}`) ? figure : `${figure} ${unit}`;
}

/** A change: `+1.50 GiB`, `−3 KiB`, `±0`. */
export function formatGrowth(value: number): string {
  return value === 0 ? '±0' : `${value > 0 ? '+' : ''}${formatBytes(value)}`;
}

/** `12.3 ms`, `4.50 s`, `2 min 5 s`. */
export function formatSeconds(value: number): string {
  if (value >= 59.95) {
    const whole = Math.round(value);
    return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  }
  if (value >= 0.9995 || value === 0) {
    return `${significant(value)} s`;
  }
  return value >= 9.995e-4
    ? `${significant(value * 1e3)} ms`
    : `${significant(value * 1e6)} µs`;
}

/** `1,234,567` as `1.23 M`. */
export function formatCount(value: number): string {
  const steps: Array<[number, string]> = [
    [1e12, 'T'],
    [1e9, 'G'],
    [1e6, 'M'],
    [1e3, 'k']
  ];
  const step = steps.find(([size]) => value >= size);
  return step ? `${significant(value / step[0])} ${step[1]}` : String(value);
}

/** `50 %`, `4.3 %`: only the whole is called 100 %. */
export function formatShare(value: number): string {
  if (value >= 0.995 && value < 1) {
    return `${(Math.floor(1e4 * value) / 100).toFixed(2)} %`;
  }
  if (value > 0 && value < 0.0005) {
    return '< 0.1 %';
  }
  return `${(100 * value).toFixed(value === 0 || value >= 0.0995 ? 0 : 1)} %`;
}

/** A `Number` in its own unit. */
export function formatNumber(number: Number | null | undefined): string {
  if (!number) {
    return '–';
  }
  const { value, unit } = number;
  switch (unit) {
    case 'B':
      return formatBytes(value);
    case 'B/s':
      return `${formatBytes(value)}/s`;
    case 's':
      return formatSeconds(value);
    case 'ratio':
      return formatShare(value);
    case 'core':
      return value.toFixed(value < 10 ? 2 : 1);
    default:
      return `${significant(value)} ${unit}`;
  }
}

/** What a number is worth, for a tooltip. */
export function provenance(number: Number | null | undefined): string {
  return number ? `${number.source}: ${number.method}` : '';
}

/** Last part of a path. */
export function baseName(path: string): string {
  return path.replace(/\/+$/, '').split('/').pop() || path;
}

/** Local date and time of an ISO 8601 moment, without seconds. */
export function formatMoment(moment: string, now = new Date()): string {
  const date = new Date(moment);
  const sameDay = date.toDateString() === now.toDateString();
  return date.toLocaleString(
    undefined,
    sameDay
      ? { hour: '2-digit', minute: '2-digit' }
      : { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' }
  );
}
