// Try: a recipe put together step by step, tried on a copy beside the original, and every try so far side by side.

import { figure, interval, percent, quantity } from "./format.js";
import { fill, h, keeping, pick, roving, section } from "./dom.js";
import { covers, foreseen } from "./foreseen.js";
import { optionFields, recipeText, stepText } from "./form.js";
import { card, ratioScale, smallWhisker, verdictTag } from "./verdict.js";

const CHECK_AFTER_MS = 150;
const FORESEE_AFTER_MS = 400;

export const tryView = {
  name: "try",
  text: "Try",
  kinds: ["trial"],
  facts: ["techniques", "tries", "samples", "effects"],
  draw: (ctx) => new Try(ctx).view(),
  line: (ctx) => trialLine(ctx),
};

function settings(ctx) {
  const { ui } = ctx;
  return Object.assign(ui, { steps: [], at: 0, batch: String(ctx.subject().batch), seconds: "6", chosen: null, ...ui });
}

const sizesOf = (ui) => ui.batch.split(/[\s,]+/).filter(Boolean).map((text) => (/^\d+$/.test(text) ? Number(text) : text));

function trialLine(ctx) {
  const ui = settings(ctx);
  const sizes = sizesOf(ui);
  const usual = sizes.length === 1 && sizes[0] === ctx.subject().batch;
  const seconds = /^[\d.]+$/.test(ui.seconds) ? Number(ui.seconds) : ui.seconds;
  return ctx.line("trial", { batch: sizes.length && !usual ? sizes : null, seconds: ui.seconds && seconds !== 6 ? seconds : null }, [recipeText(ui.steps)]);
}

class Try {
  constructor(ctx) {
    this.ctx = ctx;
    this.ui = settings(ctx);
    this.techniques = new Map(ctx.fact("techniques").map((one) => [one.name, one]));
    this.composer = h("div", { class: "aw-compose", "data-live": true });
    this.expected = h("div", {});
    this.results = h("div", { class: "aw-view" });
  }

  view() {
    if (!this.ctx.quiet) this.compose();
    this.showResults();
    return { node: h("div", { class: "aw-view" }, this.composer, this.results), mark: () => this.foresee(), update: () => { keeping(this.results, () => this.showResults()); this.foresee(); } };
  }

  // --- the recipe

  compose() {
    const { ui } = this;
    const step = ui.steps[ui.at];
    const chips = ui.steps.map((one, i) => [i ? h("span", { class: "aw-plus", "aria-hidden": "true" }, "+") : null,
      h("button", { type: "button", class: "aw-button aw-chip", "aria-pressed": String(i === ui.at), onclick: () => { ui.at = i; this.compose(); this.focusOn(".aw-chip[aria-pressed=true]"); } }, stepText(one))]);
    this.status = h("p", { class: "aw-hint aw-check", role: "status" });
    fill(this.composer, section("Recipe", [this.picker(), this.ctx.codeButton(() => trialLine(this.ctx))],
      h("div", { class: "aw-row aw-chips", role: "group", "aria-label": "steps of the recipe, in their order" }, chips.length ? chips : h("span", { class: "aw-hint" }, "No step yet: a try of the unchanged model is the control. Add a step to compress it.")),
      step ? this.stepForm(step) : null,
      h("div", { class: "aw-bench" },
        h("label", { class: "aw-field" }, h("span", {}, "batch sizes"), h("input", { class: "aw-input", value: ui.batch, "aria-label": "batch sizes, with commas", oninput: (event) => { ui.batch = event.target.value; this.changed(); } })),
        h("label", { class: "aw-field" }, h("span", {}, "seconds to compare"), h("input", { class: "aw-input aw-short", value: ui.seconds, "aria-label": "seconds to compare", oninput: (event) => { ui.seconds = event.target.value.trim(); this.changed(); } })),
        h("button", { type: "button", class: "aw-button aw-primary", onclick: () => this.start() }, "Try it"), this.status), this.expected));
    this.changed();
  }

  focusOn(selector) { this.composer.querySelector(selector)?.focus(); }

  picker() {
    const stages = [...new Set([...this.techniques.values()].map((one) => one.stage))];
    const options = stages.map((stage) => h("optgroup", { label: stage }, [...this.techniques.values()].filter((one) => one.stage === stage).map((one) => h("option", { value: one.name, title: one.lacking ?? one.text }, one.lacking ? `${one.name} (not possible here)` : one.name))));
    return h("select", { class: "aw-input aw-picker", "aria-label": "add a step", onchange: (event) => this.add(event.target.value) }, h("option", { value: "" }, "add a step …"), options);
  }

  add(name) {
    if (!name) return;
    this.ui.at = this.ui.steps.push({ technique: name, options: {} }) - 1;
    this.compose();
    this.focusOn(".aw-picker");
  }

  stepForm(step) {
    const { ui } = this;
    const technique = this.techniques.get(step.technique);
    const move = (by) => () => {
      const [one] = ui.steps.splice(ui.at, 1);
      ui.at += by;
      ui.steps.splice(ui.at, 0, one);
      this.compose();
      this.focusOn(".aw-chip[aria-pressed=true]");
    };
    const remove = () => {
      ui.steps.splice(ui.at, 1);
      ui.at = Math.max(0, Math.min(ui.at, ui.steps.length - 1));
      this.compose();
      this.focusOn(".aw-picker");
    };
    const small = (text, act, off = false) => h("button", { type: "button", class: "aw-button", disabled: off, onclick: act }, text);
    const chip = () => { this.composer.querySelector(".aw-chip[aria-pressed=true]").textContent = stepText(step); this.changed(); };
    return h("div", { class: "aw-step" },
      h("div", { class: "aw-row" }, h("h4", {}, step.technique), h("span", { class: "aw-src" }, technique.stage), small("Earlier", move(-1), ui.at === 0), small("Later", move(1), ui.at === ui.steps.length - 1), small("Remove", remove)),
      h("p", {}, technique.text), technique.options.length ? optionFields(technique, step, chip) : h("p", { class: "aw-hint" }, "It has no options."));
  }

  /** Show the line, and ask the kernel whether the recipe can be run: it knows the order of steps, the bounds, and what the samples allow. */
  changed() {
    const text = recipeText(this.ui.steps);
    this.checked = null;
    this.ctx.showCode([trialLine(this.ctx)]);
    clearTimeout(this.asking);
    this.asking = setTimeout(async () => {
      this.say("being checked; a cell that runs comes first", "");
      const found = await this.ctx.ask("recipe", text);
      if (text !== recipeText(this.ui.steps)) return;
      this.say(found.error ? `${found.error}${found.help ? `. ${found.help}` : ""}` : "can be tried, by its order, options and samples", found.error ? "aw-bad" : "aw-good");
      this.checked = found;
      this.foresee();
    }, CHECK_AFTER_MS);
  }

  // --- what is predicted of it

  predictLine() {
    return this.ctx.line("predict", { batch: sizesOf(this.ui), technique: this.checked.name });
  }

  /** Show what is predicted of the recipe in the form; ask for it where that takes no measurement, nothing else runs, and the hand rests. */
  foresee() {
    const { ctx, ui, checked } = this;
    clearTimeout(this.resting);
    const sizes = sizesOf(ui);
    if (!checked?.name || !ui.steps.length || !sizes.length || !sizes.every((size) => Number.isInteger(size) && size > 0)) return fill(this.expected);
    const effect = ctx.fact("effects")[checked.name];
    if (covers(effect, sizes)) return keeping(this.expected, () => fill(this.expected, foreseen(effect, sizes, ctx.codeButton(() => this.predictLine()))));
    const line = this.predictLine();
    const asked = (ui.foreseen ??= []).includes(line);
    const hint = (text) => fill(this.expected, h("p", { class: "aw-hint aw-unforeseen" }, text));
    if (checked.unpredicted) return hint(`Not predicted: ${checked.unpredicted}. A try measures it.`);
    if (ctx.fact("tries").some((one) => one.name === checked.name && one.record)) return hint("It was tried before anything was predicted of it: what was measured stands below.");
    if (ctx.busy()) return hint("It is predicted when nothing else runs.");
    if (asked) return hint("It could not be predicted: the line below the panel that failed says why. A try measures it.");
    if (!ctx.record("profile")) {
      return keeping(this.expected, () => fill(this.expected, h("p", { class: "aw-hint aw-unforeseen" }, "A prediction rests on a profile of the model, and there is none yet. ", h("button", { type: "button", class: "aw-button", onclick: () => this.predict(line) }, "Profile and predict"))));
    }
    hint("It is about to be predicted.");
    this.resting = setTimeout(() => { if (this.expected.isConnected && this.checked === checked && !ctx.busy()) this.predict(line); }, FORESEE_AFTER_MS);
  }

  predict(line) {
    this.ui.foreseen.push(line);
    this.ctx.run([line], { unshown: true }); // what is shown stays the line of what the hand is at
  }

  say(text, tone) {
    this.status.textContent = text;
    this.status.className = `aw-hint aw-check ${tone}`;
  }

  start() {
    this.ui.chosen = recipeText(this.ui.steps);
    this.ctx.run([trialLine(this.ctx)]);
  }

  // --- what was tried

  showResults() {
    const tries = this.ctx.fact("tries");
    const one = tries.find((t) => t.name === this.ui.chosen) ?? tries[0];
    fill(this.results, tries.length ? [this.table(tries, one), card(this.ctx, one, this.actions(one))] : h("p", { class: "aw-hint" }, "Nothing was tried yet. A try works on a copy, runs beside the notebook, and leaves the model as it is."));
  }

  table(tries, chosen) {
    const measured = tries.filter((t) => t.record);
    const scale = ratioScale(measured.map((t) => t.record.points[0].speedup), 2, 118);
    const metric = measured.some((t) => t.record.metric_drop);
    const choose_ = (name) => { this.ui.chosen = name; this.showResults(); this.results.querySelector(".aw-pick[aria-current=true]")?.focus(); this.ctx.showCode(this.useLines(name)); };
    const row = (t) => h("tr", { class: t === chosen ? "aw-selected" : null },
      h("th", { scope: "row" }, pick(t.name, { "aria-current": String(t === chosen), onclick: () => choose_(t.name) })),
      t.record ? this.figures(t.record, scale, metric) : h("td", { colspan: 5 }, "not tried by itself"),
      h("td", { class: "aw-num" }, t.memory ? figure(t.memory) : h("span", { class: "aw-hint" }, "released")));
    const heads = ["recipe", "verdict", "speed-up", "latency, copy", "on disk", metric ? "metric lost" : "outputs", "in memory"];
    const body = h("tbody", {}, tries.map(row));
    roving(body);
    return section("Tried so far", this.ctx.codeButton(() => this.variantsLine()), h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "tried so far" },
      h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, heads.map((text, i) => h("th", { scope: "col", class: i > 2 ? "aw-num" : null }, text)))), body)));
  }

  figures(record, scale, metric) {
    const [point] = record.points;
    const lost = metric ? figure(record.metric_drop) : `cosine ${quantity(record.fidelity.value, "ratio")}`;
    return [
      h("td", {}, verdictTag(record)), h("td", {}, h("span", { class: "aw-row aw-nowrap" }, smallWhisker(point.speedup, scale), h("b", { title: interval(point.speedup) }, figure(point.speedup)))),
      h("td", { class: "aw-num" }, figure(point.latency_variant)), h("td", { class: "aw-num" }, percent(record.stored_bytes.value / (record.stored_original_bytes.value || 1))), h("td", { class: "aw-num" }, lost),
    ];
  }

  variantsLine() {
    const { style, name } = this.ctx.subject();
    return style === "python" ? `${name}.variants` : this.ctx.line("release", {}, []);
  }

  /** The chosen copy in the user's own code. */
  useLines(name) {
    const { style, name: study, inputs } = this.ctx.subject();
    if (style !== "python") return [this.ctx.line("trial", {}, [name])];
    return [`${study}.variant(${JSON.stringify(name)})(${inputs || `*${study}.workload.call.args, **${study}.workload.call.kwargs`})`];
  }

  actions(one) {
    const { ctx } = this;
    const button = (text, label, act) => h("button", { type: "button", class: "aw-button", "aria-label": label, onclick: act }, text);
    const edit = () => { this.edit(one); };
    return [
      one.memory ? button("Call it", `show the code that calls ${one.name}`, () => ctx.showCode(this.useLines(one.name))) : null,
      one.record ? button("Edit", `put ${one.name} into the form`, edit) : button("Try it", `try ${one.name}`, () => ctx.run([ctx.line("trial", {}, [one.name])])),
      one.memory ? button("Undo: release the copy", `release ${one.name}`, () => ctx.run([ctx.line("release", {}, [one.name])])) : button("Make it again", `try ${one.name} again`, () => ctx.run([ctx.line("trial", {}, [one.name])])),
    ];
  }

  edit(one) {
    this.ui.steps = one.record.setting.recipe.steps.map((step) => ({ technique: step.technique, options: { ...step.options } }));
    this.ui.batch = one.record.points.map((p) => p.batch_size).join(", ");
    this.ui.at = 0;
    this.compose();
    this.focusOn(".aw-chip");
  }
}
