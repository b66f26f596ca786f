// Why a plan is not cheaper: what would cost less, and what fails.

import { figure, percent, quantity } from "./format.js";
import { h, section, table } from "./dom.js";
import { p99At } from "./loads.js";

/** What costs less, and why it does not do: one replica fewer, and every other way that was considered. */
export function whyNotCheaper(ctx, plan, loads, line) {
  const weigh = (o) => (plan.cost ? o.cost?.value : o.replicas.value);
  const [count, rate, target] = [plan.replicas.value, plan.target.requests_per_s.value * (1 + plan.target.headroom), plan.target.latency_p99.value];
  const rows = [];
  if (plan.feasible && count > 1) {
    const found = p99At(loads, rate / (count - 1));
    const fails = found ? `its p99 may be as high as ${Number.isFinite(found.high) ? quantity(found.high, "s") : "one likes"}, and ${quantity(target, "s")} are asked` : `it is unstable from ${quantity((count - 1) * loads.limit, "request/s")} on`;
    rows.push([plan.device, `${count - 1}, one fewer`, `≤ ${plan.max_batch_size.value}`, plan.cost ? quantity((plan.cost.value * (count - 1)) / count, "USD/h") : null, found ? quantity(found.y, "s") : "grows", fails]);
  }
  const cheaper = new Map();
  for (const o of plan.options) {
    if (o.reason === "the answer" || weigh(o) >= weigh(plan) - 1e-9) continue;
    const alike = `${o.device} ${o.replicas.value} ${o.reason}`;
    cheaper.set(alike, [...(cheaper.get(alike) ?? []), o]);
  }
  rows.push(...[...cheaper.values()].slice(0, 6).map((alike) => {
    const [o] = alike;
    const sizes = [...new Set(alike.map((one) => one.max_batch_size.value))].sort((a, b) => a - b);
    return [o.device, o.replicas.value, `≤ ${sizes.length > 2 ? `${sizes[0]} … ${sizes.at(-1)}` : sizes.join(", ")}`, o.cost ? figure(o.cost) : null, o.latency_p99 ? figure(o.latency_p99) : "–", o.reason];
  }));
  const columns = ["device", "replicas", "batch", ...(plan.cost ? ["cost"] : []), "p99", "why it will not do"];
  const kept = (row) => row.filter((cell) => cell !== null);
  const what = !plan.feasible ? "Nothing that was considered will do" : rows.length ? null : "Nothing that was considered is cheaper";
  const all = plan.options.map((o) => [o.device, o.replicas.value, `≤ ${o.max_batch_size.value}`, figure(o.max_wait), o.latency_p99 ? figure(o.latency_p99) : "–", o.utilization ? percent(o.utilization.value) : "–", ...(plan.cost ? [o.cost ? figure(o.cost) : "–"] : []), o.reason]);
  return section("Why not cheaper?", ctx.codeButton(() => (ctx.recordLine("plan") ? `${ctx.recordLine("plan")}.options` : line())),
    h("p", { class: "aw-hint" }, `${what ?? "This costs less and will not do"} (${quantity(plan.target.requests_per_s.value, "request/s")} within ${quantity(target, "s")}, the newest plan)`),
    rows.length && plan.feasible ? table("what is cheaper, and why it will not do", columns, rows.map(kept)) : null,
    h("details", { class: "aw-notes" }, h("summary", {}, `All that was considered (${all.length})`), table("all that was considered", ["device", "replicas", "batch", "held back", "p99", "busy", ...(plan.cost ? ["cost"] : []), "remark"], all)));
}
