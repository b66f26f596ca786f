// The bundle, and the proof of its promises as it comes in: one row a promise, which fills once it is measured.

import { figure, interval, provenance, quantity } from "./format.js";
import { h, section, table } from "./dom.js";

const PROMISES = { errors: "requests without a right answer", fidelity: "error against the model's outputs", latency_p50: "p50 of a request", latency_p95: "p95 of a request", latency_p99: "p99 of a request", throughput: "answered at this rate", memory: "memory", startup: "start-up" };
const RELATIONS = { "<=": "at most", ">=": "at least", "==": "exactly" };

/** What writes a bundle, and what was written. */
export function bundlePart(ctx, ui, target) {
  const bundle = ctx.record("bundle");
  const line = () => ctx.line("bundle", { out: ui.folder, ...target(), format: ui.shipped || null, force: ui.force || null });
  const show = () => ctx.showCode([line()]);
  const formats = ctx.fact("formats").map(({ name, runtime, missing }) => h("option", { value: name, selected: name === ui.shipped, disabled: missing.length > 0 }, `${name}, run by ${runtime}${missing.length ? ` (needs ${missing.join(", ")})` : ""}`));
  const form = h("div", { class: "aw-bench", "data-live": true },
    h("label", { class: "aw-field" }, h("span", {}, "folder"), h("input", { type: "text", class: "aw-input", value: ui.folder, onchange: (event) => { ui.folder = event.target.value.trim() || ui.folder; show(); } })),
    h("label", { class: "aw-field" }, h("span", {}, "the model as"), h("select", { class: "aw-input", "aria-label": "format of the model", onchange: (event) => { ui.shipped = event.target.value; show(); } }, h("option", { value: "" }, "onnx, or what is faster here"), formats)),
    h("label", { class: "aw-field" }, h("span", {}, "replace what is there"), h("input", { type: "checkbox", checked: ui.force, onchange: (event) => { ui.force = event.target.checked; show(); } })),
    h("button", { type: "button", class: "aw-button aw-primary", onclick: () => ctx.run([line(), ctx.lineOn("check", ui.folder)]) }, "Write and prove"),
    h("button", { type: "button", class: "aw-button", onclick: () => ctx.run([line()]) }, "Write only"));
  const code = ctx.codeButton(() => (bundle && ctx.recordLine("bundle") ? ctx.recordLine("bundle") : line()));
  if (!bundle) return section("Bundle", code, form, h("p", { class: "aw-hint" }, "A folder that serves the model without this package, over REST and gRPC, and proves its own promises. It is started once while it is written."));
  const fact = (text, value) => h("div", { class: "aw-fact" }, h("span", { class: "aw-fact-name" }, text), h("span", { class: "aw-wrapped" }, value));
  const tried = bundle.runtimes.map((r) => [r.format, r.runtime, r.speedups.map((s) => `${s.ratio.value.toFixed(2)} × at ${s.batch_size}`).join(", ") || "–", r.chosen ? "shipped" : r.left_out ?? "measured"]);
  return section("Bundle", code, form,
    h("div", { class: "aw-facts aw-four" }, fact("folder", bundle.folder), fact("ships", bundle.format), fact("size", `${figure(bundle.size_bytes)}, ${bundle.num_files} files`), fact("digest", bundle.digest.slice(0, 19))),
    tried.length ? h("details", { class: "aw-notes" }, h("summary", {}, `How its format was chosen (${tried.length})`), table("formats beside torch", ["format", "runtime", "speed over torch, by batch size", "what became of it"], tried)) : null,
    bundle.notes.length ? h("details", { class: "aw-notes" }, h("summary", {}, `What its promises rest on (${bundle.notes.length})`), h("ul", {}, bundle.notes.map((note) => h("li", {}, note.text)))) : null);
}

/** The promises and how far they are proved; nothing where there is no bundle. */
export function proofPart(ctx) {
  const bundle = ctx.record("bundle");
  if (!bundle) return [];
  const line = ctx.lineOn("check", ctx.ui.folder && bundle.folder.endsWith(`/${ctx.ui.folder}`) ? ctx.ui.folder : bundle.folder);
  const live = ctx.record("check")?.index === null;
  const ours = live ? ctx.record("check") : ctx.fact("checks").proof;
  const rows = (ours ?? bundle).promises.map((promise) => row(promise, stateOf(promise, ours, live)));
  const [words, tone] = verdict(ours, live, proving(ctx));
  return section("Promises, and their proof", [h("button", { type: "button", class: "aw-button", "data-live": true, onclick: () => ctx.run([line]) }, ours ? "Prove them again" : "Prove them"), ctx.codeButton(() => line)],
    h("p", { class: `aw-lead ${tone}`, role: "status" }, words),
    h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "promises" }, h("table", { class: "aw-table aw-promises" },
      h("thead", {}, h("tr", {}, ["verdict", "promise", "promised", "measured", "of the limit", "the limit comes from"].map((text, i) => h("th", { scope: "col", class: i === 2 || i === 3 ? "aw-num" : null }, text)))), h("tbody", {}, rows))),
    ours?.findings.length ? table("findings of the proof", ["code", "where", "what"], ours.findings.map((f) => [h("span", { class: f.code.startsWith("E-") ? "aw-error" : "aw-warning" }, f.code), f.path || "–", f.text])) : null);
}

/** A word and its class. */
function stateOf({ passed, measured }, ours, live) {
  if (!ours) return ["not proved yet", "aw-state"];
  if (passed === true) return ["PASS", "aw-state aw-pass"];
  if (passed === false) return ["FAIL", "aw-state aw-fail"];
  return live ? [measured ? "measuring" : "to come", "aw-state"] : ["NOT JUDGED", "aw-state aw-unjudged"];
}

function row(promise, [word, kind]) {
  const { limit, measured, relation } = promise;
  return h("tr", { "data-promise": promise.name },
    h("td", {}, h("span", { class: kind }, word)), h("th", { scope: "row" }, PROMISES[promise.name] ?? promise.name), h("td", { class: "aw-num", title: provenance(limit) }, `${RELATIONS[relation]} ${figure(limit)}`),
    h("td", { class: "aw-num", title: measured ? provenance(measured) : null }, measured ? [figure(measured), measured.interval ? h("span", { class: "aw-band" }, ` ${interval(measured)}`) : null] : "–"),
    h("td", {}, measured && limit.value ? gauge(measured.value / limit.value, kind) : null), h("td", { class: "aw-long" }, limit.method));
}

/** How much of its limit a measurement takes, and where the limit stands. */
function gauge(share, kind) {
  const width = 84;
  const x = (v) => (Math.min(v, 1.3) / 1.3) * width;
  return h("svg", { class: "aw-gauge", width, height: 12, viewBox: `0 0 ${width} 12`, role: "img", "aria-label": `${quantity(100 * share, "").trim()} % of the limit` },
    h("rect", { class: "aw-lane", x: 0, y: 2, width, height: 8 }), h("rect", { class: `aw-gauge-bar ${kind.split(" ")[1] ?? ""}`, x: 0, y: 2, width: Math.max(1.5, x(share)), height: 8 }), h("line", { class: "aw-gauge-limit", x1: x(1), x2: x(1), y1: 0, y2: 12 }));
}

/** What is told of a proof that runs now; null where none does. */
export function proving(ctx) {
  const job = ctx.jobs().find(({ line, state }) => /\bcheck[ (]/.test(line) && state === "running");
  return job ? job.text || "it begins" : null;
}

function verdict(ours, live, told) {
  if (live || told) return [`Being proved: ${told ?? "it goes on"}.`, ""];
  if (!ours) return ["NOT PROVED YET: what was measured while it was written stands below; the proof starts its server and sends the promised load.", ""];
  if (ours.passed === true) return [`PASS: all ${ours.promises.length} promises are kept here.`, "aw-good"];
  if (ours.passed === false) {
    const failed = [...ours.promises.filter((p) => p.passed === false).map((p) => PROMISES[p.name] ?? p.name), ...ours.findings.filter((f) => f.code.startsWith("E-")).map((f) => f.code)];
    return [`FAIL: ${failed.join(", ")}.`, "aw-bad"];
  }
  return [`NOT JUDGED: other work kept the machine too busy for ${ours.promises.filter((p) => p.passed === null).map((p) => PROMISES[p.name] ?? p.name).join(", ")}. Prove them again when it is quiet.`, "aw-warm-edge"];
}
