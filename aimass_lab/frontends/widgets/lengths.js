// What if the sequences were longer: latency, tokens per second and memory by length, from one pass over shapes at each.

import { capital, interval, quantity } from "./format.js";
import { empty, fill, h, number, section } from "./dom.js";
import { at, axes, bandLine, draggable, linear, logarithmic, powers, scaleTicks } from "./plot.js";

const PLOT = { width: 320, height: 210, margin: { left: 58, right: 12, top: 26, bottom: 38 } };
const QUANTITIES = [["latency", "latency of a call", "s"], ["tokens", "tokens per second", "token/s"], ["memory", "peak memory of a call", "B"]];
const REST_MS = 250;

/** The section, and null for a model that reads no token numbers. */
export function lengthPart(ctx) {
  const known = ctx.fact("length");
  return known ? new ByLength(ctx, known).node() : null;
}

class ByLength {
  constructor(ctx, known) {
    Object.assign(this, { ctx, known });
    this.tokens = ctx.ui.tokens ?? known.own;
    this.curves = Object.fromEntries(QUANTITIES.map(([name]) => [name, curve(known, name)]));
    this.lengths = known.points.map((p) => p.length);
  }

  /** From an eighth of the length of the example inputs to eight times as much, as far as the model reads. */
  ladder() {
    const { own, most } = this.known;
    const sizes = [-3, -2, -1, 0, 1, 2, 3].map((k) => Math.round(own * 2 ** k)).filter((n) => n >= 1 && (most === null || n <= most));
    return [...new Set(sizes)];
  }

  line(lengths) {
    const { batch, device } = this.known;
    const { subject, line } = this.ctx;
    return line("demand", { batch: batch === undefined || batch === subject().batch ? null : batch, device: device === undefined || device === subject().device ? null : device, length: lengths });
  }

  node() {
    const { ctx, known } = this;
    const code = ctx.codeButton(() => this.line(this.lengths.length > 1 ? [this.tokens] : this.ladder()));
    const text = `The example inputs have ${known.own} tokens. Other lengths are followed over shapes; nothing is run.`;
    if (this.lengths.length < 2) return section("Sequence length", code, empty(text, "Follow other lengths", () => ctx.run([this.line(this.ladder())])), this.generation());
    this.ends = [this.lengths[0], this.lengths.at(-1)];
    this.cards = h("div", { class: "aw-facts aw-four" });
    this.plots = QUANTITIES.map(([name, title, unit]) => this.plot(name, title, unit));
    const node = section("Sequence length", code, this.controls(), this.cards, h("div", { class: "aw-three" }, this.plots.map((plot) => plot.node)),
      h("p", { class: "aw-hint" }, h("span", { class: "aw-key aw-key-band" }), "predicted, with its band ", h("span", { class: "aw-key aw-key-rested" }), "followed at this length ", h("span", { class: "aw-key aw-key-measured" }), `measured, at the ${known.own} tokens of the example inputs; at other lengths a Study of such inputs measures`), this.generation());
    this.move(this.tokens);
    return node;
  }

  controls() {
    const { known } = this;
    const [low, high] = this.ends.map(Math.log2);
    this.slider = h("input", { type: "range", min: low, max: high, step: 0.01, "aria-label": "sequence length", oninput: (event) => this.move(Math.round(2 ** Number(event.target.value))), onchange: () => this.letGo() });
    this.box = h("input", { type: "number", class: "aw-input aw-short", min: 1, max: known.most, "aria-label": "sequence length, typed", onchange: (event) => { this.move(Number(event.target.value) || this.tokens); this.letGo(); } });
    return h("div", { class: "aw-bench", "data-live": true }, h("label", { class: "aw-field aw-wide" }, h("span", {}, `tokens of a sequence, ${quantity(known.batch, "item")} a call${known.device === this.ctx.subject().device ? "" : ` on ${known.device}`}`), h("span", { class: "aw-row" }, this.slider, this.box)));
  }

  plot(name, title, unit) {
    const points = this.curves[name];
    if (points.length < 2) return { node: section(capital(title), null, h("p", { class: "aw-hint" }, "Not predicted there: a rate of the device is unknown.")), move() {} };
    const { width, height, margin } = PLOT;
    const { known } = this;
    const limit = name === "memory" && known.limit && known.limit < 4 * Math.max(...points.map((p) => p.high)) ? known.limit : null;
    const seen = name === "memory" ? null : this.ctx.fact("points").findLast((p) => p.kind === "measured" && p.batch === known.batch && p.device === known.device);
    const dot = seen ? (name === "latency" ? seen.latency.value : (known.batch * known.own) / seen.latency.value) : null;
    const values = [...points.flatMap((p) => [p.low, p.high]), ...(limit ? [limit] : []), ...(dot ? [dot] : [])];
    const logY = Math.max(...values) / Math.min(...values) > 20;
    const [bottom, top] = [logY ? Math.min(...values) / 1.4 : 0, Math.max(...values) * (logY ? 1.4 : 1.1)];
    const floor = height - margin.bottom;
    const x = logarithmic(...this.ends, margin.left, width - margin.right);
    const y = (logY ? logarithmic : linear)(bottom, top, floor, margin.top);
    const base = unit === "B" ? 2 : 10;
    const yTicks = scaleTicks(bottom, top, logY, base).map((v) => [v, v ? quantity(v, unit).replace(/\.0+ /, " ").replace(/ tokens\/s/, "") : "0"]);
    const cursor = h("line", { class: "aw-cursor", y1: margin.top, y2: floor });
    const handle = h("circle", { class: "aw-handle", r: 7 });
    const svg = h("svg", { class: "aw-plot aw-drag", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} by sequence length, predicted with its band` },
      axes({ width, height, margin, x, y, xTicks: powers(...this.ends, 2, 7).map((v) => [v, v.toLocaleString("en-US")]), yTicks, xLabel: "tokens", yLabel: unit === "token/s" ? "tokens/s" : null }),
      limit ? [h("line", { class: "aw-limit", x1: margin.left, x2: width - margin.right, y1: y(limit), y2: y(limit) }), h("text", { class: "aw-limit-name", x: margin.left + 5, y: y(limit) - 5 }, `limit ${quantity(limit, "B")}`)] : null,
      bandLine(points, x, y), points.map((p) => h("circle", { class: "aw-rested", cx: x(p.x), cy: y(p.y), r: 2.6 })), cursor, handle,
      dot && known.own >= this.ends[0] && known.own <= this.ends[1] ? h("circle", { class: "aw-measured", cx: x(known.own), cy: y(dot), r: 4 }) : null);
    const toTokens = (place) => Math.round(this.ends[0] * (this.ends[1] / this.ends[0]) ** Math.min(1, Math.max(0, (place - margin.left) / (width - margin.left - margin.right))));
    draggable(svg, (place) => this.move(toTokens(place)), () => this.letGo());
    return { node: section(capital(title), null, svg), move: (tokens) => {
      const now = at(points, tokens);
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(tokens));
      handle.setAttribute("cx", x(tokens));
      if (now) handle.setAttribute("cy", y(now.y));
    } };
  }

  /** Follow the hand: from the curves that are here already. */
  move(tokens) {
    this.tokens = this.ctx.ui.tokens = Math.max(1, Math.round(tokens));
    const shown = Math.min(this.ends[1], Math.max(this.ends[0], this.tokens));
    this.box.value = this.tokens;
    if (!this.slider.matches(":active")) this.slider.value = Math.log2(shown);
    this.slider.setAttribute("aria-valuetext", `${this.tokens} tokens`);
    for (const plot of this.plots) plot.move(shown);
    const own = this.known.points.find((p) => p.length === this.tokens);
    const card = (text, value) => h("div", { class: "aw-fact" }, h("span", { class: "aw-fact-name" }, text), value);
    const read = (name, unit) => { const p = at(this.curves[name], this.tokens); return p ? h("span", { class: "aw-number" }, h("b", {}, quantity(p.y, unit)), h("span", { class: "aw-band" }, interval({ value: p.y, unit, interval: [p.low, p.high] })), h("span", { class: "aw-src" }, "predicted")) : h("span", { class: "aw-number" }, "not followed yet"); };
    fill(this.cards, QUANTITIES.map(([name, title, unit]) => card(title, read(name, unit))),
      card("largest batch that fits", own ? (own.max_batch_size ? number(own.max_batch_size) : h("span", { class: "aw-number" }, "unknown")) : h("span", { class: "aw-number" }, "let go, and it is looked for")));
    if (this.moved) this.ctx.showCode([this.line([this.tokens])]);
    this.moved = true;
  }

  letGo() {
    clearTimeout(this.resting);
    if (this.lengths.includes(this.tokens)) return;
    this.resting = setTimeout(() => { if (this.slider.isConnected) this.ctx.run([this.line([this.tokens])], { replace: true }); }, REST_MS);
  }

  /** Token by token: what one generation asks for. */
  generation() {
    const { ctx } = this;
    const { ui } = ctx;
    const line = () => ctx.line("sequence", { new: ui.newTokens ?? 64, prompt: this.tokens === this.known.own ? null : this.tokens });
    const count = h("input", { type: "number", class: "aw-input aw-short", min: 1, value: ui.newTokens ?? 64, "aria-label": "tokens to make of each sequence", onchange: (event) => { ui.newTokens = Math.max(1, Math.round(Number(event.target.value)) || 64); ctx.showCode([line()]); } });
    const found = ctx.record("sequence_demand");
    const fact = (text, value) => (value ? h("div", { class: "aw-fact" }, h("span", { class: "aw-fact-name" }, text), number(value)) : null);
    return section("Generating, token by token", ctx.codeButton(() => (found && ctx.recordLine("sequence_demand") ? ctx.recordLine("sequence_demand") : line())),
      h("div", { class: "aw-bench", "data-live": true }, h("label", { class: "aw-field" }, h("span", {}, "new tokens"), count), h("button", { type: "button", class: "aw-button", onclick: () => ctx.run([line()]) }, "Estimate")),
      found ? h("p", { class: "aw-hint" }, `${found.prompt_tokens} tokens read, ${found.new_tokens} made, ${quantity(found.batch_size, "item")} a batch on ${found.device}${found.kind === "recompute" ? "; the model keeps no cache, so the whole sequence is read again for every token" : ""}`) : null,
      found ? h("div", { class: "aw-facts aw-four" }, fact("time to the first token", found.time_to_first_token), fact("each token after it", found.time_per_output_token), fact("tokens per second", found.tokens_per_s), fact("cache of a token", found.cache_bytes_per_token), fact("cache at the end", found.cache_bytes_end), fact("peak memory", found.peak_memory_bytes), fact("largest batch", found.max_batch_size)) : null);
  }
}

/** Points of one quantity as {x, y, low, high}. */
function curve({ points, batch }, name) {
  return points.flatMap((p) => {
    const n = name === "memory" ? p.peak_memory_bytes : p.latency;
    if (!n) return [];
    const [low, high] = n.interval ?? [n.value, n.value];
    const tokens = batch * p.length;
    return [name === "tokens" ? { x: p.length, y: tokens / n.value, low: tokens / high, high: tokens / low } : { x: p.length, y: n.value, low, high }];
  });
}
