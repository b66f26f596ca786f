// What follows from a plan for another rate, target or number of replicas: one replica at its share of the rate stands for all of them.

import { at } from "./plot.js";

/** p99 of one replica by its rate, as {x, y, low, high} in requests per second and seconds, and the rate from which on its queue grows. */
export function loadsOf(plan) {
  const points = plan.by_load.flatMap(({ requests_per_s: rate, latency_p99: p99 }) => (p99 ? [{ x: rate.value, y: p99.value, low: p99.interval?.[0] ?? p99.value, high: p99.interval?.[1] ?? Infinity }] : []));
  return { points, limit: plan.throughput_limit.value / plan.replicas.value };
}

/** p99 of a replica at `rate`; null where its queue grows, or comes too near to that. */
export function p99At({ points }, rate) {
  if (!points.length) return null;
  return rate <= points[0].x ? { ...points[0], x: rate } : at(points, rate);
}

/** The highest rate of one replica at which the upper end of the band of p99 is within `target`; 0 where none is. */
export function carried({ points }, target) {
  let rate = 0;
  for (const [i, point] of points.entries()) {
    if (point.high <= target) rate = point.x;
    else if (i && points[i - 1].high <= target && Number.isFinite(point.high)) {
      const before = points[i - 1];
      const share = Math.log(target / before.high) / Math.log(point.high / before.high);
      rate = Math.max(rate, Math.exp(Math.log(before.x) * (1 - share) + Math.log(point.x) * share));
    }
  }
  return rate;
}

/** The fewest replicas that hold `rate` under `target`; Infinity where no number does. */
export function fewest(loads, rate, target) {
  const each = carried(loads, target);
  return each ? Math.max(1, Math.ceil(rate / each - 1e-9)) : Infinity;
}
