// What if the batch were another: curves from the fitted model, followed by hand; a measured dot where it is let go.

import { capital, figure, interval, measured, percent, quantity, sourceWord } from "./format.js";
import { empty, fill, h, number, section } from "./dom.js";
import { at, axes, bandLine, draggable, linear, logarithmic, powers, scaleTicks } from "./plot.js";
import { lengthPart } from "./lengths.js";

const PLOT = { width: 320, height: 230, margin: { left: 58, right: 12, top: 26, bottom: 38 } };
const QUANTITIES = [["latency", "latency of a call", "s"], ["throughput", "throughput", "item/s"], ["memory", "peak memory of a call", "B"]];
const MEASURE_S = 2;

/** The predicted points by quantity, as {x, y, low, high}. */
function curvesOf(prediction) {
  const points = [...prediction.points].sort((a, b) => a.batch_size - b.batch_size);
  const take = (get) => points.flatMap((p) => {
    const n = get(p);
    return n ? [{ x: p.batch_size, y: n.value, low: n.interval?.[0] ?? n.value, high: n.interval?.[1] ?? n.value }] : [];
  });
  return { latency: take((p) => p.latency), throughput: take((p) => p.throughput), memory: take((p) => p.peak_memory_bytes) };
}

export const whatIfView = {
  name: "what-if",
  text: "What-if",
  kinds: ["prediction", "sequence_demand"],
  facts: ["points", "devices", "length"],
  kept: (ctx) => ctx.fact("length")?.points.length > 1,
  draw: drawWhatIf,
  line: (ctx) => (ctx.record("prediction") ? null : ctx.line("predict")), // the curves show the line of the point that they are at
};

function drawWhatIf(ctx) {
  const prediction = ctx.record("prediction");
  if (!prediction) {
    const text = "No curve is fitted yet. A prediction rests on the newest profile, or makes one; what is measured later is set beside it.";
    return { node: h("div", { class: "aw-view" }, empty(text, "Fit the curves", () => ctx.run([ctx.line("predict")])), lengthPart(ctx)) };
  }
  return new WhatIf(ctx, prediction).view();
}

class WhatIf {
  constructor(ctx, prediction) {
    this.ctx = ctx;
    this.prediction = prediction;
    this.curves = curvesOf(prediction);
    this.sizes = [this.curves.latency[0].x, this.curves.latency.at(-1).x];
    this.here = prediction.device === ctx.subject().device;
    this.history = ctx.fact("points").filter((p) => p.device === prediction.device);
    this.limit = prediction.memory_limit_bytes?.value;
    this.largest = prediction.max_batch_size?.value;
    this.batch = Math.min(this.sizes[1], Math.max(this.sizes[0], ctx.ui.batch ?? ctx.subject().batch));
    this.rate = ctx.ui.rate ?? 100;
  }

  view() {
    this.cards = h("div", { class: "aw-facts aw-four" });
    this.verdict = h("p", { class: "aw-lead", role: "status" });
    this.plots = QUANTITIES.map(([name, title, unit]) => this.plot(name, title, unit));
    const node = h("div", { class: "aw-view" }, this.controls(), this.verdict, this.cards, h("div", { class: "aw-three" }, this.plots.map((p) => p.node)), this.legend(), this.past(), lengthPart(this.ctx));
    this.move(this.batch);
    return { node, mark: () => { this.say(); } };
  }

  legend() {
    const edge = this.largest && this.largest < this.sizes[1] ? [h("span", { class: "aw-key aw-key-edge" }), "beyond the memory limit "] : null;
    return h("p", { class: "aw-hint" }, h("span", { class: "aw-key aw-key-band" }), "predicted, 90 % band ", h("span", { class: "aw-key aw-key-rested" }), "measured, what the curve rests on ", h("span", { class: "aw-key aw-key-measured" }), "measured when you asked ", edge);
  }

  controls() {
    const { ctx } = this;
    const [low, high] = this.sizes.map(Math.log2);
    const fromSlider = (event) => this.move(Math.max(1, Math.round(2 ** Number(event.target.value))));
    this.slider = h("input", { type: "range", min: low, max: high, step: 0.01, "aria-label": "batch size", oninput: fromSlider, onchange: () => this.letGo(), onkeydown: (event) => this.key(event) });
    this.box = h("input", { type: "number", class: "aw-input aw-short", min: this.sizes[0], max: this.sizes[1], "aria-label": "batch size, typed", onchange: (event) => { this.move(Number(event.target.value) || this.batch); this.letGo(); } });
    const rate = h("input", { type: "number", class: "aw-input aw-short", min: 0.1, step: "any", value: this.rate, "aria-label": "requests per second", oninput: (event) => { this.rate = ctx.ui.rate = Number(event.target.value) || this.rate; this.move(this.batch); } });
    const names = [ctx.subject().device, ...ctx.fact("devices").filter((name) => name !== ctx.subject().device)];
    const device = h("select", { class: "aw-input", "aria-label": "device", onchange: (event) => ctx.run([ctx.line("predict", event.target.value === ctx.subject().device ? {} : { device: event.target.value })]) }, names.map((name, i) => h("option", { value: name, selected: name === this.prediction.device }, i ? name : `${name} (attached)`)));
    return h("div", { class: "aw-bench", "data-live": true },
      h("label", { class: "aw-field aw-wide" }, h("span", {}, "batch size"), h("span", { class: "aw-row" }, this.slider, this.box)),
      h("label", { class: "aw-field" }, h("span", {}, "requests per second"), rate),
      h("label", { class: "aw-field" }, h("span", {}, "device"), device));
  }

  /** Whole steps with the arrow keys: a hundredth of a doubling would often be no step at all. */
  key(event) {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: this.batch, PageDown: -Math.floor(this.batch / 2) }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.move(this.batch + step);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.letGo(), 700); // the keys have come to rest
  }

  plot(name, title, unit) {
    const points = this.curves[name];
    const holder = section(capital(title), this.ctx.codeButton(() => this.ctx.chartLine("prediction")));
    if (points.length < 2) {
      holder.append(h("p", { class: "aw-hint" }, "Not predicted: see the notes of the prediction."));
      return { node: holder, move() {} };
    }
    const { width, height, margin } = PLOT;
    const dots = this.history.filter((p) => p[name] && p.batch >= this.sizes[0] && p.batch <= this.sizes[1]);
    const rested = name === "memory" ? [] : this.prediction.measured.map((p) => [p.batch_size, (name === "latency" ? p.latency_p50 : p.throughput).value]);
    const limit = name === "memory" && this.limit && this.limit < 4 * Math.max(...points.map((p) => p.high)) ? this.limit : null;
    const values = [...points.flatMap((p) => [p.low, p.high]), ...dots.map((p) => p[name].value), ...(limit ? [limit] : [])].filter((v) => v > 0);
    const spread = Math.max(...values) / Math.min(...values);
    const logY = spread > 20 && name !== "throughput";
    const top = Math.max(...values) * (logY ? 1.4 : 1.1);
    const bottom = logY ? Math.min(...values) / 1.4 : 0;
    const x = logarithmic(this.sizes[0], this.sizes[1], margin.left, width - margin.right);
    const y = (logY ? logarithmic : linear)(bottom, top, height - margin.bottom, margin.top);
    const yTicks = scaleTicks(bottom, top, logY, unit === "B" ? 2 : 10).map((v) => [v, v ? quantity(v, unit).replace(/\.0+ /, " ").replace(/ items\/s/, "") : "0"]);
    const floor = height - margin.bottom;
    const edge = this.largest && this.largest < this.sizes[1] ? x(Math.max(this.sizes[0], this.largest)) : null;
    const cursor = h("line", { class: "aw-cursor", y1: margin.top, y2: floor });
    const handle = h("circle", { class: "aw-handle", r: 7 });
    const svg = h("svg", { class: "aw-plot aw-drag", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} by batch size, predicted with its band` },
      axes({ width, height, margin, x, y, xTicks: powers(this.sizes[0], this.sizes[1], 2, 7).map((v) => [v, v.toLocaleString("en-US")]), yTicks, xLabel: "batch size", yLabel: unit === "item/s" ? "items/s" : null }),
      edge === null ? null : [h("rect", { class: "aw-beyond", x: edge, y: margin.top, width: width - margin.right - edge, height: floor - margin.top }), h("line", { class: "aw-limit", x1: edge, x2: edge, y1: margin.top, y2: floor })],
      limit ? [h("line", { class: "aw-limit", x1: margin.left, x2: width - margin.right, y1: y(limit), y2: y(limit) }), h("text", { class: "aw-limit-name", x: margin.left + 5, y: y(limit) - 5 }, `limit ${quantity(limit, "B")}`)] : null,
      bandLine(points, x, y), rested.map(([b, v]) => h("circle", { class: "aw-rested", cx: x(b), cy: y(v), r: 2.6 })),
      cursor, handle, dots.map((p) => (p.kind === "measured" ? h("circle", { class: "aw-measured", cx: x(p.batch), cy: y(p[name].value), r: 4 }) : null)));
    const toBatch = (at) => {
      const share = (at - margin.left) / (width - margin.left - margin.right);
      return Math.round(this.sizes[0] * (this.sizes[1] / this.sizes[0]) ** Math.min(1, Math.max(0, share)));
    };
    draggable(svg, (at) => this.move(toBatch(at)), () => this.letGo());
    holder.append(svg);
    return { node: holder, move: (batch) => {
      const now = at(points, batch);
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(batch));
      handle.setAttribute("cx", x(batch));
      if (now) handle.setAttribute("cy", y(Math.max(now.y, bottom || 0)));
    } };
  }

  /** Follow the hand: everything that is shown comes from the curves that are here already. */
  move(batch) {
    this.batch = this.ctx.ui.batch = Math.min(this.sizes[1], Math.max(this.sizes[0], batch));
    this.box.value = this.batch;
    if (document.activeElement !== this.slider || !this.slider.matches(":active")) this.slider.value = Math.log2(this.batch);
    this.slider.setAttribute("aria-valuetext", `${this.batch} items`);
    for (const plot of this.plots) plot.move(this.batch);
    const found = Object.fromEntries(QUANTITIES.map(([name]) => [name, at(this.curves[name], this.batch)]));
    const seen = this.history.findLast((p) => p.kind === "measured" && p.batch === this.batch);
    const before = this.history.findLast((p) => p.kind === "predicted" && p.batch === this.batch);
    const predicted = (p, unit) => (p ? [h("b", {}, quantity(p.y, unit)), h("span", { class: "aw-band" }, interval({ value: p.y, unit, interval: [p.low, p.high] })), h("span", { class: "aw-src" }, "predicted")] : "not predicted");
    const card = (text, value, more) => h("div", { class: "aw-fact" }, h("span", { class: "aw-fact-name" }, text), value, more ? h("span", { class: "aw-band" }, more) : null);
    fill(this.cards,
      QUANTITIES.map(([name, title, unit]) => card(title, seen?.[name] ? number(seen[name]) : h("span", { class: "aw-number" }, predicted(found[name], unit)), seen?.[name] && before?.[name] ? `was predicted ${measured(before[name])}` : null)),
      card(`one copy at ${this.rate.toLocaleString("en-US")} requests/s`, h("span", { class: "aw-number" }, h("b", {}, found.throughput ? this.busy(found.throughput.y) : "–"), h("span", { class: "aw-src" }, "predicted")), this.batch > 1 ? `${quantity((this.batch - 1) / this.rate, "s")} until ${this.batch} requests have come` : "no request waits for another"));
    this.say();
    this.ctx.showCode(this.lines());
  }

  say() {
    const words = this.words();
    if (this.verdict.textContent === words) return;
    this.verdict.textContent = words;
    this.verdict.className = `aw-lead${this.tooLarge() ? " aw-bad" : ""}`;
  }

  busy(throughput) {
    const share = this.rate / throughput;
    return share <= 1 ? `${percent(share)} busy` : `too much: ${Math.ceil(share)} copies at least`;
  }

  tooLarge() { return this.largest !== undefined && this.largest !== null && this.batch > this.largest; }

  words() {
    if (this.tooLarge()) return `Batch ${this.batch.toLocaleString("en-US")} is not predicted to fit: the largest that does is ${this.largest.toLocaleString("en-US")}${this.limit ? `, of ${quantity(this.limit, "B")}` : ""}. Nothing will be run.`;
    const seen = this.history.findLast((p) => p.kind === "measured" && p.batch === this.batch);
    const before = this.history.findLast((p) => p.kind === "predicted" && p.batch === this.batch);
    if (seen && before) {
      const [low, high] = before.latency.interval ?? [before.latency.value, before.latency.value];
      const hit = seen.latency.value >= low && seen.latency.value <= high;
      return `Batch ${this.batch}: predicted ${measured(before.latency)}, measured ${figure(seen.latency)} (${sourceWord(seen.latency)}): ${hit ? "inside" : "outside"} the band.`;
    }
    if (this.ctx.busy()) return `Batch ${this.batch} is measured beside the notebook, after what is running.`;
    if (seen) return `Batch ${this.batch}: measured ${figure(seen.latency)} (${sourceWord(seen.latency)}).`;
    if (!this.here) return `Predicted for ${this.prediction.device}, which is not attached: nothing can be measured there.`;
    return "Let go, and this point is measured beside the notebook; the dot lands beside the curve.";
  }

  lines() {
    const { ctx } = this;
    if (!this.here) return [ctx.line("predict", { device: this.prediction.device, batch: [this.batch] })];
    return [ctx.line("predict", { batch: [this.batch] }), ctx.line("profile", { batch: this.batch, seconds: MEASURE_S }), ctx.line("predict")];
  }

  letGo() {
    clearTimeout(this.waiting);
    if (this.here && !this.tooLarge()) this.ctx.run(this.lines(), { replace: true });
  }

  past() {
    const pairs = this.history.filter((p) => p.kind === "measured").map((seen) => [this.history.findLast((p) => p.kind === "predicted" && p.batch === seen.batch), seen]).filter(([before]) => before);
    const notes = this.prediction.notes.map((note) => h("li", {}, note.text));
    return h("div", {},
      pairs.length ? section("Predicted, then measured", this.ctx.codeButton(() => "%aimass ledger"), h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "predicted, then measured" }, h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, ["batch", "predicted latency", "90 % band", "measured", "measured lies"].map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, pairs.map(([before, seen]) => {
          const [low, high] = before.latency.interval ?? [before.latency.value, before.latency.value];
          return h("tr", {}, h("th", { scope: "row" }, before.batch), h("td", { class: "aw-num" }, figure(before.latency)), h("td", { class: "aw-num" }, interval(before.latency)), h("td", { class: "aw-num" }, figure(seen.latency)), h("td", {}, seen.latency.value >= low && seen.latency.value <= high ? "inside" : "outside"));
        }))))) : null,
      notes.length ? h("details", { class: "aw-notes" }, h("summary", {}, `What this prediction rests on (${notes.length})`), h("ul", {}, notes)) : null);
  }
}
