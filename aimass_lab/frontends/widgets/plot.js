// Small charts in SVG: scales, axes, lines in their bands; and areas that are cut into shares.

import { h } from "./dom.js";

export const linear = (d0, d1, r0, r1) => (v) => r0 + ((v - d0) / (d1 - d0 || 1)) * (r1 - r0);
export const logarithmic = (d0, d1, r0, r1) => {
  const scale = linear(Math.log(d0), Math.log(d1), r0, r1);
  return (v) => scale(Math.log(v));
};

const ROOMS = [[480, 340], [832, 560]]; // up to a panel's width in pixels, as panel.css has its steps: what a plot's width is at most

/** How wide a plot may be laid out in a panel of `width` pixels: shrunk from more, nobody could read its words. */
export const roomIn = (width) => ROOMS.find(([most]) => width <= most)?.[1] ?? Infinity;

/** Round values that cut [0, high] into about `wanted` steps. */
export function ticks(high, wanted = 4, base = 10) {
  const rough = high / wanted;
  const power = base ** Math.floor(Math.log(rough) / Math.log(base));
  const step = (base === 10 ? [1, 2, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]).map((m) => m * power).find((s) => s >= rough) || rough;
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => i * step);
}

/** Powers of `base` within [low, high], thinned out to at most `most`. */
export function powers(low, high, base = 10, most = 6) {
  const first = Math.ceil(Math.log(low) / Math.log(base) - 1e-9);
  const last = Math.floor(Math.log(high) / Math.log(base) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first + 1) / most));
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => base ** (first + i * step));
}

/** Round values within [low, high] for a logarithmic axis: 1, 2 and 5 times the powers of ten, as many as leave room. */
export function rounds(low, high, most = 6) {
  const of = (steps) => powers(low / 10, high, 10, 99).flatMap((power) => steps.map((step) => step * power)).filter((v) => v >= low && v <= high);
  return [[1, 2, 5], [1, 3], [1]].map(of).find((found) => found.length <= most) ?? powers(low, high, 10, most);
}

/** About five round values of an axis from `low`, which is 0 on a linear one, to `high`. */
export function scaleTicks(low, high, isLog, base) {
  if (!isLog) return ticks(high, 4, base);
  return base === 10 ? rounds(low, high, 5) : powers(low, high, base, 5);
}

/** Axes of a plot of size `w` by `h_` inside the margins `m`; texts are given with their places. */
export function axes({ width, height, margin: m, x, y, xTicks, yTicks, xLabel, yLabel }) {
  const [bottom, right] = [height - m.bottom, width - m.right];
  return h("g", { class: "aw-axes" },
    yTicks.map(([value, text]) => [h("line", { class: "aw-grid", x1: m.left, x2: right, y1: y(value), y2: y(value) }), h("text", { x: m.left - 6, y: y(value) + 3.5, "text-anchor": "end" }, text)]),
    xTicks.map(([value, text]) => [h("line", { class: "aw-grid", x1: x(value), x2: x(value), y1: m.top, y2: bottom }), h("text", { x: x(value), y: bottom + 14, "text-anchor": "middle" }, text)]),
    h("text", { class: "aw-axis-name", x: (m.left + right) / 2, y: height - 3, "text-anchor": "middle" }, xLabel),
    yLabel ? h("text", { class: "aw-axis-name", x: m.left, y: m.top - 8 }, yLabel) : null,
  );
}

const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");

/** A line through `points` of {x, y, low, high}, in its band. */
export const bandLine = (points, x, y, kind = "") =>
  h("g", { class: `aw-series ${kind}` },
    h("path", { class: "aw-area", d: `${path([...points.map((p) => [x(p.x), y(p.high)]), ...points.toReversed().map((p) => [x(p.x), y(p.low)])])}Z` }),
    h("path", { class: "aw-line", d: path(points.map((p) => [x(p.x), y(p.y)])) }));

/** A curve of {x, y, low, high} by rising x at any x that it covers: straight between its points on logarithmic axes, as it is drawn. */
export function at(points, x) {
  if (!points.length || x < points[0].x || x > points.at(-1).x) return null;
  const next = points.findIndex((p) => p.x >= x);
  const [a, b] = [points[Math.max(0, next - 1)], points[next]];
  if (a.x === b.x || b.x === x) return b;
  const share = Math.log(x / a.x) / Math.log(b.x / a.x);
  const mix = (name) => Math.exp(Math.log(Math.max(1e-30, a[name])) * (1 - share) + Math.log(Math.max(1e-30, b[name])) * share);
  return { x, y: mix("y"), low: mix("low"), high: mix("high") };
}

/** A line of steps, filled down to `floor`. */
export const steps = (points, x, y, floor) => {
  const corners = points.flatMap(([a, b], i) => (i ? [[x(a), y(points[i - 1][1])], [x(a), y(b)]] : [[x(a), y(b)]]));
  return [h("path", { class: "aw-area", d: `${path([[corners[0][0], floor], ...corners, [corners.at(-1)[0], floor]])}Z` }), h("path", { class: "aw-line", d: path(corners) })];
};

/** Let a plot be dragged across: `move` is told where the pointer is, in the plot's own units, and `drop` when it is let go. */
export function draggable(svg, move, drop) {
  let held = false;
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  };
  svg.addEventListener("pointerdown", (event) => {
    // No mousedown is to follow: a notebook's handler of it would look at the focus and the selection, and have the whole page laid out for that.
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    held = true;
    move(place(event));
  });
  svg.addEventListener("pointermove", (event) => { if (held) move(place(event)); });
  svg.addEventListener("pointerup", () => { if (held) { held = false; drop(); } });
}

/** Cut a rectangle into areas proportional to `value`, near to squares (Bruls, Huizing, van Wijk 2000); values in falling order. */
export function squarify(items, box) {
  const total = items.reduce((sum, item) => sum + item.value, 0);
  const placed = [];
  let { x, y, w, h: height } = box;
  let left = items.filter((item) => item.value > 0);
  let scale = (w * height) / (total || 1);
  const worst = (row, side) => {
    const sum = row.reduce((s, item) => s + item.value * scale, 0);
    return Math.max(...row.map((item) => Math.max((side * side * item.value * scale) / (sum * sum), (sum * sum) / (side * side * item.value * scale))));
  };
  while (left.length) {
    const side = Math.min(w, height);
    const row = [left[0]];
    while (row.length < left.length && worst([...row, left[row.length]], side) <= worst(row, side)) row.push(left[row.length]);
    const thick = row.reduce((s, item) => s + item.value * scale, 0) / side;
    let at = 0;
    for (const item of row) {
      const long = (item.value * scale) / thick;
      placed.push({ item, ...(w >= height ? { x, y: y + at, w: thick, h: long } : { x: x + at, y, w: long, h: thick }) });
      at += long;
    }
    if (w >= height) { x += thick; w -= thick; } else { y += thick; height -= thick; }
    left = left.slice(row.length);
  }
  return placed;
}
