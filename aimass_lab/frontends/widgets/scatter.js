// Settings of a search as points in two quantities: the front, what is beyond a limit, and limits as handles to drag.

import { figure, quantity } from "./format.js";
import { h } from "./dom.js";
import { recipeText } from "./form.js";
import { axes, linear, powers, ticks } from "./plot.js";

const PLOT = { width: 640, height: 360, margin: { left: 70, right: 22, top: 26, bottom: 40 } };
const SPREAD = 30;
const TICK_GAP = 36;
const ROOM = 48; // of a tick's word
const GAPS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];

export const WORDS = { throughput: "throughput", speedup: "speed-up", latency: "latency", latency_p99: "p99 latency", drop: "metric lost", dissimilarity: "dissimilarity", size: "on disk", memory: "in memory", cost: "cost of an item" };
const LARGE = ["throughput", "speedup"];
const isLoss = (name) => name === "drop" || name === "dissimilarity";
const tidy = (text) => text.replace(/\.0+ /, " ").replace(/ items\/s/, "");

/** A scale with its inverse and its ticks: roots for losses, where small ones matter; logarithms for what spreads widely. */
function scaleOf(name, numbers, limit, from, to) {
  const values = [...numbers.flatMap((n) => n.interval ?? [n.value]), ...(limit ? [limit] : [])];
  const unit = numbers[0]?.unit ?? "ratio";
  if (isLoss(name)) {
    const root = (v) => Math.sign(v) * Math.sqrt(Math.abs(v));
    const [low, high] = [Math.min(0, ...values), Math.max(0.004, ...values) * 1.15];
    const at = linear(root(low), root(high), from, to);
    const back = linear(from, to, root(low), root(high));
    const marks = [0, ...GAPS.filter((v) => v <= high)];
    const shown = marks.reduceRight((taken, v) => (taken.length && Math.abs(at(root(v)) - at(root(taken[0]))) < TICK_GAP ? taken : [v, ...taken]), []);
    return { at: (v) => at(root(v)), back: (p) => { const r = back(p); return Math.sign(r) * r * r; }, ticks: shown.map((v) => [v, String(v)]) };
  }
  const positive = values.filter((v) => v > 0);
  const [least, most] = [Math.min(...positive), Math.max(...positive)];
  const base = unit === "B" ? 2 : 10;
  const marks = Math.floor(Math.abs(to - from) / ROOM);
  if (most / least > SPREAD) {
    const [low, high] = [least / 1.25, most * 1.25];
    const at = linear(Math.log(low), Math.log(high), from, to);
    const back = linear(from, to, Math.log(low), Math.log(high));
    return { at: (v) => at(Math.log(v)), back: (p) => Math.exp(back(p)), ticks: powers(low, high, base, Math.min(6, marks)).map((v) => [v, tidy(quantity(v, unit))]) };
  }
  const high = most * 1.1;
  return { at: linear(0, high, from, to), back: linear(from, to, 0, high), ticks: ticks(high, Math.min(5, marks), base).map((v) => [v, v ? tidy(quantity(v, unit)) : "0"]) };
}

/** What can be told apart without colour: filled, hollow, crossed. */
function mark(kind, x, y) {
  if (kind === "other") return h("path", { class: "aw-cross", d: `M${x - 4} ${y - 4}L${x + 4} ${y + 4}M${x - 4} ${y + 4}L${x + 4} ${y - 4}` });
  if (kind === "best") return h("path", { class: "aw-star", d: `M${x} ${y - 9}L${x + 9} ${y}L${x} ${y + 9}L${x - 9} ${y}Z` });
  return h("circle", { class: `aw-point aw-${kind}`, cx: x, cy: y, r: kind === "front" ? 5.5 : 4 });
}

/**
 * Draw the candidates of `record` in the quantities `names` = [x, y].
 *
 * `limits` maps a quantity to what it may be at most, null for no limit, for those that can be limited; `drag(name, value, done)` is told of a handle; `fit` gives the size that there is room for.
 */
export function scatter(record, names, limits, fit, { hover, pick, drag }) {
  const { width, height, margin } = fit(PLOT);
  const [left, right, top, bottom] = [margin.left, width - margin.right, margin.top, height - margin.bottom];
  const known = record.candidates.map((c, i) => ({ c, i })).filter(({ c }) => names.every((name) => c.numbers[name]));
  const kept = (c) => Object.entries(limits).every(([name, limit]) => limit === null || (c.numbers[name] && c.numbers[name].value <= limit));
  const [x, y] = names.map((name, axis) => scaleOf(name, known.map(({ c }) => c.numbers[name]), limits[name], ...(axis ? [bottom, top] : [left, right])));
  const place = ({ c }) => names.map((name, axis) => [x, y][axis].at(c.numbers[name].value));
  const kind = ({ c, i }) => (i === record.best ? "best" : c.verdict === "not equivalent" ? "other" : record.front.includes(i) ? "front" : c.status === "predicted" ? "guess" : "plain");
  const label = ({ c }) => `${settingText(c.setting)}: ${names.map((name) => `${WORDS[name]} ${figure(c.numbers[name])}`).join(", ")}${c.verdict ? `; ${c.verdict}` : ""}`;
  const dots = known.map((one) => {
    const dot = h("g", { class: `aw-candidate${kept(one.c) ? "" : " aw-out"}`, "data-candidate": one.i, onpointerenter: () => hover(one.i), onpointerleave: () => hover(null), onclick: () => pick(one.i) }, mark(kind(one), ...place(one)), h("title", {}, label(one)));
    dot.recheck = (now) => dot.classList.toggle("aw-out", !Object.entries(now).every(([name, limit]) => limit === null || (one.c.numbers[name] && one.c.numbers[name].value <= limit)));
    return dot;
  });
  const front = known.filter(({ i }) => record.front.includes(i)).map(place).sort((a, b) => a[0] - b[0]);
  const twoObjectives = record.objectives.length === 2 && record.objectives.every((o) => names.includes(o.name));
  const svg = h("svg", { class: "aw-plot aw-scatter", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${known.length} settings by ${WORDS[names[0]]} and ${WORDS[names[1]]}; the table has the same figures` },
    axes({ width, height, margin, x: x.at, y: y.at, xTicks: x.ticks, yTicks: y.ticks, xLabel: `${WORDS[names[0]]} ${LARGE.includes(names[0]) ? "→ better" : "← better"}`, yLabel: `${WORDS[names[1]]}${names[1] === "throughput" ? ", items/s" : ""} ${LARGE.includes(names[1]) ? "↑ better" : "↓ better"}` }),
    twoObjectives && front.length > 1 ? h("path", { class: "aw-front-line", d: stairs(front, LARGE.includes(names[0])) }) : null,
    dots);
  const recheck = (name, value) => { limits[name] = value; for (const dot of dots) dot.recheck(limits); };
  names.forEach((name, axis) => {
    if (name in limits) svg.append(handle(svg, name, limits[name], [x, y][axis], axis, { left, right, top, bottom, width, height }, (value, done) => { recheck(name, value); drag(name, value, done); }));
  });
  return { node: svg, mark: (index) => { for (const dot of dots) dot.classList.toggle("aw-chosen", Number(dot.dataset.candidate) === index); } };
}

/** What is attained between the points of a front: sideways first where less is better on the x axis. */
const stairs = (points, largeX) =>
  points.map(([a, b], i) => (i ? (largeX ? `V${b.toFixed(1)}H${a.toFixed(1)}` : `H${a.toFixed(1)}V${b.toFixed(1)}`) : `M${a.toFixed(1)} ${b.toFixed(1)}`)).join("");

/** A limit as a line with a handle; at the far end there is none. */
function handle(svg, name, limit, scale, axis, { left, right, top, bottom, width, height }, moved) {
  const [start, end] = axis ? [bottom, top] : [left, right];
  const nearest = (p) => Math.min(Math.max(p, Math.min(start, end)), Math.max(start, end));
  const line = h("line", { class: "aw-limit" });
  const knob = axis ? h("rect", { class: "aw-knob", x: right - 9, width: 18, height: 10, rx: 5 }) : h("rect", { class: "aw-knob", y: top - 9, width: 10, height: 18, rx: 5 });
  const text = h("text", { class: "aw-limit-name" });
  const group = h("g", { class: "aw-handle-group", role: "slider", tabindex: 0, "aria-label": `limit of ${WORDS[name]}`, "aria-orientation": axis ? "vertical" : "horizontal" }, line, knob, text);
  let value = limit;
  const unit = isLoss(name) ? "ratio" : name.startsWith("latency") ? "s" : name === "cost" ? "USD/item" : "B";
  const draw = () => {
    const at = value === null ? end : nearest(scale.at(value));
    const says = value === null ? "no limit" : `at most ${isLoss(name) ? Number(value.toPrecision(2)) : quantity(value, unit)}`;
    for (const [key, v] of Object.entries(axis ? { x1: left, x2: right, y1: at, y2: at } : { x1: at, x2: at, y1: top, y2: bottom })) line.setAttribute(key, v);
    knob.setAttribute(axis ? "y" : "x", at - 5);
    const late = axis || at > (left + right) / 2;
    text.setAttribute("text-anchor", late ? "end" : "start");
    text.setAttribute("x", axis ? right - 14 : at + (late ? -6 : 6));
    text.setAttribute("y", axis ? at - 6 : bottom - 8);
    text.textContent = says;
    group.setAttribute("aria-valuetext", says);
    group.setAttribute("aria-valuenow", String(Math.round(100 * Math.abs((at - start) / (end - start)))));
    group.classList.toggle("aw-free", value === null);
  };
  const go = (place, done) => {
    const at = nearest(place);
    value = Math.abs(at - end) < 3 ? null : Math.max(scale.back(at), 0);
    draw();
    moved(value, done);
  };
  const placeOf = (event) => {
    const box = svg.getBoundingClientRect();
    return axis ? ((event.clientY - box.top) / box.height) * height : ((event.clientX - box.left) / box.width) * width;
  };
  group.addEventListener("pointerdown", (event) => { group.setPointerCapture(event.pointerId); group.dragged = true; });
  group.addEventListener("pointermove", (event) => { if (group.dragged) go(placeOf(event), false); });
  group.addEventListener("pointerup", (event) => { if (group.dragged) { group.dragged = false; go(placeOf(event), true); } });
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 8, ArrowUp: 8, ArrowLeft: -8, ArrowDown: -8, Home: -10_000, End: 10_000 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    go((value === null ? end : nearest(scale.at(value))) + (end > start ? step : -step), true);
  });
  draw();
  return group;
}

/** `int8_dynamic at batch 8, 2 instances of 1 thread`. */
export function settingText(setting) {
  const load = [setting.instances > 1 ? `${setting.instances} instances` : null, setting.threads ? `${setting.threads} thread${setting.threads > 1 ? "s" : ""}` : null].filter(Boolean).join(" of ");
  return [`${recipeText(setting.recipe.steps)}${setting.batch_size ? ` at batch ${setting.batch_size}` : ""}`, load].filter(Boolean).join(", ") + (setting.device ? ` on ${setting.device}` : "");
}
