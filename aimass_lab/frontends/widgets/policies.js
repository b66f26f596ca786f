// How replicas should follow a load that changes: a fixed number and autoscalers, by what they cost and what they miss.

import { figure, percent, quantity } from "./format.js";
import { h, section, table } from "./dom.js";
import { axes, linear, logarithmic, steps, ticks } from "./plot.js";

const PLOT = { width: 440, height: 240, margin: { left: 58, right: 14, top: 26, bottom: 38 } };
const SMALL = { width: 440, height: 130, margin: { left: 58, right: 14, top: 24, bottom: 34 } };
const KINDS = { static: "a fixed number", dynamic: "an autoscaler", hybrid: "an autoscaler above a floor" };
const SHOWN = 8;
const REQUESTS = 30_000;
const LEAST_MISSED = 1e-5;
const missed = (option) => Math.max(LEAST_MISSED, 1 - option.attainment.value);
const wayOf = (o) => (o.kind === "static" ? quantity(o.min_replicas, "replica") : `${o.scaler} from ${o.min_replicas}`);

/**
 * The section; offers the line that finds out where nothing is known.
 *
 * `asked` gives rate, p99, burst, price and budget as they stand in the plan.
 */
export function policies(ctx, asked) {
  const { ui } = ctx;
  const line = () => {
    const { rate, p99, burst, price, budget, technique } = asked();
    const table_ = ui.timetable?.trim() || null;
    return ctx.line("scale", {
      p99: `${Number((1e3 * p99).toPrecision(4))}ms`, rate: table_ ? null : rate, burst: !table_ && burst > 1 ? burst : null, timetable: table_, attainment: ui.attainment && ui.attainment !== 0.99 ? ui.attainment : null,
      startup: ui.startup ? `${ui.startup}s` : null, seconds: span(table_, rate), price, budget: price === null ? null : budget, technique,
    });
  };
  const form = h("div", { class: "aw-bench", "data-live": true },
    h("label", { class: "aw-field aw-wide" }, h("span", {}, "timetable instead of the rate, as seconds:rate"), h("input", { type: "text", class: "aw-input aw-full", placeholder: "e.g. 0:100 120:400 240:100", value: ui.timetable ?? "", "aria-label": "timetable", oninput: (event) => { ui.timetable = event.target.value; ctx.showCode([line()]); } })),
    h("label", { class: "aw-field" }, h("span", {}, "in time, % of requests"), h("input", { type: "number", class: "aw-input aw-short", min: 50, max: 100, step: 0.1, value: 100 * (ui.attainment ?? 0.99), onchange: (event) => { ui.attainment = Number(event.target.value) / 100 || 0.99; ctx.showCode([line()]); } })),
    h("label", { class: "aw-field" }, h("span", {}, "start-up of a replica, s"), h("input", { type: "number", class: "aw-input", min: 0, step: "any", placeholder: "as it was measured", value: ui.startup ?? null, onchange: (event) => { ui.startup = Number(event.target.value) || null; ctx.showCode([line()]); } })),
    h("button", { type: "button", class: "aw-button", onclick: () => ctx.run([line()]) }, "Compare"));
  const record = ctx.record("scale_plan");
  const code = ctx.codeButton(() => (record && ctx.recordLine("scale_plan") ? ctx.chartLine("scale_plan") : line()));
  if (!record) return section("Scaling policies", code, form, h("p", { class: "aw-hint" }, "A fixed number, HPA, KEDA, Knative and Ray Serve are simulated on the same arrivals, with the start-up that was measured, and floors below them: what does each cost, and what does it miss?"));
  return section("Scaling policies", code, form, h("p", { class: `aw-lead ${record.feasible ? "aw-good" : "aw-bad"}` }, `${record.binding[0].toUpperCase()}${record.binding.slice(1)}.`),
    h("p", { class: "aw-hint" }, `${record.load}; at least ${percent(record.attainment_target.value)} within ${figure(record.latency_target)}; a replica needs ${figure(record.startup_time)} to start.`),
    h("div", { class: "aw-columns" }, scatter(record, ctx.fit(PLOT)), overTime(record, ctx.fit(SMALL))), options(record));
}

/** Seconds to simulate: one round of a timetable, else what some ten thousand requests take, which a minute's patience allows. */
function span(timetable, rate) {
  const times = (timetable ?? "").split(/\s+/).map((step) => Number(step.split(":")[0])).filter((time) => time > 0);
  if (times.length) return Math.round(times.at(-1) * (1 + 1 / times.length));
  return Math.min(1200, Math.max(60, Number((REQUESTS / rate).toPrecision(1))));
}

function scatter(record, { width, height, margin }) {
  const priced = record.options.every((o) => o.cost);
  const across = (o) => (priced ? o.cost.value : o.replicas.value);
  const most = 1.1 * Math.max(...record.options.map(across));
  const x = linear(0, most, margin.left, width - margin.right);
  const least = Math.min(...record.options.map(missed), 1 - record.attainment_target.value) / 2;
  const y = logarithmic(least, 1.3, height - margin.bottom, margin.top);
  const target = 1 - record.attainment_target.value;
  const dot = (o, i) => h("g", {}, h("circle", { class: `aw-dot aw-way-${o.kind}`, cx: x(across(o)), cy: y(missed(o)), r: i === record.recommended ? 7 : 4.5 }), i === record.recommended ? h("circle", { class: "aw-ring", cx: x(across(o)), cy: y(missed(o)), r: 10 }) : null, h("title", {}, `${wayOf(o)}: ${percent(missed(o))} missed, ${figure(o.replicas)} on average: ${o.reason}`));
  const order = record.options.map((o, i) => [o, i]).sort(([, a], [, b]) => (a === record.recommended) - (b === record.recommended)); // drawn last, above the others
  return h("div", {},
    h("svg", { class: "aw-plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `share of requests that are missed against ${priced ? "cost" : "mean replicas"}, of each way to scale; the table has the same figures` },
      axes({ width, height, margin, x, y, xTicks: ticks(most, 5).map((v) => [v, v.toLocaleString("en-US")]), yTicks: [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1].filter((v) => v >= least).map((v) => [v, `${Number((100 * v).toPrecision(1))} %`]), xLabel: priced ? "USD per hour" : "replicas, on average", yLabel: "requests that are not answered in time" }),
      h("line", { class: "aw-limit aw-dashed", x1: margin.left, x2: width - margin.right, y1: y(target), y2: y(target) }), h("text", { class: "aw-limit-name", x: width - margin.right, y: y(target) - 5, "text-anchor": "end" }, `at most ${percent(target)}`),
      order.map(([o, i]) => dot(o, i))),
    h("p", { class: "aw-hint" }, Object.entries(KINDS).filter(([kind]) => record.options.some((o) => o.kind === kind)).map(([kind, text]) => [h("span", { class: `aw-key aw-way-${kind}` }), `${text}. `]), "Ringed: recommended."));
}

/** One run of the recommended way: what came, and what stood ready. */
function overTime(record, { width, height, margin }) {
  const { time_s: time, requests_per_s: rate, wanted, ready } = record.series;
  if (time.length < 2) return h("div", {}, h("p", { class: "aw-hint" }, "The run is too short to be drawn over time."));
  const end = time.at(-1);
  const x = linear(0, end, margin.left, width - margin.right);
  const plot = (text, values, draw, label) => {
    const most = 1.15 * Math.max(...values.flat(), 1);
    const y = linear(0, most, height - margin.bottom, margin.top);
    return h("svg", { class: "aw-plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${text} over time, in one run of what is recommended` },
      axes({ width, height, margin, x, y, xTicks: ticks(end, 5).map((v) => [v, v.toLocaleString("en-US")]), yTicks: ticks(most, 3).map((v) => [v, v.toLocaleString("en-US")]), xLabel: label, yLabel: text }), draw(y));
  };
  const line = (values, y) => h("path", { class: "aw-line", d: values.map((v, i) => `${i ? "L" : "M"}${x(time[i]).toFixed(1)} ${y(v).toFixed(1)}`).join("") });
  const changes = (values) => values.map((v, i) => [time[i], v]).filter(([, v], i) => !i || i === values.length - 1 || v !== values[i - 1]);
  const staircase = (values, y) => h("path", { class: "aw-line aw-other", d: changes(values).map(([t, v], i) => (i ? `H${x(t).toFixed(1)}V${y(v).toFixed(1)}` : `M${x(t).toFixed(1)} ${y(v).toFixed(1)}`)).join("") });
  return h("div", {}, plot("requests per second", [rate], (y) => line(rate, y), ""),
    plot("replicas: ready, and wanted (dashed)", [wanted, ready], (y) => [h("g", { class: "aw-series" }, steps(changes(ready), x, y, y(0))), staircase(wanted, y)], "seconds, in one run of what is recommended"));
}

function options(record) {
  const order = record.options.map((o, i) => [o, i]).sort(([a, i], [b, j]) => (j === record.recommended) - (i === record.recommended) || b.meets - a.meets || (a.meets ? a.replicas.value - b.replicas.value : b.attainment.value - a.attainment.value)).map(([o]) => o);
  const priced = record.options.some((o) => o.cost);
  const columns = ["way", "aims at", "replicas, mean", ...(priced ? ["cost"] : []), "in time", "held out", "p99", "remark"];
  const rows = order.map((o) => [wayOf(o), o.target ? (o.target.unit === "ratio" ? percent(o.target.value) : figure(o.target)) : "–", Number(o.replicas.value.toFixed(2)), ...(priced ? [o.cost ? figure(o.cost) : "–"] : []), `${(100 * o.attainment.value).toFixed(2)} %`, o.held_out ? `${(100 * o.held_out.value).toFixed(2)} %` : "–", o.latency_p99 ? figure(o.latency_p99) : "–", o.reason]);
  const rest = rows.slice(SHOWN);
  return h("div", {}, table("ways to scale, best first", columns, rows.slice(0, SHOWN)),
    rest.length ? h("details", { class: "aw-notes" }, h("summary", {}, `Further ways (${rest.length})`), table("further ways to scale", columns, rest)) : null,
    record.notes.length ? h("details", { class: "aw-notes" }, h("summary", {}, `What this comparison rests on (${record.notes.length})`), h("ul", {}, record.notes.map((note) => h("li", {}, note.text)))) : null);
}
