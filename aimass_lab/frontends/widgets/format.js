// Words and figures as the kernel writes them: the same rules as units.py and render.py, which a test holds side by side.

const DECIMAL = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const BINARY = [[2 ** 50, "Pi"], [2 ** 40, "Ti"], [2 ** 30, "Gi"], [2 ** 20, "Mi"], [2 ** 10, "Ki"]];
const COUNTED = ["item", "request", "replica", "core", "device", "node", "worker", "parameter", "layer", "op", "token", "point"];
const SOURCES = { user: "given", measured: "measured", estimated: "predicted", datasheet: "datasheet", assumed: "assumed" };
const QUALITIES = { noisy: ", noisy", extrapolated: ", extrapolated" };

/** Three significant digits, no exponent, no integer digit lost. */
function significant(value, digits = 3) {
  if (value === 0) return "0";
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function scaled(value, steps, unit) {
  for (const [factor, prefix] of steps) if (Math.abs(value) >= factor) return `${significant(value / factor)} ${prefix}${unit}`.trimEnd();
  return `${significant(value)} ${unit}`.trimEnd();
}

function seconds(value) {
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-6) return `${significant(value * 1e9)} ns`;
  if (size < 1e-3) return `${significant(value * 1e6)} µs`;
  if (size < 1) return `${significant(value * 1e3)} ms`;
  if (size < 120) return `${significant(value)} s`;
  return size < 7200 ? `${significant(value / 60)} min` : `${significant(value / 3600)} h`;
}

function count(value, unit) {
  const slash = unit.indexOf("/");
  const noun = slash < 0 ? unit : unit.slice(0, slash);
  const words = `${noun}${value === 1 && slash < 0 ? "" : "s"}${slash < 0 ? "" : unit.slice(slash)}`;
  const whole = Number.isInteger(value);
  const shown = slash < 0 || whole ? value : Number(value.toPrecision(3));
  if (Math.abs(shown) >= 1e6) return `${scaled(shown, DECIMAL, "")} ${words}`;
  return `${whole ? shown.toLocaleString("en-US") : significant(shown)} ${words}`;
}

/** A value in SI base units, as people read it. */
export function quantity(value, unit) {
  if (COUNTED.includes(unit.split("/")[0])) return count(value, unit);
  if (unit === "s") return seconds(value);
  if (unit === "B") return scaled(value, BINARY, "B");
  if (unit === "B/s") return `${scaled(value, BINARY, "B")}/s`;
  if (unit === "ratio") return value === 0 || Math.abs(value) >= 1e-4 ? significant(value) : value.toExponential(2).replace(/e([+-])(\d)$/, (_, sign, digit) => `e${sign}0${digit}`);
  if (unit === "USD/item") return `${significant(1e6 * value)} USD per million items`;
  if (unit.startsWith("USD")) return `${value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })} ${unit}`;
  return scaled(value, DECIMAL, unit);
}

/** A Number of a record. */
export const figure = (number) => (number ? quantity(number.value, number.unit) : "unknown");

/** Its interval: `[11.9, 12.8] ms`. */
export function interval(number) {
  if (!number || !number.interval) return "";
  const [low, high] = number.interval.map((end) => quantity(end, number.unit));
  const [a, b] = [low, high].map((text) => text.split(" "));
  const unit = a.slice(1).join(" ");
  return unit === b.slice(1).join(" ") ? `[${a[0]}, ${b[0]}] ${unit}`.trim() : `[${low}, ${high}]`;
}

/** Both: `150 [148, 152] items/s`; the value keeps its own unit where that of the interval is another. */
export function measured(number) {
  const [value, band] = [figure(number), interval(number)];
  const at = value.indexOf(" ");
  return at > 0 && band.endsWith(value.slice(at)) ? `${value.slice(0, at)} ${band}` : `${value} ${band}`.trim();
}

/** How far it can be trusted. */
export const sourceWord = (number) => SOURCES[number.trust || number.source] + (QUALITIES[number.quality] || "");

/** Everything that is known of where it comes from. */
export function provenance(number) {
  const parts = [`${sourceWord(number)}: ${number.method}`];
  if (number.interval && number.interval_kind) parts.push(`${interval(number)} is the ${number.interval_kind}`);
  if (number.n) parts.push(`n = ${number.n}`);
  return parts.join("; ");
}

/** As a heading begins. */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A part of a whole, which is only called 100 % where it is all of it. */
export function percent(share) {
  if (share >= 0.995 && share < 1) return `${(Math.floor(1e4 * share) / 100).toFixed(2)} %`;
  if (share === 0) return "0 %";
  if (Math.abs(share) < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(Math.abs(share) >= 0.0995 ? 0 : 1)} %`;
}
