// The plan: rate, target, bursts, prices and budget by hand; what follows is read off the last plan, and planned anew where it is let go.

import { figure, percent, quantity } from "./format.js";
import { empty, fill, h, number, section } from "./dom.js";
import { axes, bandLine, draggable, linear, logarithmic, rounds, steps, ticks } from "./plot.js";
import { carried, fewest, loadsOf, p99At } from "./loads.js";
import { policies } from "./policies.js";
import { turns } from "./turns.js";
import { whyNotCheaper } from "./cheaper.js";

const PLOT = { width: 440, height: 240, margin: { left: 58, right: 14, top: 26, bottom: 38 } };
const TICK_PX = 45;
const REST_MS = 80; // keys that repeat come closer together
const PRICE_PX = 46; // where costs stand, at the right of the replicas
const DECADES = { rate: [0, 5], p99: [-3, 1] };

/** Two significant digits: what a slider can point at. */
const rounded = (value) => Number(value.toPrecision(value < 100 ? 2 : 3));
const milliseconds = (seconds) => `${Number((1e3 * seconds).toPrecision(4))}ms`;

export const planView = {
  name: "plan",
  text: "Plan",
  kinds: ["plan", "scale_plan"],
  facts: ["devices", "turns"],
  draw: (ctx) => new Planner(ctx).view(),
  line: () => null, // it shows the line of what is asked
};

class Planner {
  constructor(ctx) {
    this.ctx = ctx;
    this.ui = Object.assign(ctx.ui, { rate: 100, p99: 0.1, burst: 1, headroom: 0, budget: null, devices: [[ctx.subject().device, null]], technique: null, ...ctx.ui });
  }

  view() {
    this.answer = h("div", { class: "aw-view" });
    this.more = h("div", { class: "aw-view" });
    this.controls = h("div", { "data-live": true });
    this.adopt();
    this.buildControls();
    this.drawAnswer();
    this.drawMore();
    this.ctx.showCode([this.line()]);
    const node = h("div", { class: "aw-view" }, this.controls, this.answer, this.more);
    return { node, mark: () => this.say(), update: () => this.update() };
  }

  update() {
    if (this.adopt()) {
      this.buildControls();
      this.ctx.showCode([this.line()]);
    }
    this.drawAnswer();
    this.drawMore();
  }

  /** A plan that was made elsewhere, in a cell: the controls go to where it is. */
  adopt() {
    const plan = this.ctx.record("plan");
    this.plan = plan;
    if (!plan || plan.index === this.ui.seen) return false;
    this.ui.seen = plan.index;
    if (this.ui.sent?.some((asked) => madeFor(plan, asked))) return false; // our own: the hand may have gone on meanwhile
    const here = this.ctx.subject().device;
    const names = [...new Set([plan.device, ...plan.options.map((o) => o.device)])].sort((a, b) => (b === here) - (a === here) || a.localeCompare(b));
    const priced = new Map([plan, ...plan.options].filter((o) => o.cost && o.replicas.value).map((o) => [o.device, o.cost.value / o.replicas.value]));
    const before = this.line();
    Object.assign(this.ui, { rate: plan.target.requests_per_s.value, p99: plan.target.latency_p99.value, burst: plan.burst, headroom: plan.target.headroom, budget: plan.target.budget?.value ?? null, technique: plan.technique === "none" ? null : plan.technique });
    const ours = this.ui.devices.map(([name]) => name);
    if (names.some((name) => !ours.includes(name)) || [...priced].some(([name, price]) => !(Math.abs((this.price(name) ?? NaN) - price) <= 1e-9))) this.ui.devices = names.map((name) => [name, priced.has(name) ? Number(priced.get(name).toPrecision(6)) : null]);
    return before !== this.line();
  }

  price(name) { return this.ui.devices.find(([known]) => known === name)?.[1] ?? null; }

  line() {
    const { rate, p99, burst, headroom, budget, devices, technique } = this.ui;
    const prices = devices.filter(([, price]) => price !== null);
    const only = devices.length === 1 && devices[0][0] === this.ctx.subject().device;
    return this.ctx.line("plan", {
      rate, p99: milliseconds(p99), device: only ? null : devices.map(([name]) => name), technique, burst: burst > 1 ? burst : null, headroom: headroom || null,
      price: prices.length ? Object.fromEntries(prices) : null, budget: prices.length === devices.length ? budget : null,
    });
  }

  // --- what is asked

  buildControls() {
    const { ui } = this;
    fill(this.controls,
      h("div", { class: "aw-bench" }, this.slider("rate", "requests per second", "requests/s", 1), this.slider("p99", "99 % answered within", "ms", 1e3)),
      h("div", { class: "aw-bench aw-asked" },
        this.field("bursts, times the rate between", { min: 1, step: 0.5, value: ui.burst }, (value) => { ui.burst = Math.max(1, value ?? 1); }),
        this.field("spare rate, %", { min: 0, step: 5, value: Math.round(100 * ui.headroom) }, (value) => { ui.headroom = Math.max(0, (value ?? 0) / 100); }),
        ui.devices.map(([name, price], i) => this.deviceField(name, price, i)), this.addDevice(),
        ui.devices.every(([, price]) => price !== null) ? this.field("budget, USD per hour", { min: 0, step: "any", value: ui.budget, placeholder: "none" }, (value) => { ui.budget = value || null; }) : null));
  }

  slider(what, text, unit, factor) {
    const { ui } = this;
    const [low, high] = DECADES[what];
    const range = h("input", { type: "range", min: low, max: high, step: 0.01, value: Math.log10(ui[what]), "aria-label": text, oninput: (event) => this.move(what, rounded(10 ** Number(event.target.value))), onchange: () => this.letGo() });
    const box = h("input", { type: "number", class: "aw-input aw-short", min: 0, step: "any", value: Number((factor * ui[what]).toPrecision(4)), "aria-label": `${text}, typed`, onchange: (event) => { const value = Number(event.target.value) / factor; if (value > 0) this.move(what, value); this.letGo(); } });
    this[`${what}Shown`] = (value) => {
      if (document.activeElement !== box) box.value = Number((factor * value).toPrecision(4));
      if (!range.matches(":active")) range.value = Math.log10(value);
      range.setAttribute("aria-valuetext", `${Number((factor * value).toPrecision(4))} ${unit}`);
    };
    return h("label", { class: "aw-field aw-wide" }, h("span", {}, text), h("span", { class: "aw-row" }, range, box, h("span", { class: "aw-hint" }, unit)));
  }

  field(text, attributes, take) {
    const changed = (event) => {
      take(event.target.value === "" ? null : Number(event.target.value));
      this.letGo();
    };
    return h("label", { class: "aw-field" }, h("span", {}, text), h("input", { type: "number", class: "aw-input aw-short", ...attributes, onchange: changed }));
  }

  deviceField(name, price, i) {
    const priced = (event) => {
      const before = this.ui.devices.every(([, known]) => known !== null);
      this.ui.devices[i][1] = event.target.value === "" ? null : Math.max(0, Number(event.target.value));
      if (before !== this.ui.devices.every(([, known]) => known !== null)) this.buildControls();
      this.letGo();
    };
    const remove = () => { this.ui.devices.splice(i, 1); this.buildControls(); this.letGo(); };
    return h("div", { class: "aw-field" }, h("span", {}, `${name}, USD per hour`), h("span", { class: "aw-row aw-tight" },
      h("input", { type: "number", class: "aw-input aw-short", min: 0, step: "any", value: price, placeholder: "no price", "aria-label": `price of a replica on ${name}, USD per hour`, onchange: priced }),
      this.ui.devices.length > 1 ? h("button", { type: "button", class: "aw-button", "aria-label": `plan without ${name}`, onclick: remove }, "×") : null));
  }

  addDevice() {
    const here = this.ctx.subject().device;
    const left = [here, ...this.ctx.fact("devices")].filter((name) => !this.ui.devices.some(([known]) => known === name));
    const add = (event) => { this.ui.devices.push([event.target.value, null]); this.ui.budget = null; this.buildControls(); this.letGo(); };
    return h("label", { class: "aw-field" }, h("span", {}, "consider also"), h("select", { class: "aw-input", "aria-label": "consider also a device", onchange: add }, h("option", { value: "" }, "a device …"), left.map((name) => h("option", { value: name }, name === here ? `${name} (attached)` : name))));
  }

  move(what, value) {
    this.ui[what] = value;
    this[`${what}Shown`](value);
    this.follow();
    this.ctx.showCode([this.line()]);
  }

  letGo() {
    clearTimeout(this.resting);
    this.follow?.();
    this.ctx.showCode([this.line()]);
    this.resting = setTimeout(() => { if (this.answer.isConnected) this.ask(); }, REST_MS);
  }

  ask() {
    const { rate, p99, burst, headroom } = this.ui;
    this.ui.sent = [...(this.ui.sent ?? []), { rate, p99, burst, headroom }].slice(-3);
    this.ctx.run([this.line()], { replace: true });
  }

  // --- what follows

  drawAnswer() {
    const { plan, ctx } = this;
    if (!plan) {
      this.follow = () => {};
      fill(this.answer, empty("Nothing is planned yet. A plan simulates every batching on every device, on the latencies of the newest profile, or makes one.", "Plan", () => this.ask()));
      return;
    }
    this.loads = loadsOf(plan);
    this.lead = h("p", { class: "aw-lead", role: "status" });
    this.cards = h("div", { class: "aw-facts aw-four aw-six" });
    const drawn = [this.p99Plot(), this.replicasPlot()];
    this.follow = () => {
      const now = this.now();
      this.drawCards(now);
      for (const plot of drawn) plot.draw(now);
      this.say();
    };
    fill(this.answer, this.lead, this.cards, h("div", { class: "aw-columns" }, drawn.map((plot) => plot.node)), this.legend(), whyNotCheaper(ctx, plan, this.loads, () => this.line()), notesOf(plan));
    this.follow();
  }

  drawMore() {
    const asked = () => ({ ...this.ui, price: this.price(this.ctx.subject().device) });
    fill(this.more, policies(this.ctx, asked), turns(this.ctx));
  }

  /** Whether what is asked is what the newest plan was made for. */
  planned() {
    return madeFor(this.plan, this.ui);
  }

  now() {
    const { plan, ui } = this;
    const rate = ui.rate * (1 + ui.headroom);
    const planned = this.planned();
    const replicas = planned ? plan.replicas.value : fewest(this.loads, rate, ui.p99);
    return { planned, rate, replicas, p99: Number.isFinite(replicas) ? p99At(this.loads, rate / replicas) : null };
  }

  drawCards({ planned, rate, replicas, p99 }) {
    const { plan } = this;
    const card = (text, value, more) => h("div", { class: "aw-fact" }, h("span", { class: "aw-fact-name" }, text), value, more ? h("span", { class: "aw-band" }, more) : null);
    const read = (value, unit, interval) => ({ value, unit, interval, source: "estimated", method: "read off the last plan, whose batching is kept; let go to plan anew" });
    const price = this.price(plan.device);
    const finite = Number.isFinite(replicas);
    const band = p99 && Number.isFinite(p99.high) ? [p99.low, p99.high] : undefined;
    fill(this.cards,
      card(`replicas on ${plan.device}`, planned ? number(plan.replicas) : finite ? number(read(replicas, "replica")) : "no number does", `${planned && !plan.feasible ? "closest that is allowed, " : ""}for ${quantity(this.ui.rate, "request/s")}${this.ui.burst > 1 ? `, in bursts of ${this.ui.burst} times` : ""}`),
      card("p99 of a request", planned ? number(plan.latency_p99) : p99 ? number(read(p99.y, "s", band)) : "without bound", `asked: at most ${quantity(this.ui.p99, "s")}`),
      card("batches of at most", number(plan.max_batch_size), plan.max_wait.value ? `held back for ${figure(plan.max_wait)}` : "of what waits, never held back"),
      card("busy", planned ? share(plan.utilization) : finite ? share(read(Math.min(1, rate / (replicas * this.loads.limit)), "ratio")) : "–", finite ? `queues grow from ${quantity(replicas * this.loads.limit, "request/s")} on` : null),
      card("when one replica is lost", finite && replicas > 1 ? number(read((replicas - 1) * carried(this.loads, this.ui.p99) / (1 + this.ui.headroom), "request/s")) : h("span", { class: "aw-number" }, finite ? "nothing answers" : "–"), finite && replicas > 1 ? "are still answered in time" : null),
      card("cost", planned && plan.cost ? number(plan.cost) : price !== null && finite ? number(read(replicas * price, "USD/h")) : h("span", { class: "aw-number" }, "no price given")));
  }

  say() {
    if (!this.plan) return;
    const words = this.words();
    if (this.lead.textContent === words) return;
    this.lead.textContent = words;
    this.lead.className = `aw-lead${this.planned() ? (this.plan.feasible ? " aw-good" : " aw-bad") : ""}`;
  }

  words() {
    const { plan, ui } = this;
    if (this.planned()) return plan.feasible ? `${plan.replicas.value} × ${plan.device} will do. ${sentence(plan.binding)}` : `Not feasible. ${sentence(plan.binding)}`;
    if (this.ctx.busy()) return "This is planned anew, beside the notebook; until then: as the last plan's batching would do.";
    const most = carried(this.loads, ui.p99);
    if (!most) return `With batches of up to ${plan.max_batch_size.value} no number of replicas answers within ${quantity(ui.p99, "s")}. Let go, and other batching is tried.`;
    return `As the last plan's batching would do: one replica carries ${quantity(most, "request/s")} within ${quantity(ui.p99, "s")}. Let go, and it is planned anew.`;
  }

  legend() {
    return h("p", { class: "aw-hint" }, h("span", { class: "aw-key aw-key-band" }), "simulated, 90 % band ", h("span", { class: "aw-key aw-key-edge" }), "target, and what no queue survives ", h("span", { class: "aw-key aw-key-rested" }), "simulated at this load");
  }

  // --- plots

  /** Rates that are drawn: from a tenth of the plan's to where its queues grow, and to its double; further where the hand goes. */
  span() {
    const { plan, ui } = this;
    const [planned, asked] = [plan.target.requests_per_s.value * (1 + plan.target.headroom), ui.rate * (1 + ui.headroom)];
    return [Math.min(planned / 10, asked / 1.5), Math.max(1.15 * plan.throughput_limit.value, 2 * planned, 1.15 * asked)];
  }

  /** A plot over the rate, whose children are drawn anew while it is dragged. */
  overRate(title, aria, size, draw) {
    const { width, height, margin } = size;
    const svg = h("svg", { class: "aw-plot aw-drag", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": aria });
    let [least, most] = this.span();
    const rateAt = (place) => least * (most / least) ** Math.min(1, Math.max(0, (place - margin.left) / (width - margin.left - margin.right)));
    draggable(svg, (place) => this.move("rate", rounded(rateAt(place) / (1 + this.ui.headroom))), () => this.letGo());
    const node = section(title, this.ctx.codeButton(() => (this.ctx.recordLine("plan") ? this.ctx.chartLine("plan") : this.line())), svg);
    return { node, draw: (now) => {
      const span = this.span();
      [least, most] = [Math.min(least, span[0]), Math.max(most, span[1])];
      const x = logarithmic(least, most, margin.left, width - margin.right);
      const xTicks = rounds(least, most, Math.floor((width - margin.left - margin.right) / TICK_PX)).map((v) => [v, v >= 1e4 ? quantity(v, "").replace(/\.0+ /, " ") : v.toLocaleString("en-US")]);
      fill(svg, draw(now, { x, least, most, xTicks }), h("line", { class: "aw-cursor", x1: x(now.rate), x2: x(now.rate), y1: margin.top, y2: height - margin.bottom }));
    } };
  }

  p99Plot() {
    const size = this.ctx.fit(PLOT);
    const { width, height, margin } = size;
    const { points, limit } = this.loads;
    const floor = height - margin.bottom;
    return this.overRate("p99 by rate", "p99 by rate with so many replicas, with its band, and the target", size, (now, { x, least, most, xTicks }) => {
      const target = this.ui.p99;
      const finite = points.filter((p) => Number.isFinite(p.high));
      const [low, high] = [Math.min(...points.map((p) => p.low), target) / 1.5, Math.max(...finite.map((p) => p.high), target) * 1.5];
      const y = logarithmic(low, high, floor, margin.top);
      const shown = Number.isFinite(now.replicas) ? now.replicas : this.plan.replicas.value;
      const scaledBy = (n) => finite.map((p) => ({ ...p, x: p.x * n })).filter((p) => p.x <= most && p.x >= least);
      const others = [shown - 1, shown + 1].filter((n) => n > 0 && scaledBy(n).length > 1);
      const name = (n) => { const end = scaledBy(n).at(-1); return h("text", { class: n === shown ? "aw-strong" : "aw-over", x: Math.min(width - margin.right, x(end.x)), y: Math.max(margin.top + 9, y(end.y) - 6), "text-anchor": "end" }, n === shown ? quantity(n, "replica") : n); };
      const edge = x(Math.min(most, shown * limit));
      const own = scaledBy(shown);
      return [
        axes({ width, height, margin, x, y, xTicks, yTicks: rounds(low, high).map((v) => [v, quantity(v, "s").replace(/\.0+ /, " ")]), xLabel: "requests per second, at all replicas", yLabel: "p99" }),
        shown * limit < most ? [h("rect", { class: "aw-beyond", x: edge, y: margin.top, width: width - margin.right - edge, height: floor - margin.top }), h("line", { class: "aw-limit", x1: edge, x2: edge, y1: margin.top, y2: floor })] : null,
        h("line", { class: "aw-limit aw-dashed", x1: margin.left, x2: width - margin.right, y1: y(target), y2: y(target) }), h("text", { class: "aw-limit-name", x: margin.left + 5, y: y(target) + (y(target) > margin.top + 14 ? -5 : 14) }, `target ${quantity(target, "s")}`),
        others.map((n) => h("path", { class: "aw-line aw-other", d: scaledBy(n).map((p, i) => `${i ? "L" : "M"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("") })),
        own.length > 1 ? bandLine(own, x, y) : null, own.map((p) => h("circle", { class: "aw-rested", cx: x(p.x), cy: y(p.y), r: 2.6 })), [...others, ...(own.length > 1 ? [shown] : [])].map(name),
        now.p99 ? h("circle", { class: "aw-handle", cx: x(now.rate), cy: y(Math.min(high, now.p99.y)), r: 6 }) : null,
      ];
    });
  }

  replicasPlot() {
    const price = this.price(this.plan.device);
    const fitting = this.ctx.fit(PLOT);
    const size = price === null ? fitting : { ...fitting, margin: { ...fitting.margin, right: PRICE_PX } };
    const { width, height, margin } = size;
    const floor = height - margin.bottom;
    return this.overRate("Replicas by rate", "replicas that are needed by rate, under this target, and what they cost where that is known", size, (now, { x, least, most, xTicks }) => {
      const each = carried(this.loads, this.ui.p99);
      const labels = { xTicks, xLabel: "requests per second, at all replicas", yLabel: "replicas" };
      if (!each) return [axes({ width, height, margin, x, y: linear(0, 1, floor, margin.top), ...labels, yTicks: [] }), h("text", { class: "aw-strong", x: (margin.left + width - margin.right) / 2, y: height / 2, "text-anchor": "middle" }, `no number of replicas answers within ${quantity(this.ui.p99, "s")}`)];
      const [first, count] = [Math.max(1, Math.ceil(least / each)), Math.ceil(most / each)];
      const top = Math.max(2, count, Number.isFinite(now.replicas) ? now.replicas : 0) * 1.15;
      const y = linear(0, top, floor, margin.top);
      const more = [...Array(count - first).keys()].map((i) => first + i).filter((n, i, all) => i % Math.ceil(all.length / 120) === 0); // as fine as can be seen
      const corners = [[least, first], ...more.map((n) => [n * each, n + 1])];
      const whole = [...new Set(ticks(top, 5).map(Math.round))];
      return [
        axes({ width, height, margin, x, y, ...labels, yTicks: whole.map((v) => [v, v.toLocaleString("en-US")]) }),
        price === null ? null : [h("text", { class: "aw-axis-name", x: width, y: margin.top - 8, "text-anchor": "end" }, "USD/h"), whole.map((v) => h("text", { x: width - margin.right + 6, y: y(v) + 3.5 }, (v * price).toLocaleString("en-US", { maximumSignificantDigits: 3 })))],
        h("g", { class: "aw-series" }, steps([...corners, [most, count]], x, y, floor)),
        Number.isFinite(now.replicas) ? h("circle", { class: now.planned && this.plan.feasible ? "aw-measured" : "aw-handle", cx: x(now.rate), cy: y(now.replicas), r: 6 }) : null,
      ];
    });
  }
}

const near = (a, b) => Math.abs(a - b) <= 1e-6 * Math.abs(b);

/** Whether a plan is for this rate, target, bursts and spare rate. */
const madeFor = ({ target, burst }, asked) => near(target.requests_per_s.value, asked.rate) && near(target.latency_p99.value, asked.p99) && near(target.headroom, asked.headroom) && near(burst, asked.burst);

const share = (value) => h("span", { class: "aw-number" }, h("b", {}, percent(value.value)), h("span", { class: "aw-src" }, "predicted"));
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

function notesOf(plan) {
  if (!plan.notes.length) return null;
  return h("details", { class: "aw-notes" }, h("summary", {}, `What this plan rests on (${plan.notes.length})`), h("ul", {}, plan.notes.map((note) => h("li", {}, note.text))));
}
