// Several models in turn on one device: who ran when, in the run, in its replay and in a prediction; and how well it was foretold.

import { figure, interval, percent, quantity } from "./format.js";
import { choice, h, section, table } from "./dom.js";
import { axes, linear, ticks } from "./plot.js";
import { Name } from "./code.js";

const PLOT = { width: 900, margin: { left: 84, right: 14, top: 8, bottom: 38 }, row: 30, gap: 10 };
const KINDS = [["run", "run"], ["replayed", "replayed"], ["predicted", "predicted"]];
const POLICIES = ["fcfs", "round_robin", "srpt", "sjf", "priority", "edf", "weighted_fair"];

/** The section; offers the line that finds out where nothing is known. */
export function turns(ctx) {
  const { ui } = ctx;
  const { others } = ctx.subject();
  Object.assign(ui, { beside: others[0] ?? "", second: "round_robin", ...ui });
  const line = () => ctx.line("rotate", { beside: ui.beside ? [new Name(ui.beside)] : null, policy: ["fcfs", ui.second], load: 0.5, seconds: 2 });
  const pick = (text, value, names, take) => h("label", { class: "aw-field" }, h("span", {}, text), h("select", { class: "aw-input", "aria-label": text, onchange: (event) => { take(event.target.value); ctx.showCode([line()]); } }, names.map(([name, words]) => h("option", { value: name, selected: name === value }, words))));
  const form = h("div", { class: "aw-bench", "data-live": true },
    pick("beside this model", ui.beside, [["", "no other model"], ...others.map((name) => [name, name])], (value) => { ui.beside = value; }),
    pick("against first come, first served", ui.second, POLICIES.slice(1).map((name) => [name, name.replaceAll("_", " ")]), (value) => { ui.second = value; }),
    h("button", { type: "button", class: "aw-button", onclick: () => ctx.run([line()]) }, "Run in turn"));
  const found = ctx.fact("turns");
  const code = ctx.codeButton(() => (found && ctx.resultLine(found.index) ? `aimass_lab.chart(${ctx.resultLine(found.index)})` : line()));
  if (!found) {
    const text = others.length ? "Both models run for some seconds, cut where their own forward can pause: who goes first, and how long does each wait?" : "Models share a device in turn: the calls are cut into segments, run for real, and held against the simulation. Another Study of this notebook can stand beside this one.";
    return section("Turns on the device", code, form, h("p", { class: "aw-hint" }, text));
  }
  ui.policy = found.runs.some((run) => run.policy === ui.policy) ? ui.policy : found.runs[0].policy;
  const holder = h("div", { class: "aw-view" });
  const draw = () => holder.replaceChildren(...parts(found, found.runs.find((run) => run.policy === ui.policy), ctx.fit(PLOT)));
  draw();
  const chosen = choice("policy", found.runs.map((run) => [run.policy, run.policy.replace(/^\w+/, (name) => name.replaceAll("_", " "))]), ui.policy, (value) => {
    ui.policy = value;
    for (const button of chosen.children) button.setAttribute("aria-pressed", String(button.textContent === value.replaceAll("_", " ")));
    draw();
  });
  return section("Turns on the device", code, form, found.runs.length > 1 ? h("div", { class: "aw-row" }, chosen) : null, holder);
}

function parts(found, run, plot) {
  const rows = run.metrics.map((m) => [m.name, figure(m.measured), figure(m.predicted), interval(m.predicted), figure(m.replayed), m.error ? signed(m.error.value) : "–", m.mechanism_error ? signed(m.mechanism_error.value) : "–"]);
  const cut = run.cut ? ` The first ${run.turns.run.length.toLocaleString("en-US")} of ${run.cut.toLocaleString("en-US")} turns.` : "";
  return [gantt(found, run, plot),
    h("p", { class: "aw-hint" }, found.models.map((name, i) => [h("span", { class: `aw-key aw-turn-${i % 4}` }), `${name}. `]), `${found.clock === "device" ? "Time that the device worked" : "The wall's time"}, ${quantity(run.num_jobs, "request").replace("request", "call")} over ${figure(found.span)}.${cut}`),
    table(`how ${run.policy} was foretold`, ["figure", "measured", "predicted", "90 % band", "replayed", "error", "of it the mechanism's"], rows)];
}

/** Turns of one model as one path, which takes a fifth of the bytes that as many rectangles would. */
function turnsOf(turns, model, finished, x, top) {
  if (!turns.length) return null;
  const tall = PLOT.row - 6;
  const path = turns.map(([lane, , start, stop]) => `M${x(start).toFixed(1)} ${top + lane * PLOT.row + 3}h${Math.max(0.6, x(stop) - x(start)).toFixed(1)}v${tall}H${x(start).toFixed(1)}z`).join("");
  return h("path", { class: `aw-turn aw-turn-${model % 4}${finished ? "" : " aw-unfinished"}`, d: path });
}

const signed = (share) => `${share < 0 ? "−" : "+"}${percent(Math.abs(share))}`;

function gantt(found, run, { width, margin, row, gap }) {
  const kinds = KINDS.filter(([kind]) => run.turns[kind].length);
  const tall = row * found.lanes;
  const height = margin.top + kinds.length * (tall + gap) + margin.bottom;
  const end = Math.max(...kinds.map(([kind]) => run.turns[kind].at(-1)[3]));
  const x = linear(0, end, margin.left, width - margin.right);
  const bars = kinds.map(([kind, text], k) => {
    const top = margin.top + k * (tall + gap);
    return h("g", {}, h("text", { class: "aw-strong", x: margin.left - 8, y: top + tall / 2 + 4, "text-anchor": "end" }, text),
      h("rect", { class: "aw-lane", x: margin.left, y: top, width: width - margin.left - margin.right, height: tall }),
      found.models.flatMap((_, of) => [true, false].map((ended) => turnsOf(run.turns[kind].filter(([, model, , , finished]) => model === of && finished === ended), of, ended, x, top))));
  });
  return h("svg", { class: "aw-plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `turns of ${found.models.join(", ")} under ${run.policy}: in the run, in its replay, and in a prediction; the table has the figures` },
    axes({ width, height, margin, x, y: (v) => v, xTicks: ticks(end, 6).map((v) => [v, v ? quantity(v, "s").replace(/\.0+ /, " ") : "0"]), yTicks: [], xLabel: "since the first call", yLabel: null }), bars);
}
