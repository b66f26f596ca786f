// What is predicted of a recipe before it is tried, and beside what was measured once it was.

import { figure, interval } from "./format.js";
import { h, number, section, table } from "./dom.js";

const within = (predicted, measured) => {
  const [low, high] = predicted.interval ?? [predicted.value, predicted.value];
  return measured.value >= low && measured.value <= high ? "inside" : "outside";
};

/** Whether every batch size of `sizes` is predicted. */
export const covers = (effect, sizes) => !!effect && sizes.every((size) => effect.points.some((p) => p.batch_size === size));

/** Predicted figures of a recipe, apart from everything measured; `codeButton` shows the line that gives them. */
export function foreseen(effect, sizes, codeButton) {
  const fact = (text, value, more) => h("div", { class: "aw-fact" }, h("span", { class: "aw-fact-name" }, text), number(value), more ? h("span", { class: "aw-band" }, more) : null);
  const points = effect.points.filter((p) => sizes.includes(p.batch_size));
  return h("div", { class: "aw-foreseen", role: "group", "aria-label": "predicted, before it is tried" }, section("Predicted, before it is tried", codeButton,
    h("div", { class: "aw-facts aw-four" },
      fact("speed-up", effect.speedup, `at batch ${effect.effect_batch_size}`), points.map((p) => fact("latency of a call", p.latency, `at batch ${p.batch_size}`)), fact("weights in memory", effect.weight_bytes)),
    h("p", { class: "aw-hint" }, "What it does to the outputs is not predicted: a try measures it."),
    effect.notes.length ? h("details", { class: "aw-notes" }, h("summary", {}, `What this prediction rests on (${effect.notes.length})`), h("ul", {}, h("li", {}, effect.speedup.method), effect.notes.map((note) => h("li", {}, note.text)))) : null));
}

/** Predicted, then measured: what was said of a recipe, and how good it was; null where nothing was said. */
export function kept(effect, record, codeButton) {
  if (!effect) return null;
  const pairs = [];
  const add = (text, predicted, measured) => { if (predicted && measured) pairs.push([text, figure(predicted), interval(predicted), figure(measured), within(predicted, measured)]); };
  for (const point of record.points) {
    if (point.batch_size === effect.effect_batch_size) add(`speed-up, batch ${point.batch_size}`, effect.speedup, point.speedup);
    add(`latency, batch ${point.batch_size}`, effect.points.find((p) => p.batch_size === point.batch_size)?.latency, point.latency_variant);
  }
  add("weights in memory", effect.weight_bytes, record.size_bytes);
  if (!pairs.length) return null;
  return section("Predicted, then measured", codeButton, table("predicted, then measured", ["figure", "predicted", "band", "measured", "measured lies"], pairs));
}
