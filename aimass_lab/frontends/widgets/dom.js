// Elements in one call, and the few parts that every view is made of.

import { figure, interval, provenance, sourceWord } from "./format.js";

const LONG = 36; // of a cell's text, in characters: it may run over several lines
const SVG_TAGS = new Set("svg g path rect line circle text tspan title polyline clipPath defs".split(" "));

/** An element: attributes, `on...` listeners, children; null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return fill(node, ...children);
}

/** Give an element these children and no others; null ones are left out. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** Do what draws the inside of `node` anew, and leave the focus and what was scrolled to where they were. */
export function keeping(node, draw) {
  const name = (one) => one.getAttribute("aria-label") || one.textContent;
  const focus = node.contains(document.activeElement) ? name(document.activeElement) : null;
  const scrolled = new Map([...node.querySelectorAll(".aw-scroll")].map((one) => [one.getAttribute("aria-label"), one.scrollTop]));
  draw();
  for (const one of node.querySelectorAll(".aw-scroll")) one.scrollTop = scrolled.get(one.getAttribute("aria-label")) ?? 0;
  if (focus) [...node.querySelectorAll("button, input, select, summary, [tabindex]")].find((one) => name(one) === focus)?.focus({ preventScroll: true });
}

/** A number with its band and its source; where it comes from is told on hover and to screen readers. */
export const number = (value) =>
  value
    ? h("span", { class: "aw-number", title: provenance(value) }, h("b", {}, figure(value)), value.interval && value.interval[0] !== value.interval[1] ? h("span", { class: "aw-band" }, interval(value)) : null, h("span", { class: "aw-src" }, sourceWord(value)))
    : h("span", { class: "aw-number" }, "unknown");

/** A part of a view: its heading, the controls beside it, what it shows. */
export function section(title, controls, ...body) {
  const head = h("div", { class: "aw-section-head" }, h("h3", {}, title), h("div", { class: "aw-controls" }, controls));
  for (const button of head.querySelectorAll(".aw-code-button")) button.setAttribute("aria-label", `${button.title}: ${title}`); // or all were called the same
  return h("section", { class: "aw-section" }, head, ...body);
}

/** What names something in a table and is chosen by a click: long names are cut, and told in full on hover. */
export const pick = (text, attributes) => h("button", { type: "button", class: "aw-pick", title: text.length > LONG ? text : null, ...attributes }, text);

/**
 * Let one of the names in `holder` be in the tab order, and the arrow keys, Home and End go to the others: nobody should have to pass three hundred layers.
 *
 * Gives what is to be called when the names are others, or another one is chosen.
 */
export function roving(holder) {
  const picks = () => [...holder.querySelectorAll(".aw-pick:not(.aw-link)")];
  const settle = (one = picks().find((name) => name.getAttribute("aria-current") === "true")) => picks().forEach((name, i) => { name.tabIndex = (one ? name === one : i === 0) ? 0 : -1; });
  holder.addEventListener("focusin", ({ target }) => { if (picks().includes(target)) settle(target); });
  holder.addEventListener("keydown", (event) => {
    const all = picks();
    const at = all.indexOf(event.target);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    all[Math.min(all.length - 1, Math.max(0, next))].focus();
  });
  settle();
  return () => settle();
}

/** What stands where nothing is known yet: says what to do, and the button that does it. */
export const empty = (text, label, act) => h("div", { class: "aw-empty" }, h("p", {}, text), h("button", { type: "button", class: "aw-button aw-primary", onclick: act }, label));

/** A table that scrolls where it is too large; the first cell of a row names it, and numbers as text stand to the right. */
export const table = (label, columns, rows) => {
  const right = columns.map((_, i) => rows.some((row) => row[i] !== "–") && rows.every((row) => typeof row[i] === "number" || /^[−+]?[\d,.]+( \S+)?$|^–$/.test(row[i])));
  const cell = (value, i) => h(i ? "td" : "th", { scope: i ? null : "row", class: right[i] ? "aw-num" : typeof value === "string" && value.length > LONG ? "aw-long" : null }, value);
  return h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": label }, h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, columns.map((text, i) => h("th", { scope: "col", class: right[i] ? "aw-num" : null }, text)))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell))))));
};

/** Buttons of which one is pressed. */
export const choice = (label, options, chosen, choose) =>
  h("div", { class: "aw-choice", role: "group", "aria-label": label }, options.map(([value, text]) => h("button", { type: "button", class: "aw-button", "aria-pressed": String(value === chosen), onclick: () => choose(value) }, text)));
