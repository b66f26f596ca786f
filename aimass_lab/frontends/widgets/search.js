// Search: limits as fields and handles, the front as it grows, every setting that was tried, and why the winner won.

import { figure, measured, provenance } from "./format.js";
import { fill, h, keeping, number, pick, roving, section } from "./dom.js";
import { choose, field } from "./form.js";
import { scatter, settingText, WORDS } from "./scatter.js";

const LIMITS = { max_drop: null, p99: "latency_p99", memory: "memory", size: "size" };
const ROWS = 40;
const SEVERAL = ["recipe", "runtime", "batch"];
const PLACEHOLDERS = { max_drop: "e.g. 1%", p99: "e.g. 20ms", memory: "e.g. 1GiB", size: "e.g. 99MiB", recipe: "all worth a look; or a; b", runtime: "all there are; or a; b", batch: "1, 8, 32 and yours", trials: "no limit" };

export const searchView = {
  name: "search",
  text: "Search",
  kinds: ["search"],
  facts: ["searching"],
  draw: (ctx) => new Search(ctx).view(),
  line: (ctx) => searchLine(ctx),
};

const settings = (ctx) => Object.assign(ctx.ui, { values: {}, axes: null, picked: null, open: false, ...ctx.ui });

const plain = (text) => (/^-?\d+(\.\d+)?(e-?\d+)?$/i.test(text) ? Number(text) : text);

function searchLine(ctx) {
  const { values } = settings(ctx);
  const given = Object.entries(values).map(([name, text]) => [name, SEVERAL.includes(name) ? text.split(name === "batch" ? /[\s,]+/ : /\s*[;\n]\s*/).filter(Boolean).map(plain) : plain(text)]);
  return ctx.line("search", Object.fromEntries(given));
}

class Search {
  constructor(ctx) {
    this.ctx = ctx;
    this.ui = settings(ctx);
    this.fields = new Map(ctx.fact("searching").fields.map((one) => [one.name, one]));
    this.quality = ctx.fact("searching").quality;
    this.inputs = {};
    this.form = h("div", { class: "aw-compose", "data-live": true });
    this.results = h("div", { class: "aw-view" });
  }

  view() {
    this.drawForm();
    this.showResults();
    return { node: h("div", { class: "aw-view" }, this.form, this.results), mark: () => this.drawButton(), update: () => keeping(this.results, () => this.showResults()) };
  }

  // --- what is asked for

  drawForm() {
    const limits = ["max_drop", "p99", "memory", "size", "seconds"].map((name) => this.limitField(name));
    const more = ["recipe", "runtime", "batch", "trials", "sampler"].map((name) => field(name, this.input(name), this.fields.get(name).text));
    this.button = h("span", { class: "aw-row" });
    fill(this.form, section("Limits and time", this.ctx.codeButton(() => searchLine(this.ctx)),
      h("div", { class: "aw-bench" }, limits, this.button),
      h("details", { class: "aw-notes", open: this.ui.open, ontoggle: (event) => { this.ui.open = event.target.open; } }, h("summary", {}, "What is searched, and how"), h("div", { class: "aw-options" }, more))));
    this.drawButton();
  }

  limitField(name) {
    const text = { max_drop: this.quality === "drop" ? "loss of the metric, at most" : "dissimilarity, at most", p99: "p99 latency, at most", memory: "memory, at most", size: "on disk, at most", seconds: "seconds to search" }[name];
    return h("label", { class: "aw-field", title: this.fields.get(name).text }, h("span", {}, text), this.input(name));
  }

  input(name) {
    const { default: usual, choices } = this.fields.get(name);
    const set = (text) => {
      if (text === "" || text === String(usual)) delete this.ui.values[name];
      else this.ui.values[name] = text;
      this.ctx.showCode([searchLine(this.ctx)]);
    };
    if (choices.length) return choose(name, choices.map((one) => [one, one]), this.ui.values[name] ?? usual, set);
    const several = SEVERAL.includes(name);
    this.inputs[name] = h("input", { class: several ? "aw-input" : "aw-input aw-short", "aria-label": name.replace("_", " "), placeholder: PLACEHOLDERS[name] ?? String(usual), value: this.ui.values[name] ?? "", oninput: (event) => { set(event.target.value.trim()); if (name in LIMITS) this.redrawPlot(); } });
    return this.inputs[name];
  }

  /** The search that runs or waits; null where there is none. */
  running() {
    return this.ctx.jobs().find((job) => /(\.|%aimass )search\b/.test(job.line)) ?? null;
  }

  drawButton() {
    const job = this.running();
    const text = job ? "Stop, keep what was found" : this.ctx.record("search") ? "Search again" : "Search";
    if (this.button.textContent === text) return;
    const act = () => {
      const now = this.running();
      if (now) { this.ctx.stop(now.number); return; }
      this.ui.picked = null;
      this.ctx.run([searchLine(this.ctx)]);
    };
    keeping(this.button, () => fill(this.button, h("button", { type: "button", class: "aw-button aw-primary", "aria-label": job ? "stop the search" : "start the search", onclick: act }, text)));
  }

  // --- what was found

  showResults() {
    const record = this.ctx.record("search");
    this.record = record;
    if (!record) {
      fill(this.results, h("p", { class: "aw-hint" }, "Nothing was searched yet. A search tries recipes, runtimes and batch sizes beside the original, keeps within its time, and shows here what it has found, as it goes."));
      return;
    }
    this.names = [...new Set(record.candidates.flatMap((c) => Object.keys(c.numbers)))];
    this.plot = h("div");
    this.detail = h("div", { class: "aw-detail" });
    fill(this.results, this.lead(record), h("div", { class: "aw-search" }, section("Settings that were tried", this.axisChoice(record), this.plot, this.legend(record)), this.detail), this.why(record), this.table(record), this.failures(record), this.notes(record));
    this.redrawPlot();
    this.show(this.ui.picked);
  }

  lead(record) {
    const [first] = record.objectives;
    const tried = record.candidates.filter((c) => c.status === "measured").length;
    const best = record.best === null ? null : record.candidates[record.best];
    const known = h("span", { class: "aw-hint" }, `${tried} of ${record.num_points.value.toLocaleString("en-US")} possible settings measured; ${record.stopped}.`);
    if (!best) return h("p", { class: "aw-lead aw-warm", role: "status" }, "Nothing to recommend yet. ", known);
    const n = best.numbers[first.name];
    return h("p", { class: "aw-lead aw-good", role: "status" }, h("b", {}, settingText(best.setting)), `: ${WORDS[first.name]} ${measured(n)}. `, known);
  }

  axesOf(record) {
    const [first, second] = record.objectives.map((o) => o.name);
    return [this.ui.axes?.[0] ?? second ?? this.quality, this.ui.axes?.[1] ?? first].map((name, axis) => (this.names.includes(name) ? name : (this.names[axis] ?? this.names[0])));
  }

  axisChoice(record) {
    if (!this.names.length) return null;
    const now = this.axesOf(record);
    const options = this.names.map((name) => [name, WORDS[name]]);
    const set = (axis) => (name) => { const next = this.axesOf(record); next[axis] = name; this.ui.axes = next; keeping(this.results, () => this.showResults()); };
    const one = (text, axis) => h("label", { class: "aw-row aw-axis" }, h("span", { class: "aw-hint" }, text), choose(text, options, now[axis], set(axis)));
    return h("span", { class: "aw-row", "data-live": true }, one("across", 0), one("up", 1), this.ctx.codeButton(() => this.ctx.chartLine("search")));
  }

  /** What the fields say of each quantity, in base units: what was typed with a unit is left to the kernel, and shown once it has come back. */
  limits() {
    const found = {};
    for (const [fieldName, fixed] of Object.entries(LIMITS)) {
      const name = fixed ?? this.quality;
      const text = this.ui.values[fieldName];
      found[name] = text === undefined ? null : inBase(text);
    }
    return found;
  }

  redrawPlot() {
    if (!this.record || !this.plot) return;
    if (!this.names.length) {
      fill(this.plot, h("p", { class: "aw-hint" }, "No setting has been measured yet."));
      return;
    }
    const drag = (name, value, done) => {
      const fieldName = Object.keys(LIMITS).find((one) => (LIMITS[one] ?? this.quality) === name);
      const text = value === null ? "" : asTyped(name, value);
      this.inputs[fieldName].value = text;
      if (text) this.ui.values[fieldName] = text;
      else delete this.ui.values[fieldName];
      if (done) this.ctx.showCode([searchLine(this.ctx)]);
    };
    const drawn = scatter(this.record, this.axesOf(this.record), this.limits(), this.ctx.fit, { hover: (i) => this.show(i ?? this.ui.picked), pick: (i) => this.pick(i), drag });
    this.markPlot = drawn.mark;
    fill(this.plot, drawn.node);
    this.markPlot(this.ui.picked ?? this.record.best);
  }

  legend(record) {
    const guess = record.candidates.some((c) => c.status === "predicted") ? [h("span", { class: "aw-key aw-key-guess" }), "predicted"] : null;
    return h("p", { class: "aw-hint" }, h("span", { class: "aw-key aw-key-best" }), "best ", h("span", { class: "aw-key aw-key-front" }), "on the front ", h("span", { class: "aw-key aw-key-plain" }), "measured ", h("span", { class: "aw-key-cross" }, "×"), "outputs not equivalent", guess, ". Pale: beyond the limits above. Limits can be dragged; they hold in the next search.");
  }

  pick(index) {
    this.ui.picked = index;
    this.show(index);
    this.ctx.showCode(this.codeOf(this.record.candidates[index].setting));
  }

  /** The lines that try a setting, and call its copy. */
  codeOf(setting) {
    const recipe = settingText({ recipe: setting.recipe });
    const options = { batch: setting.batch_size, threads: setting.threads, instances: setting.instances > 1 ? setting.instances : null };
    const { style, name } = this.ctx.subject();
    return [this.ctx.line("trial", options, [recipe]), ...(style === "python" ? [`${name}.variant(${JSON.stringify(recipe)})`] : [])];
  }

  /** One candidate in figures; the best where none is chosen. */
  show(index) {
    const { record } = this;
    const at = index ?? record.best ?? (record.candidates.length ? 0 : null);
    const c = at === null ? null : record.candidates[at];
    if (!c) { fill(this.detail); return; }
    const rows = Object.entries(c.numbers).map(([name, n]) => h("div", { class: "aw-pair" }, h("dt", {}, WORDS[name]), h("dd", {}, number(n))));
    const lines = this.codeOf(c.setting);
    fill(this.detail, h("div", { class: "aw-section-head" }, h("h3", {}, at === record.best ? "The best" : "This setting"), h("div", { class: "aw-controls", "data-live": true }, this.ctx.codeButton(() => lines), h("button", { type: "button", class: "aw-button", onclick: () => { this.ctx.run([lines[0]]); } }, "Try it"))),
      h("p", {}, h("b", {}, settingText(c.setting))), h("p", { class: "aw-hint" }, this.mark(at, c), c.cause ? `: ${c.cause}` : ""), h("dl", { class: "aw-pairs" }, rows),
      at === record.best && record.code ? [h("h4", { class: "aw-small-head" }, "The winner as code"), h("pre", { class: "aw-listing" }, lines.join("\n"))] : null);
    this.markPlot?.(at);
    for (const row of this.results.querySelectorAll("tr[data-candidate]")) row.classList.toggle("aw-selected", Number(row.dataset.candidate) === at);
  }

  mark(index, c) {
    const { record } = this;
    const words = [index === record.best ? "best" : null, record.front.includes(index) ? "on the front" : record.near_front.includes(index) ? "near the front" : null, c.status === "measured" ? c.verdict : c.status, ...c.beyond.map((name) => `beyond the limit of ${WORDS[name]}`)];
    return words.filter(Boolean).join(", ");
  }

  why(record) {
    const rows = [
      record.runner_up ? ["why not the runner-up", record.runner_up.text] : null,
      record.refused ? ["why not the first by its objective", record.refused.text] : null,
      ...record.limits.map((limit) => [`limit of ${WORDS[limit.name]}, ${figure(limit.at_most)}${limit.relaxed === null ? "" : ": it binds"}`, excludedBy(limit)]),
    ].filter(Boolean);
    return rows.length ? section("Why this one", null, h("dl", { class: "aw-why" }, rows.map(([text, says]) => h("div", {}, h("dt", {}, text), h("dd", {}, says))))) : null;
  }

  table(record) {
    const shown = record.candidates.map((c, i) => ({ c, i })).filter(({ c }) => c.status !== "failed");
    const asked = [...record.objectives.map((o) => o.name), ...record.limits.map((l) => l.name), "speedup", "latency", "size", this.quality];
    const names = [...new Set(asked)].filter((name) => this.names.includes(name));
    const varied = ["threads", "instances"].filter((name) => new Set(record.candidates.map((c) => c.setting[name])).size > 1);
    const row = ({ c, i }) => h("tr", { "data-candidate": i, onpointerenter: () => this.show(i), onpointerleave: () => this.show(this.ui.picked) },
      h("th", { scope: "row" }, pick(settingText({ recipe: c.setting.recipe, device: c.setting.device }), { onclick: () => this.pick(i) })),
      h("td", { class: "aw-num" }, c.setting.batch_size ?? "–"), varied.map((name) => h("td", { class: "aw-num" }, c.setting[name] ?? "–")),
      names.map((name) => h("td", { class: "aw-num", title: c.numbers[name] ? provenance(c.numbers[name]) : null }, c.numbers[name] ? figure(c.numbers[name]) : "–")), h("td", {}, this.mark(i, c)));
    const heads = [["setting"], ["batch", "aw-num"], ...varied.map((name) => [name, "aw-num"]), ...names.map((name) => [WORDS[name], "aw-num"]), ["said of it"]];
    const left = shown.length - ROWS;
    const body = h("tbody", {}, shown.slice(0, ROWS).map(row));
    roving(body);
    return section("Best first", null, h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "settings that were tried" },
      h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, heads.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))), body)),
      left > 0 ? h("p", { class: "aw-hint" }, `${left} further settings are in the record's candidates.`) : null);
  }

  failures(record) {
    const failed = record.candidates.filter((c) => c.status === "failed");
    if (!failed.length) return null;
    const rows = failed.slice(0, ROWS).map((c) => h("tr", {}, h("th", { scope: "row" }, settingText(c.setting)), h("td", {}, c.failure), h("td", { class: "aw-wrap" }, c.cause)));
    return h("details", { class: "aw-notes" }, h("summary", {}, `Failed (${failed.length}), with the cause`), h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "settings that failed" },
      h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, ["setting", "kind", "cause"].map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows))));
  }

  notes(record) {
    const texts = [...record.pruned.map((p) => `${p.num_points.value.toLocaleString("en-US")} combinations are not possible: ${p.cause}`), ...record.notes.map((note) => note.text)];
    return texts.length ? h("details", { class: "aw-notes" }, h("summary", {}, `Left out beforehand, and notes (${texts.length})`), h("ul", {}, texts.map((text) => h("li", {}, text)))) : null;
  }
}

function excludedBy({ num_excluded: { value: all }, num_excluded_alone: { value: alone }, text }) {
  if (!all) return `nothing that was tried is beyond it; ${text}`;
  return `${all === 1 ? "1 setting is" : `${all} settings are`} beyond it, ${alone} of them beyond nothing else; ${text}`;
}

const FACTORS = { "": 1, "%": 0.01, s: 1, ms: 1e-3, us: 1e-6, "µs": 1e-6, min: 60, B: 1, kB: 1e3, MB: 1e6, GB: 1e9, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 };

/** A typed limit in base units, for its line in the plot; null where it is not understood here: the kernel then says what is wrong. */
function inBase(text) {
  const found = /^([\d.]+)\s*([a-zµ%]*)$/i.exec(text);
  return found && found[2] in FACTORS && Number.isFinite(Number(found[1])) ? Number(found[1]) * FACTORS[found[2]] : null;
}

/** A dragged limit as a person would type it. */
function asTyped(name, value) {
  const rounded = (v) => String(Number(v.toPrecision(3)));
  if (name === "latency_p99") return value < 1 ? `${rounded(value * 1e3)}ms` : `${rounded(value)}s`;
  if (name === "memory" || name === "size") return value < 2 ** 20 ? `${rounded(value / 2 ** 10)}KiB` : `${rounded(value / 2 ** 20)}MiB`;
  return rounded(value);
}
