// The frame: tabs, the line of code of what was done last, the work that runs beside the notebook; and what links the views.
//
// A view is one module that exports one object:
//   name, text   what the kernel calls it, and what stands on its tab
//   kinds        the records that it draws, which source.py reads here; without one of the first kind there is nothing of it to keep in a picture,
//                unless kept(ctx) finds something else
//   facts        what it needs besides, by the names of the kernel's facts/
//   draw(ctx)    gives {node}, its plots in the sizes that ctx.fit says, and where it wants to: mark(), called when the selection or the work changed; update(), called in place of drawing
//                anew when what it draws has changed, so that a form keeps what is being typed
//   line(ctx)    the line or lines of code to show when it is opened; null where drawing shows them

import { h, keeping } from "./dom.js";
import { insertCell, lineOf, lineOn } from "./code.js";
import { profileView } from "./profile.js";
import { searchView } from "./search.js";
import { tryView } from "./tries.js";
import { whatIfView } from "./whatif.js";
import { planView } from "./plan.js";
import { shipView } from "./ship.js";
import { roomIn } from "./plot.js";
import { pictureOf, savePictures } from "./saving.js";

const VIEWS = [profileView, whatIfView, tryView, searchView, planView, shipView];
const PICTURE_AFTER_MS = 1200;

class Frame {
  constructor(model) {
    this.model = model;
    this.uis = Object.fromEntries(VIEWS.map(({ name }) => [name, {}]));
    this.lines = [];
    this.room = Infinity;
    this.asked = new Map();
    this.id = `aw${Math.random().toString(36).slice(2, 9)}`;
    this.root = h("div", { class: "aw", "data-panel": model.get("identity") });
    this.build();
    const heard = { "change:records": () => this.follow(), "change:facts": () => this.follow(), "change:view": () => this.draw(), "change:selection": () => this.mark(), "change:jobs": () => this.drawJobs(), "change:subject": () => this.drawTitle(), "msg:custom": (message) => this.answered(message) };
    for (const [event, react] of Object.entries(heard)) model.on(event, react);
    // While a hand holds something, its picture can wait: it is drawn of every view, which would make the hand wait.
    const hand = { pointerdown: (event) => { this.held = this.root.contains(event.target); }, pointerup: () => { this.held = false; }, pointercancel: () => { this.held = false; } };
    for (const [event, react] of Object.entries(hand)) addEventListener(event, react, true);
    this.forget = () => {
      for (const [event, react] of Object.entries(heard)) model.off(event, react);
      for (const [event, react] of Object.entries(hand)) removeEventListener(event, react, true);
    };
    this.keep = savePictures(model, () => this.picture());
    this.draw();
    this.drawJobs();
    this.watch = new ResizeObserver(([{ contentRect }]) => this.resized(contentRect.width));
    this.watch.observe(this.root);
  }

  /** A plot's words are as large as others only in a plot as wide as its place. */
  resized(width) {
    const room = width > 0 ? roomIn(width) : this.room;
    if (room === this.room) return;
    this.room = room;
    this.draw();
  }

  /** What a view may know and do. */
  context(name, quiet = false) {
    const { model } = this;
    const line = (verb, options, first) => lineOf(model.get("subject"), verb, options, first);
    return {
      ui: this.uis[name],
      line,
      record: (kind) => model.get("records")[kind] ?? null,
      fact: (fact) => model.get("facts")[fact],
      subject: () => model.get("subject"),
      quiet,
      fit: (plot) => (quiet ? plot : { ...plot, width: Math.min(plot.width, this.room) }),
      jobs: () => this.active(),
      busy: () => this.active().length > 0,
      stop: (number) => model.send({ kind: "stop", number }),
      ask: (question, value) => this.ask(question, value),
      selection: () => model.get("selection"),
      select: (module) => { model.set("selection", module); model.save_changes(); this.showCode([this.moduleLine()]); },
      lineOn: (verb, path) => lineOn(model.get("subject"), verb, path),
      run: (lines, { unshown = false, ...options } = {}) => { if (!unshown) this.showCode(lines); model.send({ kind: "run", lines, ...options }); },
      showCode: quiet ? () => {} : (lines) => this.showCode(lines),
      codeButton: (get) => h("button", { type: "button", class: "aw-button aw-code-button", "data-live": true, title: "show this as a line of code", "aria-label": "show this as a line of code", onclick: () => this.showCode([get()].flat()) }, "‹›"),
      recordLine: (kind) => this.recordLine(kind),
      resultLine: (index) => this.resultLine(index),
      chartLine: (kind) => this.chartLine(kind),
      moduleLine: () => this.moduleLine(),
    };
  }

  /** A record that is there already, by its place among the study's results; what work in progress has found has none yet. */
  recordLine(kind) {
    const record = this.model.get("records")[kind];
    return record ? this.resultLine(record.index) : null;
  }

  /** The same by its place; null where the study has no name in the notebook, or the result is not complete. */
  resultLine(index) {
    const { style, name } = this.model.get("subject");
    return style === "python" && index !== null ? `${name}.results[${index}]` : null;
  }

  chartLine(kind) {
    const record = this.recordLine(kind);
    return record ? `aimass_lab.chart(${record})` : lineOf(this.model.get("subject"), kind === "prediction" ? "predict" : kind);
  }

  moduleLine() {
    const record = this.recordLine("profile");
    const chosen = this.model.get("selection");
    return record && chosen !== null ? `[m for m in ${record}.modules if m.name == ${JSON.stringify(chosen)}]` : lineOf(this.model.get("subject"), "profile");
  }

  build() {
    this.title = h("div", { class: "aw-title" });
    this.tabs = VIEWS.map(({ name, text }) => h("button", { type: "button", role: "tab", class: "aw-tab", id: `${this.id}-${name}`, "aria-controls": `${this.id}-body`, onclick: () => this.open(name) }, text));
    const list = h("div", { role: "tablist", "aria-label": "views", class: "aw-tabs", "data-live": true, onkeydown: (event) => this.tabKey(event) }, this.tabs);
    this.body = h("div", { class: "aw-body", role: "tabpanel", id: `${this.id}-body` });
    this.jobs = h("div", { class: "aw-jobs", "data-live": true });
    this.status = h("div", { class: "aw-unseen", role: "status", "data-live": true });
    this.code = h("code", { class: "aw-code" });
    this.said = h("span", { class: "aw-said", role: "status" });
    const bar = h("div", { class: "aw-codebar", "data-live": true }, this.code, this.said, h("button", { type: "button", class: "aw-button", onclick: () => this.copy() }, "Copy"), h("button", { type: "button", class: "aw-button", onclick: () => this.insert() }, "Insert cell"));
    this.root.append(h("div", { class: "aw-head" }, this.title, list), this.body, this.jobs, this.status, bar);
    // Keys that are meant for the panel must not reach the notebook, where a letter is a command.
    this.root.addEventListener("keydown", (event) => { if (event.key !== "Escape") event.stopPropagation(); });
  }

  /** Put a question to the kernel; the answer comes when no cell runs. */
  ask(question, value) {
    const id = `${this.id}-${(this.questions = (this.questions ?? 0) + 1)}`;
    return new Promise((resolve) => {
      this.asked.set(id, resolve);
      this.model.send({ kind: "ask", question, value, id });
    });
  }

  answered({ kind, id, answer }) {
    if (kind !== "answer") return;
    this.asked.get(id)?.(answer);
    this.asked.delete(id);
  }

  open(name) {
    this.model.set("view", name);
    this.model.save_changes();
  }

  tabKey(event) {
    const names = VIEWS.map(({ name }) => name);
    const at = names.indexOf(this.model.get("view"));
    const next = { ArrowRight: (at + 1) % names.length, ArrowLeft: (at + names.length - 1) % names.length, Home: 0, End: names.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.open(names[next]);
    this.tabs[next].focus();
  }

  drawTitle() {
    const { model, device, batch } = this.model.get("subject");
    this.title.replaceChildren(h("h2", {}, model), h("span", { class: "aw-where" }, `on ${device}, example inputs of batch ${batch}`));
  }

  /** The view in front. */
  front() {
    return VIEWS.find(({ name }) => name === this.model.get("view")) ?? VIEWS[0];
  }

  /** All that a view draws, as text to compare by. */
  seen(view) {
    const [records, facts] = [this.model.get("records"), this.model.get("facts")];
    return JSON.stringify([view.name, view.kinds.map((kind) => records[kind]), view.facts.map((fact) => facts[fact])]);
  }

  /** Something became known: the view in front shows it, if it draws that. */
  follow() {
    const view = this.front();
    const now = this.seen(view);
    this.pictureLater(); // which shows every view
    if (now === this.drawn) return;
    if (!this.view.update) return this.draw();
    this.drawn = now;
    this.view.update();
  }

  draw() {
    const view = this.front();
    const { name } = view;
    this.drawTitle();
    this.tabs.forEach((tab, i) => {
      const on = VIEWS[i] === view;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
    });
    this.body.setAttribute("aria-labelledby", `${this.id}-${name}`);
    const ctx = this.context(name);
    this.view = view.draw(ctx);
    this.drawn = this.seen(view);
    keeping(this.body, () => this.body.replaceChildren(this.view.node));
    const lines = view.line(ctx);
    if (lines !== null) this.showCode([lines].flat());
    this.pictureLater();
  }

  mark() {
    this.view.mark?.();
    this.pictureLater();
  }

  /** The work that runs or waits. */
  active() {
    return this.model.get("jobs").filter((job) => job.state === "running" || job.state === "waiting");
  }

  drawJobs() {
    const jobs = this.model.get("jobs");
    const active = this.active();
    const last = jobs.findLast((job) => !active.includes(job));
    const stop = (job) => h("button", { type: "button", class: "aw-button", "aria-label": `stop ${job.line}`, onclick: () => this.model.send({ kind: "stop", number: job.number }) }, "Stop");
    const rows = active.map((job) => h("div", { class: "aw-job" },
      h("progress", { max: 1, value: job.state === "running" ? job.share : 0, "aria-label": job.line }), h("code", {}, job.line), h("span", { class: "aw-hint" }, job.state === "running" ? job.text || "begins" : "waits"), stop(job)));
    if (!active.length && last?.state === "failed") rows.push(h("div", { class: "aw-job aw-failed" }, h("code", {}, last.line), h("span", {}, last.text)));
    if (!active.length && last?.state === "stopped") rows.push(h("div", { class: "aw-job" }, h("code", {}, last.line), h("span", { class: "aw-hint" }, "was stopped; what was measured until then is kept")));
    const held = this.root.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    this.jobs.replaceChildren(...rows);
    if (held?.startsWith("stop ")) [...this.jobs.querySelectorAll("button")].find((node) => node.getAttribute("aria-label") === held)?.focus();
    this.view?.mark?.();
    const words = active.length ? `${active[0].line} runs` : last ? `${last.line}: ${last.state} ${last.text}` : "";
    if (this.status.textContent !== words) this.status.textContent = words; // not every step of the progress is read out
  }

  showCode(lines) {
    this.lines = lines;
    this.code.replaceChildren(...lines.flatMap((line, i) => (i ? [document.createTextNode("\n"), line] : [line])));
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.lines.join("\n"));
      this.say("copied");
    } catch {
      getSelection().selectAllChildren(this.code);
      this.say("selected: copy with Ctrl+C");
    }
  }

  insert() {
    const source = this.lines.map((line) => (line.startsWith("aimass_lab.") ? `import aimass_lab\n${line}` : line)).join("\n");
    if (insertCell(this.model, this.root, source)) this.say("inserted below");
    else this.copy();
  }

  say(text) {
    this.said.textContent = text;
    clearTimeout(this.saying);
    this.saying = setTimeout(() => { this.said.textContent = ""; }, 2500);
  }

  /** Every view that has something to show, one below the other, as it would look now. */
  picture() {
    const page = h("div", { class: "aw" }, h("div", { class: "aw-head" }, this.title.cloneNode(true)));
    for (const view of VIEWS) {
      const ctx = this.context(view.name, true);
      if (!ctx.record(view.kinds[0]) && !view.kept?.(ctx)) continue;
      page.append(h("div", { class: "aw-body" }, h("h2", { class: "aw-picture-head" }, view.text), view.draw(ctx).node));
    }
    return pictureOf(page, this.model.get("_css"));
  }

  pictureLater() {
    clearTimeout(this.drawing);
    this.drawing = setTimeout(() => {
      if (this.held) this.pictureLater();
      else if (this.root.isConnected && Object.keys(this.model.get("records")).length) this.model.send({ kind: "picture", html: this.picture() });
    }, PICTURE_AFTER_MS);
  }

  end() {
    this.watch.disconnect();
    clearTimeout(this.drawing);
    clearTimeout(this.saying);
    this.forget();
    this.keep();
  }
}

export default {
  render({ model, el }) {
    const frame = new Frame(model);
    el.append(frame.root);
    return () => frame.end();
  },
};
