// The profile: where the time of a call goes, by module, operator and kernel; its memory; and what limits each module.

import { figure, interval, percent, provenance, quantity, sourceWord } from "./format.js";
import { choice, empty, fill, h, number, pick, roving, section } from "./dom.js";
import { axes, linear, logarithmic, powers, squarify, steps, ticks } from "./plot.js";

const PLOT = { width: 440, height: 250, margin: { left: 74, right: 16, top: 26, bottom: 38 } };
const AREAS = { width: 480, height: 300 };
const label = (name, model) => name || `${model} (whole)`;
const shortName = (name) => name.split(".").pop();
const LONG = 30;
const tail = (name) => (name.length > LONG ? `…${name.slice(1 - LONG)}` : name); // the end of a module's name is what tells it apart

/** Modules with their nearest measured ancestor, in the order of the model's own names. */
function treeOf(profile) {
  const byName = new Map(profile.modules.map((m) => [m.name, { ...m, children: [], own: m.self_time.value }]));
  if (!byName.has("")) byName.set("", { name: "", type: profile.model.type.split(".").pop(), children: [], own: 0, calls: 1 });
  const parentOf = (name) => {
    for (let at = name; at; ) {
      at = at.includes(".") ? at.slice(0, at.lastIndexOf(".")) : "";
      if (byName.has(at)) return byName.get(at);
    }
    return null;
  };
  const names = [...byName.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  for (const name of names) if (name) parentOf(name).children.push(byName.get(name));
  const visit = (node, depth) => {
    node.depth = depth;
    for (const child of node.children) visit(child, depth + 1);
  };
  visit(byName.get(""), 0);
  return byName;
}

/** `get(node)` of a module without its submodules, added up over the subtree. */
function weigh(node, get) {
  node.value = get(node) + node.children.reduce((sum, child) => sum + weigh(child, get), 0);
  return node.value;
}

export const profileView = {
  name: "profile",
  text: "Profile",
  kinds: ["profile", "demand", "model_summary"],
  facts: [],
  draw: drawProfile,
  line: (ctx) => (ctx.selection() === null ? ctx.line("profile") : ctx.moduleLine()),
};

function drawProfile(ctx) {
  const { ui } = ctx;
  Object.assign(ui, { sort: "tree", search: "", shape: "treemap", weight: "time", ...ui });
  const profile = ctx.record("profile");
  if (!profile) return noProfile(ctx);
  const demand = ctx.record("demand");
  const fitting = demand && demand.batch_size === profile.batch_size ? demand : null;
  const tree = treeOf(profile);
  const parts = [moduleTable(ctx, profile, tree), areas(ctx, profile, tree, fitting), detail(ctx, profile, tree, fitting), operators(ctx, profile), timeline(ctx, profile), roofline(ctx, profile, tree, fitting)];
  const mark = () => parts.forEach((part) => part.mark?.());
  const node = h("div", { class: "aw-view" }, headline(ctx, profile), h("div", { class: "aw-columns" }, parts.map((part) => part.node)), advice(ctx, profile));
  mark();
  return { node, mark };
}

const fact = (name, value) => h("div", { class: "aw-fact" }, h("span", { class: "aw-fact-name" }, name), value);

function noProfile(ctx) {
  const summary = ctx.record("model_summary");
  if (summary) return { node: h("div", { class: "aw-view" }, firstLook(summary)) };
  const line = ctx.line("profile");
  return { node: h("div", { class: "aw-view" }, empty("Nothing is measured yet. A profile runs the model for about four seconds, beside the notebook, and leaves it as it was.", "Measure", () => ctx.run([line]))) };
}

/** What is known of a model while it is measured for the first time. */
function firstLook(summary) {
  const { model } = summary;
  return h("div", {},
    h("p", { class: "aw-lead" }, `${model.type.split(".").pop()} on ${summary.device}, mostly ${model.dtype}: it is being measured. What stands here needed no run.`),
    h("div", { class: "aw-facts" },
      fact("parameters", number(summary.num_parameters)), fact("weights", number(summary.weight_bytes)),
      summary.flops ? fact(`FLOPs of a call, batch ${summary.batch_size}`, number(summary.flops)) : null, summary.activation_peak_bytes ? fact("activations", number(summary.activation_peak_bytes)) : null));
}

function headline(ctx, profile) {
  return h("div", {},
    h("p", { class: "aw-lead" }, profile.binds),
    h("div", { class: "aw-facts" },
      fact(`latency p50, batch ${profile.batch_size}`, number(profile.latency_p50)), fact("latency p99", number(profile.latency_p99)), fact("throughput", number(profile.throughput)),
      fact("peak memory of a call", number(profile.peak_memory_bytes)), fact("of it, weights", number(profile.weight_bytes)), fact("in no submodule", number(profile.host_residual))));
}

/** A row of a table that stands for a module: a click or Enter selects it. */
const picker = (ctx, name, text) => pick(text, { "data-module": name, onclick: () => ctx.select(name), ...(text === tail(name) && text !== name ? { title: name } : {}) });

function markRows(ctx, node) {
  for (const row of node.querySelectorAll("[data-row]")) {
    const on = row.dataset.row === ctx.selection();
    row.classList.toggle("aw-selected", on);
    row.querySelector(".aw-pick")?.setAttribute("aria-current", String(on));
  }
}

function moduleTable(ctx, profile, tree) {
  const { ui } = ctx;
  const body = h("tbody");
  const columns = [["tree", "module"], ["type", "type"], ["calls", "calls"], ["own", "own time, share"], ["total", "total"]];
  const order = { type: (a, b) => a.type.localeCompare(b.type), calls: (a, b) => b.calls - a.calls, own: (a, b) => b.own - a.own, total: (a, b) => (b.total_time?.value ?? 0) - (a.total_time?.value ?? 0) };
  const whole = profile.modules.reduce((sum, m) => sum + m.self_time.value, 0) || 1;
  const most = Math.max(...profile.modules.map((m) => m.self_time.value));
  const row = (m) => h("tr", { "data-row": m.name },
    h("th", { scope: "row", style: `padding-left:${0.4 + (ui.sort === "tree" ? 0.9 * m.depth : 0)}rem` }, picker(ctx, m.name, ui.sort === "tree" && m.name ? shortName(m.name) : label(m.name, profile.model.name))),
    h("td", {}, m.type), h("td", { class: "aw-num" }, m.calls),
    h("td", { class: "aw-num aw-bar-cell", title: m.self_time ? provenance(m.self_time) : null }, h("span", { class: "aw-bar", style: `width:${((m.own / most) * 100).toFixed(1)}%` }), h("span", {}, `${figure(m.self_time)} · ${percent(m.own / whole)}`)),
    h("td", { class: "aw-num", title: m.total_time ? provenance(m.total_time) : null }, m.total_time ? figure(m.total_time) : "–"));
  const flat = (node) => [node, ...node.children.flatMap(flat)];
  const list = () => {
    const wanted = ui.search.toLowerCase();
    const rows = flat(tree.get("")).filter((m) => m.total_time && `${m.name} ${m.type}`.toLowerCase().includes(wanted));
    if (ui.sort !== "tree") rows.sort(order[ui.sort]);
    body.replaceChildren(...rows.map(row));
    if (!rows.length) body.append(h("tr", {}, h("td", { colspan: 5 }, `no module has “${ui.search}” in its name or type`)));
    for (const head of node.querySelectorAll("th[data-sort]")) head.setAttribute("aria-sort", head.dataset.sort === ui.sort ? (ui.sort === "tree" || ui.sort === "type" ? "ascending" : "descending") : "none");
    markRows(ctx, body);
    settle();
  };
  const sortBy = (name) => { ui.sort = name; list(); };
  const search = h("input", { type: "search", class: "aw-input", placeholder: "search", "aria-label": "search modules by name or type", "data-live": true, value: ui.search, oninput: (event) => { ui.search = event.target.value; list(); } });
  const head = h("tr", {}, columns.map(([name, text]) => h("th", { scope: "col", class: name === "tree" || name === "type" ? null : "aw-num", "data-sort": name, title: name === "total" ? "with submodules" : null }, h("button", { type: "button", class: "aw-sort", onclick: () => sortBy(name) }, text))));
  const scroller = h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "time by module" }, h("table", { class: "aw-table" }, h("thead", {}, head), body));
  const node = section("Time by module", [search, ctx.codeButton(() => ctx.line("profile"))], scroller);
  const settle = roving(body);
  list();
  return { node, mark: () => { markRows(ctx, body); settle(); } };
}

function areas(ctx, profile, tree, demand) {
  const { ui } = ctx;
  const holder = h("div");
  const params = new Map((demand?.modules ?? []).map((m) => [m.name, m.num_parameters]));
  const ownParams = (node) => Math.max(0, (params.get(node.name) ?? 0) - node.children.reduce((sum, child) => sum + (params.get(child.name) ?? 0), 0));
  const bytesEach = profile.model.num_parameters ? profile.weight_bytes.value / profile.model.num_parameters : 0;
  const draw = () => {
    const weights = ui.weight === "memory" && demand;
    const root = tree.get("");
    weigh(root, weights ? (node) => ownParams(node) * bytesEach : (node) => node.own);
    const unit = weights ? "B" : "s";
    const { width, height } = ctx.fit(AREAS);
    const box = { x: 0, y: 0, w: width, h: height };
    const cells = ui.shape === "treemap" ? nest(root, box) : layers(root, box);
    const most = Math.max(...cells.map((cell) => cell.own), 1e-30);
    const drawn = cells.map((cell) => h("g", { class: "aw-cell", "data-row": cell.name, onclick: () => ctx.select(cell.name) },
      h("rect", { x: cell.x + 0.75, y: cell.y + 0.75, width: Math.max(0, cell.w - 1.5), height: Math.max(0, cell.h - 1.5), style: `fill-opacity:${(0.08 + 0.42 * (cell.own / most)).toFixed(3)}` }),
      h("title", {}, `${label(cell.name, profile.model.name)}: ${quantity(cell.value, unit)} with submodules`),
      ...caption(cell, profile.model.name, unit)));
    const what = weights ? "weights by module" : "time by module";
    const svg = h("svg", { class: "aw-plot aw-cells", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${what}, as ${ui.shape}; the table has the same figures` }, drawn);
    const controls = h("div", { class: "aw-row" }, choice("what the areas show", [["time", "time"], ["memory", "weights"]], ui.weight, (value) => { ui.weight = value; draw(); }), choice("how", [["treemap", "treemap"], ["icicle", "icicle"]], ui.shape, (value) => { ui.shape = value; draw(); }));
    const missing = ui.weight === "memory" && !demand ? empty("Weights by module come from one pass over shapes; nothing is run.", "Estimate", () => ctx.run([demandLine(ctx, profile)])) : svg;
    holder.replaceChildren(controls, missing);
    markRows(ctx, holder);
  };
  draw();
  return { node: section("Shares", ctx.codeButton(() => ctx.chartLine("profile")), holder), mark: () => markRows(ctx, holder) };
}

const demandLine = (ctx, profile) => ctx.line("demand", profile.batch_size === ctx.subject().batch ? {} : { batch: profile.batch_size });

function caption(cell, model, unit) {
  const room = Math.floor((cell.w - 10) / 6.2);
  const text = cell.name ? shortName(cell.name) : model;
  if (room < 2 || cell.h < 16 || (text.length > room && room < 5)) return [];
  const cut = text.length > room ? `${text.slice(0, room - 1)}…` : text;
  const lines = [h("text", { x: cell.x + 6, y: cell.y + 14 }, cut)];
  const value = quantity(cell.value, unit);
  if (cell.leaf && cell.h > 32 && value.length <= room) lines.push(h("text", { class: "aw-small", x: cell.x + 6, y: cell.y + 27 }, value));
  return lines;
}

function nest(node, box, out = []) {
  const leaf = node.children.length === 0;
  const own = node.value - node.children.reduce((sum, child) => sum + child.value, 0);
  out.push({ name: node.name, value: node.value, own: leaf ? node.value : 0, leaf, ...box });
  if (leaf || box.w < 12 || box.h < 12) return out;
  const top = box.h > 40 && box.w > 30 ? 18 : 2;
  const inner = { x: box.x + 2, y: box.y + top, w: box.w - 4, h: box.h - top - 2 };
  const items = [...node.children.map((child) => ({ value: child.value, child })), { value: own, child: null }].sort((a, b) => b.value - a.value);
  for (const { item, ...place } of squarify(items, inner)) if (item.child) nest(item.child, place, out);
  return out;
}

function layers(root, box) {
  const depth = (node) => 1 + Math.max(0, ...node.children.map(depth));
  const tall = Math.min(44, box.h / depth(root));
  const out = [];
  const visit = (node, x, level) => {
    const w = (node.value / (root.value || 1)) * box.w;
    const own = node.value - node.children.reduce((sum, child) => sum + child.value, 0);
    if (w < 0.5) return;
    out.push({ name: node.name, value: node.value, own, leaf: node.children.length === 0, x, y: level * tall, w, h: tall });
    let at = x;
    for (const child of node.children) {
      visit(child, at, level + 1);
      at += (child.value / (root.value || 1)) * box.w;
    }
  };
  visit(root, box.x, 0);
  return out;
}

function detail(ctx, profile, tree, demand) {
  const holder = h("div", { "aria-live": "polite" });
  const mark = () => {
    const name = ctx.selection();
    const m = name === null ? null : tree.get(name);
    if (!m) {
      fill(holder, h("p", { class: "aw-hint" }, "Choose a module in the table, the areas or the roofline: its operators, lines and limits appear here, and every view marks it."));
      return;
    }
    const asked = demand?.modules.find((d) => d.name === name);
    const inside = (place) => place === name || name === "" || place.startsWith(`${name}.`);
    const facts = [["type", m.type], ["input", m.input_shape?.length ? m.input_shape.join(" × ") : null], ["own time", m.self_time], ["with submodules", m.total_time], ["calls", m.calls], ["FLOPs", asked?.flops], ["bytes moved", asked?.bytes_moved], ["FLOPs per byte", asked?.arithmetic_intensity], ["limited by", asked?.bound], ["live at most", asked?.live_bytes]];
    const rows = facts.filter(([, value]) => value !== null && value !== undefined).map(([text, value]) => h("div", { class: "aw-pair" }, h("dt", {}, text), h("dd", {}, typeof value === "object" ? number(value) : String(value))));
    const own = profile.operators.filter((o) => inside(o.module)).slice(0, 6);
    const sources = [...new Set(own.map((o) => o.source).filter(Boolean))];
    const held = (profile.timeline?.alive ?? []).filter((tensor) => inside(tensor.module)).reduce((sum, tensor) => sum + tensor.bytes.value, 0);
    fill(holder, h("h4", {}, label(name, profile.model.name)), h("dl", { class: "aw-pairs" }, rows),
      own.length ? h("p", {}, "Operators mostly here: ", own.map((o) => `${o.name.replace("aten::", "")} ${figure(o.device_time || o.self_time)}`).join(", "), ".") : null,
      sources.length ? h("p", {}, "Lines: ", sources.map((source) => h("code", {}, source)), ".") : null,
      held ? h("p", {}, `Of the memory at the highest moment, ${quantity(held, "B")} were asked for here.`) : null,
      asked ? null : h("p", { class: "aw-hint" }, "FLOPs, bytes and limits: press Estimate beside the roofline."));
  };
  mark();
  return { node: section("Chosen module", ctx.codeButton(() => ctx.moduleLine()), holder), mark };
}

function operators(ctx, profile) {
  const body = h("tbody");
  const gpu = profile.kernels.length > 0;
  const node = section("Operators and kernels", ctx.codeButton(() => ctx.line("profile")));
  const time = (o) => o.device_time || o.self_time;
  const row = (what, o, t) => h("tr", { "data-in": o.module }, h("th", { scope: "row", title: o.name }, (o.name.length > 34 ? `${o.name.slice(0, 33)}…` : o.name).replace("aten::", "")), h("td", { class: "aw-num", title: provenance(t) }, figure(t)), h("td", { class: "aw-num" }, percent(o.share.value)), h("td", {}, o.module ? picker(ctx, o.module, tail(o.module)) : "–"), h("td", { class: "aw-num" }, o.calls), h("td", {}, what));
  const rows = [...profile.operators.map((o) => row(o.family, o, time(o))), ...profile.kernels.map((k) => row("GPU kernel", k, k.device_time))];
  fill(body, rows.length ? rows : h("tr", {}, h("td", { colspan: 6 }, "no operator was recorded")));
  const mark = () => {
    const name = ctx.selection();
    for (const one of body.querySelectorAll("[data-in]")) one.classList.toggle("aw-selected", Boolean(name) && (one.dataset.in === name || one.dataset.in.startsWith(`${name}.`)));
  };
  const columns = [["name"], [gpu ? "GPU time" : "own time", "aw-num"], ["share", "aw-num"], ["mostly in"], ["calls", "aw-num"], ["kind"]];
  node.append(h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "operators and kernels" }, h("table", { class: "aw-table" }, h("thead", {}, h("tr", {}, columns.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))), body)));
  roving(body);
  mark();
  return { node, mark };
}

function timeline(ctx, profile) {
  const t = profile.timeline;
  const node = section("Memory over one call", ctx.codeButton(() => ctx.chartLine("profile")));
  if (!t) {
    node.append(h("p", { class: "aw-hint" }, "The allocator could not be followed: another profiler was running, or the model is compiled."));
    return { node };
  }
  const { width, height, margin } = ctx.fit(PLOT);
  const end = t.times_s.at(-1) || 1e-9;
  const high = Math.max(...t.held_bytes) * 1.08 || 1;
  const x = linear(0, end, margin.left, width - margin.right);
  const y = linear(0, high, height - margin.bottom, margin.top);
  const places = ticks(high, 4, 2);
  const peak = [x(t.peak_at.value), y(t.peak.value)];
  const right = peak[0] < width * 0.55;
  const where = t.module ? `${t.operator.replace("aten::", "")} in ${t.module}` : t.operator || "no operator";
  const svg = h("svg", { class: "aw-plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `memory over one call: at most ${figure(t.peak)}, ${figure(t.peak_at)} after it began, at ${where}` },
    axes({ width, height, margin, x, y, xTicks: ticks(end, 4).map((v) => [v, v ? quantity(v, "s").replace(/\.0+ /, " ") : "0"]), yTicks: places.map((v) => [v, v ? quantity(v, "B").replace(/\.0+ /, " ") : "0"]), xLabel: "time since the call began, profiler on", yLabel: "held beyond what was held before" }),
    h("g", { class: "aw-series" }, steps(t.times_s.map((at, i) => [at, t.held_bytes[i]]), x, y, y(0))),
    h("circle", { class: "aw-peak", cx: peak[0], cy: peak[1], r: 4.5 }),
    h("text", { x: peak[0] + (right ? 9 : -9), y: peak[1] + 4, "text-anchor": right ? "start" : "end", class: "aw-strong" }, `peak ${figure(t.peak)}`));
  const rows = t.alive.slice(0, 5).map((tensor) => h("tr", { "data-row": tensor.module }, h("td", { class: "aw-num" }, figure(tensor.bytes)), h("td", {}, tensor.operator.replace("aten::", "") || "outside operators"), h("td", {}, tensor.module ? picker(ctx, tensor.module, tail(tensor.module)) : "–")));
  node.append(svg, h("p", { class: "aw-hint" }, `The highest moment is at ${where}. The largest blocks then:`), h("div", { class: "aw-scroll", tabindex: 0, role: "region", "aria-label": "largest blocks at the peak" }, h("table", { class: "aw-table" }, h("tbody", {}, rows))));
  roving(node);
  return { node, mark: () => markRows(ctx, node) };
}

function roofline(ctx, profile, tree, demand) {
  const node = section("Roofline", ctx.codeButton(() => demandLine(ctx, profile)));
  if (!demand) {
    node.append(empty(`FLOPs and bytes of every module at batch ${profile.batch_size} come from one pass over shapes; nothing is run.`, "Estimate", () => ctx.run([demandLine(ctx, profile)])));
    return { node };
  }
  const points = demand.modules.flatMap((d) => {
    const m = tree.get(d.name);
    return m && m.children.length === 0 && m.total_time?.value > 0 && d.flops.value > 0 && d.bytes_moved.value > 0 ? [{ name: d.name, x: d.flops.value / d.bytes_moved.value, y: d.flops.value / m.total_time.value, bound: d.bound }] : [];
  });
  if (!points.length) {
    node.append(h("p", { class: "aw-hint" }, "No module of this model counts FLOPs: there is nothing to hold against a roof."));
    return { node };
  }
  const { width, height, margin } = ctx.fit(PLOT);
  const [compute, memory] = [demand.roof_flops_per_s, demand.roof_bytes_per_s];
  const ridge = compute && memory ? compute.value / memory.value : null;
  const xs = [...points.map((p) => p.x), ...(ridge ? [ridge] : [])];
  const ys = [...points.map((p) => p.y), ...(compute ? [compute.value] : [])];
  const [x0, x1, y0, y1] = [Math.min(...xs) / 2, Math.max(...xs) * 2.5, Math.min(...ys) / 2, Math.max(...ys) * 2];
  const x = logarithmic(x0, x1, margin.left, width - margin.right);
  const y = logarithmic(y0, y1, height - margin.bottom, margin.top);
  const start = ridge ? Math.max(x0, y0 / memory.value) : 0;
  const roof = ridge ? h("path", { class: "aw-roof", d: `M${x(start)} ${y(start * memory.value)}L${x(ridge)} ${y(compute.value)}L${x(x1)} ${y(compute.value)}` }) : null;
  const dots = points.map((p) => h("g", { class: "aw-cell", "data-row": p.name, onclick: () => ctx.select(p.name) }, h("circle", { class: `aw-dot aw-${p.bound || "unknown"}`, cx: x(p.x), cy: y(p.y), r: 5 }), h("title", {}, `${p.name}: ${quantity(p.y, "FLOP/s")} at ${quantity(p.x, "FLOP/B")}${p.bound ? `, limited by ${p.bound}` : ""}`)));
  node.append(h("svg", { class: "aw-plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "roofline: achieved FLOP/s of each module against its FLOPs per byte moved" },
    axes({ width, height, margin, x, y, xTicks: powers(x0, x1, x1 / x0 > 1e4 ? 10 : 2).map((v) => [v, v >= 1 ? v.toLocaleString("en-US") : `1/${Math.round(1 / v)}`]), yTicks: powers(y0, y1, 10, 5).map((v) => [v, quantity(v, "FLOP/s").replace(/\.0+ /, " ")]), xLabel: "FLOPs per byte moved", yLabel: "achieved" }), roof,
    dots),
    h("p", { class: "aw-hint" }, h("span", { class: "aw-key aw-compute" }), "compute ", h("span", { class: "aw-key aw-memory" }), "memory ", h("span", { class: "aw-key aw-launch" }), "starting the operators",
      compute ? `. Roof: ${figure(compute)}${memory ? ` and ${figure(memory)}` : ""} (${sourceWord(compute)} on ${demand.device}). ` : ". The device's rates are unknown, so there is no roof. ", "FLOPs and bytes by shapes, times measured with hooks."));
  return { node, mark: () => markRows(ctx, node) };
}

function advice(ctx, profile) {
  if (!profile.advice.length) return null;
  const items = profile.advice.map((a) => h("li", {}, h("div", {}, a.text, a.gain ? [". Predicted: ", h("b", {}, `${a.gain.value.toFixed(2)} × as fast`), ` ${interval(a.gain)}`] : []), h("div", { class: "aw-row" }, h("code", {}, a.code), ctx.codeButton(() => a.code))));
  return section("Next steps", null, h("ul", { class: "aw-advice" }, items));
}
