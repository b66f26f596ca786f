// What is shipped: the spec with the provenance of every number, its files and what a check finds in them, the bundle, and its proof.

import { figure, interval, percent, sourceWord } from "./format.js";
import { fill, h, pick, roving, section, table } from "./dom.js";
import { optionFields, stepText } from "./form.js";
import { bundlePart, proofPart, proving } from "./proof.js";

const LABELS = { latency_p99_target: "p99 asked for", latency_p99: "p99 predicted", requests_per_s: "requests per second", scale_at: "one more replica from", max_wait: "held back for a batch", cpu_cores: "cores of a replica", memory_bytes: "memory of a replica", accelerators: "accelerators of a replica", startup_time: "start-up" };
const labelOf = (name) => LABELS[name] ?? name.replaceAll("_", " ");
const SHARES = ["utilization"];
const isNumber = (value) => value && typeof value === "object" && "unit" in value && "source" in value;

export const shipView = {
  name: "ship",
  text: "Ship",
  kinds: ["serving_spec", "plan", "bundle", "check"],
  facts: ["exporters", "formats", "export", "checks"],
  draw: (ctx) => new Shipping(ctx).view(),
  line: () => null, // it shows the line of what is asked
};

class Shipping {
  constructor(ctx) {
    this.ctx = ctx;
    const plan = ctx.record("plan");
    const target = plan ? { rate: plan.target.requests_per_s.value, p99: plan.target.latency_p99.value, technique: plan.technique === "none" ? null : plan.technique } : { rate: 100, p99: 0.1, technique: null };
    const model = ctx.subject().model.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "model";
    this.ui = Object.assign(ctx.ui, { format: "kubernetes", options: {}, out: "", folder: `${model}-bundle`, shipped: "", force: false, chosen: null, file: null, ...ctx.ui });
    if (plan?.index !== this.ui.plan || !("rate" in this.ui)) Object.assign(this.ui, target, { plan: plan?.index });
  }

  view() {
    const { ctx } = this;
    // Each part is drawn anew when what it shows has changed, and no other: a proof that goes on must not disturb a form.
    this.parts = [
      [() => this.asked(), (holder) => fill(holder, this.form())],
      [() => [ctx.record("serving_spec"), ctx.fact("export"), ctx.fact("checks").manifests], (holder) => fill(holder, this.spec())],
      [() => [ctx.record("bundle")?.index, ctx.record("serving_spec")?.index, this.asked()], (holder) => fill(holder, bundlePart(ctx, this.ui, () => this.target()))],
      [() => [ctx.record("bundle"), ctx.record("check"), ctx.fact("checks").proof, proving(ctx)], (holder) => fill(holder, proofPart(ctx))],
    ].map(([key, draw]) => ({ key, draw, holder: h("div", { class: "aw-view" }), drawn: undefined }));
    this.refresh();
    ctx.showCode([this.specLine()]);
    return { node: h("div", { class: "aw-view" }, this.parts.map((part) => part.holder)), mark: () => this.refresh(), update: () => this.refresh() };
  }

  refresh() {
    const plan = this.ctx.record("plan");
    if (plan && plan.index !== this.ui.plan) Object.assign(this.ui, { plan: plan.index, rate: plan.target.requests_per_s.value, p99: plan.target.latency_p99.value, technique: plan.technique === "none" ? null : plan.technique });
    for (const part of this.parts) {
      const now = JSON.stringify(part.key());
      if (now === part.drawn) continue;
      part.drawn = now;
      part.draw(part.holder);
    }
  }

  /** What the forms show that they do not set themselves. */
  asked() { return [this.ui.plan, this.ui.format]; }

  target() {
    const { rate, p99, technique } = this.ui;
    return { rate, p99: `${Number((1e3 * p99).toPrecision(4))}ms`, technique };
  }

  formatText() {
    return stepText({ technique: this.ui.format, options: this.chosen() });
  }

  /** What is chosen of the format's options. */
  chosen() {
    return (this.ui.options[this.ui.format] ??= {});
  }

  specLine() {
    const { rate, p99, technique } = this.target();
    return this.ctx.line("spec", { rate, p99, technique, format: this.formatText() === "kubernetes" ? null : this.formatText(), out: this.ui.out || null });
  }

  // --- what is asked

  form() {
    const { ctx, ui } = this;
    const show = () => ctx.showCode([this.specLine()]);
    const field = (text, attributes, take) => h("label", { class: "aw-field" }, h("span", {}, text), h("input", { class: "aw-input aw-short", ...attributes, onchange: (event) => { take(event.target.value); show(); } }));
    const exporters = ctx.fact("exporters");
    const format = h("select", { class: "aw-input", "aria-label": "format of the spec", onchange: (event) => { ui.format = event.target.value; show(); this.refresh(); } }, exporters.map(({ name }) => h("option", { value: name, selected: name === ui.format }, name.replaceAll("_", " "))));
    const { text, options } = exporters.find(({ name }) => name === ui.format);
    const plan = ctx.record("plan");
    const lead = plan ? (plan.feasible ? `As planned: ${plan.replicas.value} × ${plan.device}, batches of up to ${plan.max_batch_size.value}.` : `The newest plan is not feasible: ${plan.binding}.`) : "Nothing is planned yet: the spec makes a plan for this target first.";
    return section("What a cluster must give it", ctx.codeButton(() => this.specLine()),
      h("div", { class: "aw-bench", "data-live": true },
        field("requests per second", { type: "number", min: 0, step: "any", value: Number(ui.rate.toPrecision(4)) }, (value) => { if (Number(value) > 0) ui.rate = Number(value); }),
        field("99 % within, ms", { type: "number", min: 0, step: "any", value: Number((1e3 * ui.p99).toPrecision(4)) }, (value) => { if (Number(value) > 0) ui.p99 = Number(value) / 1e3; }),
        h("label", { class: "aw-field" }, h("span", {}, "written for"), format),
        field("into a folder", { type: "text", class: "aw-input", value: ui.out, placeholder: "shown here only" }, (value) => { ui.out = value.trim(); }),
        h("button", { type: "button", class: "aw-button aw-primary", onclick: () => ctx.run([this.specLine(), ...(ui.out ? [ctx.lineOn("check", ui.out)] : [])]) }, "Write the spec")),
      options.length ? h("details", { class: "aw-notes", "data-live": true, open: Object.keys(this.chosen()).length > 0 }, h("summary", {}, `Options of ${ui.format.replaceAll("_", " ")} (${options.length})`), optionFields({ name: ui.format, options }, { options: this.chosen() }, show)) : null,
      h("p", { class: "aw-hint" }, `${lead} ${text}`));
  }

  // --- what was written down

  spec() {
    const { ctx } = this;
    const spec = ctx.record("serving_spec");
    if (!spec) return [];
    const written = ctx.fact("export");
    return [h("div", { class: "aw-columns" }, this.numbers(spec), this.files(spec, written)), findings(ctx, written, spec)];
  }

  numbers(spec) {
    const { ctx, ui } = this;
    const named = Object.entries(spec).filter(([, value]) => isNumber(value));
    const holder = h("tbody");
    const draw = () => {
      fill(holder, named.flatMap(([name, value]) => {
        const open = ui.chosen === name;
        const title = pick(labelOf(name), { "aria-expanded": String(open), "data-number": name, onclick: () => choose(open ? null : name) });
        const row = h("tr", { class: open ? "aw-selected" : null }, h("th", { scope: "row" }, title), h("td", { class: "aw-num" }, SHARES.includes(name) ? percent(value.value) : figure(value)), h("td", {}, h("span", { class: "aw-src" }, sourceWord(value))));
        return open ? [row, h("tr", {}, h("td", { colspan: 3, class: "aw-from" }, provenance(name, value, spec, choose)))] : [row];
      }));
    };
    const choose = (name) => {
      const before = ui.chosen;
      ui.chosen = name;
      draw();
      holder.querySelector(`[data-number="${name ?? before}"]`)?.focus(); // also of what was folded, or the keyboard would begin at the page's top
      if (name) ctx.showCode([ctx.recordLine("serving_spec") ? `${ctx.recordLine("serving_spec")}.${name}` : this.specLine()]);
    };
    draw();
    roving(holder);
    return section(`Numbers of ${spec.name}`, ctx.codeButton(() => ctx.recordLine("serving_spec") ?? this.specLine()),
      h("p", { class: "aw-hint" }, "Each says where it comes from: choose one."),
      h("div", { class: "aw-scroll aw-framed", tabindex: 0, role: "region", "aria-label": "numbers of the spec" }, h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, ["number", "value", "it was"].map((text, i) => h("th", { scope: "col", class: i === 1 ? "aw-num" : null }, text)))), holder)));
  }

  files(spec, written) {
    const { ctx, ui } = this;
    const names = Object.keys(written?.files ?? {});
    const title = `Files for ${spec.export_format}`;
    if (!names.length) return section(title, null, h("p", { class: "aw-hint" }, written?.why ?? "This format writes no files."));
    if (!names.includes(ui.file)) ui.file = names[0];
    const text = h("pre", { class: "aw-file", tabindex: 0, role: "region", "aria-label": "the file" });
    const draw = () => { text.textContent = written.files[ui.file]; };
    draw();
    const chosen = names.length > 1 ? h("select", { class: "aw-input", "aria-label": "file", "data-live": true, onchange: (event) => { ui.file = event.target.value; draw(); } }, names.map((name) => h("option", { value: name, selected: name === ui.file }, name))) : null;
    return section(title, [chosen, ctx.codeButton(() => this.specLine())], chosen ? null : h("p", { class: "aw-hint" }, ui.file), text);
  }
}

/** All that is known of where a number comes from; what it was made from can be chosen, where it stands in the spec too. */
function provenance(name, value, spec, choose) {
  const pairs = [
    ["how", value.method], ["band", value.interval ? `${interval(value)}${value.interval_kind ? `, ${value.interval_kind}` : ""}` : null], ["observations", value.n],
    ["source", value.source === "derived" ? `computed; the weakest of what went in is ${sourceWord(value)}` : sourceWord(value)],
    ["made from", value.inputs?.length ? value.inputs.map((input, i) => [i ? ", " : null, isNumber(spec[input]) ? h("button", { type: "button", class: "aw-pick aw-link", onclick: () => choose(input) }, labelOf(input)) : labelOf(input)]) : null],
    ["holds for", value.environment ? `environment ${value.environment}${spec.environment?.id === value.environment ? `, ${spec.environment.device_name}` : ""}` : null],
  ];
  return h("dl", { class: "aw-provenance" }, pairs.filter(([, text]) => text !== null && text !== undefined).map(([term, text]) => [h("dt", {}, term), h("dd", {}, text)]));
}

/** What a check of the spec and its files finds. */
function findings(ctx, written, spec) {
  const found = written?.findings ?? [];
  const errors = found.filter(({ code }) => code.startsWith("E-")).length;
  const checked = ctx.fact("checks").manifests;
  const elsewhere = checked ? `${checked.subject} ${checked.passed ? "passes" : "fails"} its check` : null;
  const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  return section("Findings", ctx.codeButton(() => (elsewhere ? ctx.lineOn("check", checked.subject) : ctx.line("spec", { rate: spec.requests_per_s.value, p99: `${1e3 * spec.latency_p99_target.value}ms`, out: "deploy" }))),
    h("p", { class: `aw-lead ${errors ? "aw-bad" : "aw-good"}`, role: "status" }, `${errors ? count(errors, "error") : "No errors"}, ${count(found.length - errors, "warning")}: form, agreement and numbers of the spec and its files.${elsewhere ? ` ${elsewhere}.` : ""}`),
    found.length ? table("findings", ["code", "where", "what"], found.map((f) => [h("span", { class: f.code.startsWith("E-") ? "aw-error" : "aw-warning" }, f.code), f.path, f.text])) : null);
}
