// A trial as a card: what to do, original and copy side by side, why it is not faster, what was left, where the outputs differ most.

import { capital, figure, interval, percent, provenance, quantity } from "./format.js";
import { choice, fill, h, number, section } from "./dom.js";
import { kept } from "./foreseen.js";
import { logarithmic } from "./plot.js";

const BAND = 0.02; // a change of speed up to this is no gain: the trial's own rule, drawn
const MARKS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100];
const MARK_GAP = 34;
const SAMPLES = 6;
const FOREST = { width: 440, margin: { left: 62, right: 162 }, row: 26 };

export const toneOf = (record) => {
  if (record.verdict === "slower" || record.verdict === "not equivalent") return "bad";
  return record.recommended ? "good" : "warm";
};

export const verdictTag = (record) => h("span", { class: `aw-tag aw-${toneOf(record)}` }, record.verdict);

const sentence = (record) => (record.setting.recipe.steps.length ? capital(record.recommendation || record.verdict) : `The control, an identical copy: ${record.verdict}. Its interval shows what the comparison can resolve`);

/** A scale of speed-ups that holds all `numbers`, 1 among them. */
export function ratioScale(numbers, left, right) {
  const ends = numbers.flatMap((n) => n.interval ?? [n.value]).filter((v) => v > 0);
  return [Math.min(0.8, ...ends) / 1.06, Math.max(1.25, ...ends) * 1.06, left, right];
}

/** A speed-up and its interval as a dot with whiskers, around the line of no change. */
export function whisker(speedup, scale, y) {
  const x = logarithmic(...scale);
  const [low, high] = speedup.interval ?? [speedup.value, speedup.value];
  const kind = speedup.quality === "noisy" ? "soft" : low > 1 + BAND ? "good" : high < 1 - BAND ? "bad" : "soft";
  return h("g", { class: `aw-whisker aw-${kind}` }, h("line", { x1: x(low), x2: x(high), y1: y, y2: y }), h("circle", { cx: x(speedup.value), cy: y, r: 4 }));
}

const noChange = (scale, top, bottom) => {
  const x = logarithmic(...scale);
  return [h("rect", { class: "aw-nochange", x: x(1 - BAND), width: x(1 + BAND) - x(1 - BAND), y: top, height: bottom - top }), h("line", { class: "aw-one", x1: x(1), x2: x(1), y1: top, y2: bottom })];
};

/** In a row of a table. */
export const smallWhisker = (speedup, scale) =>
  h("svg", { class: "aw-mini", viewBox: "0 0 120 16", role: "img", "aria-label": `speed-up ${figure(speedup)} ${interval(speedup)}` }, noChange(scale, 0, 16), whisker(speedup, scale, 8));

function forest(record, { width, margin, row }) {
  const [left, right] = [margin.left, width - margin.right];
  const scale = ratioScale(record.points.map((p) => p.speedup), left, right);
  const x = logarithmic(...scale);
  const bottom = 8 + row * record.points.length;
  const marks = MARKS.filter((v) => v >= scale[0] && v <= scale[1]).sort((a, b) => Math.abs(Math.log(a)) - Math.abs(Math.log(b)));
  const shown = marks.filter((v, i) => marks.slice(0, i).every((other) => Math.abs(x(v) - x(other)) >= MARK_GAP));
  return h("svg", { class: "aw-plot", viewBox: `0 0 ${width} ${bottom + 34}`, role: "img", "aria-label": "speed-up by batch size with its interval; the table has the same figures" },
    noChange(scale, 4, bottom), shown.map((v) => [v === 1 ? null : h("line", { class: "aw-grid", x1: x(v), x2: x(v), y1: 4, y2: bottom }), h("text", { x: x(v), y: bottom + 14, "text-anchor": "middle" }, `${v} ×`)]),
    h("text", { class: "aw-axis-name", x: left, y: bottom + 30 }, "← slower"), h("text", { class: "aw-axis-name", x: right, y: bottom + 30, "text-anchor": "end" }, "faster →"),
    record.points.map((p, i) => {
      const y = 8 + row * (i + 0.5);
      return [h("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, `batch ${p.batch_size}`), whisker(p.speedup, scale, y),
        h("text", { x: right + 10, y: y + 4 }, h("tspan", { class: "aw-strong" }, figure(p.speedup)), ` ${interval(p.speedup)}`)];
    }));
}

/** Original and copy in two bars and two figures; `less`: whether less is better. */
function pair(text, before, after, less) {
  if (!before || !after) return null;
  const most = Math.max(before.value, after.value) || 1;
  const factor = before.value > 0 ? after.value / before.value : null;
  const told = ![before, after].some((one) => one.quality === "noisy"); // what other work disturbed is no gain and no loss
  const better = factor === null || !told || Math.abs(factor - 1) <= BAND ? "soft" : (factor < 1) === less ? "good" : "bad";
  const bar = (value, kind) => h("span", { class: `aw-ab-bar aw-${kind}`, style: `width:${Math.max(1, (100 * value) / most).toFixed(1)}%` });
  return h("tr", {}, h("th", { scope: "row", class: "aw-ab" }, text, bar(before.value, "soft"), bar(after.value, "brand")),
    h("td", { class: "aw-num", title: provenance(before) }, figure(before)), h("td", { class: "aw-num", title: provenance(after) }, h("b", {}, figure(after))),
    h("td", { class: `aw-num aw-${better}` }, factor === null ? "" : `× ${quantity(factor, "ratio")}`));
}

/** The part of the record that a section draws, as code. */
const partOf = (ctx, one, field) => ctx.codeButton(() => {
  const line = ctx.resultLine(one.index);
  return line ? `${line}.${field}` : ctx.line("trial", {}, [one.name]);
});

function sides(ctx, one) {
  const { ui } = ctx;
  const { record } = one;
  const holder = h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "original and copy side by side" });
  const draw = () => {
    const p = record.points.find((one) => one.batch_size === ui.batchShown) ?? record.points[0];
    const rows = [
      pair("latency p50", p.latency_original, p.latency_variant, true), pair("latency p99", p.latency_p99_original, p.latency_p99_variant, true),
      pair("throughput", p.throughput_original, p.throughput_variant, false), pair("weights in memory", record.size_original_bytes, record.size_bytes, true),
      pair("weights on disk", record.stored_original_bytes, record.stored_bytes, true), pair("metric", record.metric_original, record.metric_variant, false),
    ];
    fill(holder, h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, [`batch ${p.batch_size}`, "original", "copy", "change"].map((text, i) => h("th", { scope: "col", class: i ? "aw-num" : null }, text)))), h("tbody", {}, rows)));
  };
  draw();
  const batches = record.points.map((p) => [p.batch_size, String(p.batch_size)]);
  const controls = h("div", { class: "aw-row", "data-live": true });
  const buttons = () => fill(controls, choice("batch size of the table", batches, ui.batchShown ?? batches[0][0], (size) => { ui.batchShown = size; buttons(); draw(); }));
  if (batches.length > 1) buttons();
  return section("Side by side", [controls, partOf(ctx, one, "points")], forest(record, ctx.fit(FOREST)), holder);
}

function outputs(ctx, one) {
  const [{ record }, samples, code] = [one, ctx.fact("samples"), partOf(ctx, one, "worst_samples")];
  const facts = [["metric lost", record.metric_drop], ["cosine similarity", record.fidelity], ["relative error", record.relative_error], ["same top class", record.agreement], ["divergence of classes", record.divergence]];
  const pairs = h("dl", { class: "aw-pairs" }, facts.filter(([, value]) => value).map(([text, value]) => h("div", { class: "aw-pair" }, h("dt", {}, text), h("dd", {}, number(value)))));
  if (!record.worst_samples.length) return section("Outputs", code, pairs, h("p", { class: "aw-hint" }, `No output of ${record.fidelity.n} samples differs at all.`));
  const shown = record.worst_samples.slice(0, SAMPLES).filter((s) => samples[s.index]);
  return section("Outputs", code, pairs, h("h4", { class: "aw-small-head" }, `The ${shown.length} samples of ${record.fidelity.n} that differ most`), h("div", { class: "aw-samples" }, shown.map((s) => sample(s, samples[s.index]))));
}

function sample(worst, drawn) {
  const classes = worst.class_original ?? null;
  const says = classes === null ? null : worst.same_class ? `class ${classes} in both` : `class ${classes} → ${worst.class_variant}`;
  const shown = drawn.image ? h("img", { src: drawn.image, alt: `sample ${worst.index}`, class: "aw-image" }) : h("code", {}, drawn.values ? `${drawn.values.join(", ")}${drawn.shape.reduce((a, b) => a * b, 1) > drawn.values.length ? ", …" : ""}` : `not drawn: ${drawn.lacking}`);
  return h("figure", { class: worst.same_class === false ? "aw-sample aw-differs" : "aw-sample" }, shown,
    h("figcaption", {}, h("b", {}, `#${worst.index}`), ` off by ${percent(worst.relative_error)}`, says ? [h("br"), says] : null, drawn.label === null || drawn.label === undefined ? null : [h("br"), `label ${drawn.label}`]));
}

function fellBack(ctx, one) {
  const { record } = one;
  const parts = record.steps.map((step) => {
    const changed = `${step.num_changed_layers.value} of ${step.num_layers.value} layers changed, ${percent(step.weight_share.value)} of the weights`;
    const more = step.num_left > step.layers.length ? `, of which ${step.layers.length} are listed` : "";
    const rows = step.layers.map((layer) => h("tr", {}, h("th", { scope: "row", class: "aw-name" }, layer.name || "(the model itself)"), h("td", {}, layer.type), h("td", { class: "aw-wrap" }, layer.detail)));
    return [
      h("p", {}, h("code", {}, step.step.technique), `: ${changed}${step.num_left ? `; ${step.num_left} fell back${more}:` : "."}`),
      rows.length ? h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": `layers that ${step.step.technique} left as they were` }, h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, ["layer", "type", "why"].map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows))) : null,
    ];
  });
  return parts.length ? section("What was changed, and what fell back", partOf(ctx, one, "steps"), parts) : null;
}

function reasons(ctx, one) {
  const { record } = one;
  const notes = [...record.notes, ...record.steps.flatMap((step) => step.notes)];
  return section("Why", partOf(ctx, one, "reasons"), h("ul", { class: "aw-reasons" }, record.reasons.map((text) => h("li", {}, text))),
    notes.length ? h("details", { class: "aw-notes" }, h("summary", {}, `Notes (${notes.length})`), h("ul", {}, notes.map((note) => h("li", {}, note.text)))) : null);
}

function foretold(ctx, { name, record }) {
  const effect = ctx.fact("effects")[name];
  return kept(effect, record, ctx.codeButton(() => ctx.resultLine(effect.index) ?? "%aimass ledger"));
}

/** The whole card of one try: `{name, index, memory, record}` as the kernel gives it. */
export function card(ctx, one, actions) {
  const { record } = one;
  const title = h("div", { class: "aw-section-head" }, h("h3", { class: "aw-card-name" }, one.name), h("div", { class: "aw-controls", "data-live": true }, actions));
  if (!record) return h("section", { class: "aw-section" }, title, h("p", { class: "aw-hint" }, "This copy was made by a search or a plan and not tried by itself: a try measures it beside the original."));
  return h("section", { class: "aw-section" }, title, h("p", { class: `aw-lead aw-${toneOf(record)}` }, `${sentence(record)}.`),
    h("div", { class: "aw-columns" }, h("div", { class: "aw-view" }, sides(ctx, one), foretold(ctx, one), reasons(ctx, one)), h("div", { class: "aw-view" }, outputs(ctx, one), fellBack(ctx, one))));
}
