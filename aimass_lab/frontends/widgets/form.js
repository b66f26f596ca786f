// Forms made from what the kernel says of a technique or an exporter: its fields with their kinds, defaults, bounds and help.

import { h } from "./dom.js";

const SHOWN_AT_ONCE = 6;
const OWN = `aw${Math.random().toString(36).slice(2, 8)}`; // ids must differ between the panels of a page
let number = 0;

/** As a recipe's text has it. */
const word = (value) => (value === null ? "none" : String(value));

/** A technique or an exporter with what was chosen of it: `low_rank(ratio=0.5)`. */
export const stepText = ({ technique, options }) => {
  const given = Object.entries(options).map(([name, value]) => `${name}=${word(value)}`);
  return technique + (given.length ? `(${given.join(",")})` : "");
};

export const recipeText = (steps) => steps.map(stepText).join(" + ") || "none";

/** A visible name, a control, and under it what it does. */
export function field(text, control, help, more = null) {
  number += 1;
  control.id = `${OWN}-${number}`;
  if (help) control.setAttribute("aria-describedby", `${control.id}-help`);
  return h("div", { class: "aw-option" }, h("label", { for: control.id }, text), h("span", { class: "aw-row" }, control, more ? h("span", { class: "aw-hint" }, more) : null), help ? h("p", { class: "aw-hint", id: `${control.id}-help` }, help) : null);
}

export const choose = (label, values, chosen, change) =>
  h("select", { class: "aw-input", "aria-label": label, onchange: (event) => change(event.target.value) }, values.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));

/** The control of one option; `set(value)` is told undefined where the default is meant again. */
function control(option, owner, value, set) {
  const label = `${option.name} of ${owner}`;
  const shown = value === undefined ? option.default : value;
  const take = (read) => (read === option.default ? set(undefined) : set(read));
  if (option.kind === "bool" && !option.optional) return h("input", { type: "checkbox", "aria-label": label, checked: shown === true, onchange: (event) => take(event.target.checked) });
  if (option.kind === "bool" || option.kind === "choice") {
    const values = [...(option.optional ? [null] : []), ...(option.kind === "bool" ? [true, false] : option.choices)];
    return choose(label, values.map((one) => [word(one), word(one)]), word(shown), (text) => take(values.find((one) => word(one) === text)));
  }
  const { gt, ge, lt, le } = option.bounds;
  const numeric = option.kind === "int" || option.kind === "float";
  return h("input", {
    type: numeric ? "number" : "text", step: option.kind === "int" ? 1 : "any", min: ge ?? gt ?? null, max: le ?? lt ?? null, class: numeric ? "aw-input aw-short" : "aw-input",
    "aria-label": label, placeholder: word(option.default), value: value === undefined ? "" : word(value), oninput: (event) => set(event.target.value.trim() === "" ? undefined : event.target.value.trim()),
  });
}

/** All options of a step; `changed()` is called after each change of `step.options`. */
export function optionFields(technique, step, changed) {
  const set = (option) => (value) => {
    if (value === undefined) delete step.options[option.name];
    else step.options[option.name] = value;
    changed();
  };
  const fields = technique.options.map((option) => field(option.name, control(option, technique.name, step.options[option.name], set(option)), option.text, option.within));
  const given = technique.options.slice(SHOWN_AT_ONCE).some((option) => option.name in step.options);
  return [
    h("div", { class: "aw-options" }, fields.slice(0, SHOWN_AT_ONCE)),
    fields.length > SHOWN_AT_ONCE ? h("details", { class: "aw-notes", open: given }, h("summary", {}, fields.length === SHOWN_AT_ONCE + 1 ? "1 further option" : `${fields.length - SHOWN_AT_ONCE} further options`), h("div", { class: "aw-options" }, fields.slice(SHOWN_AT_ONCE))) : null,
  ];
}
