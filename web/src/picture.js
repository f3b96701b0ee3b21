// The picture of a plan: a bar for each pool, to scale, and its parts in words below, by pointer and by keyboard.
import { h } from "./dom.js";
import { count, formatBytes } from "./units.js";

export const KINDS = ["weights", "cache", "compute", "runtime", "transient", "reserve"];
const TOLD = {
  weights: "weights of the model",
  cache: "KV cache and recurrent state",
  compute: "buffers of the compute graph and outputs",
  runtime: "driver context and libraries",
  transient: "what appears after the start",
  reserve: "the margin, left free",
};
const word = (kind) => (kind === "reserve" ? "margin" : kind);

/** A figure for each pool. @param {import("./plan").Plan} plan */
export function picture(plan) {
  return folded(plan.pools).map(([name, pool]) => drawn(name, pool));
}

/** Pools with what to call them: neighbors that are alike as one, by the fullest of them. */
function folded(/** @type {import("./plan").Pool[]} */ pools) {
  const rows = [];
  for (let at = 0; at < pools.length;) {
    let end = at + 1;
    while (end < pools.length && alike(pools[end], pools[at])) end += 1;
    const same = pools.slice(at, end);
    const fullest = same.reduce((a, b) => (b.used_bytes > a.used_bytes ? b : a));
    const ids = same.length > 2 ? `${same[0].id} to ${same.at(-1).id}` : same.map((pool) => pool.id).join(", ");
    rows.push([same.length > 1 ? `${ids} · ${same.length} × ${fullest.name}` : `${fullest.id} · ${fullest.name}`, fullest]);
    at = end;
  }
  return rows;
}

function alike(one, other) {
  const [more, less] = [Math.max(one.used_bytes, other.used_bytes), Math.min(one.used_bytes, other.used_bytes)];
  return one.name === other.name && one.free_bytes === other.free_bytes && (more - less) * 100 <= more
    && !one.limits.length && !other.limits.length;
}

/** @param {string} name @param {import("./plan").Pool} pool */
function drawn(name, pool) {
  const parts = KINDS.map((kind) => [kind, pool[`${kind}_bytes`]]).filter(([, bytes]) => bytes > 0);
  const sum = parts.reduce((total, [, bytes]) => total + bytes, 0);
  const free = pool.free_bytes;
  const whole = Math.max(free ?? 0, sum, 1);
  const lacks = free !== null && sum > free;
  const detail = h("p", { className: "part-detail" });
  const tell = (kind) => {
    detail.replaceChildren(...(kind ? told(pool, kind) : summed(pool)));
    figure.querySelectorAll("[data-kind]").forEach((part) => part.classList.toggle("lit", part.dataset.kind === kind));
  };
  let x = 0;
  const rects = parts.map(([kind, bytes]) => {
    const rect = h("rect", { x: `${(100 * x) / whole}%`, y: "0", width: `${Math.max((100 * bytes) / whole, 0.25)}%`, height: "100%", class: `part ${kind}`, "data-kind": kind, onpointerenter: () => tell(kind), onpointerleave: () => tell(null), onclick: () => tell(kind) });
    x += bytes;
    return rect;
  });
  const edge = lacks ? [h("line", { x1: `${(100 * free) / whole}%`, x2: `${(100 * free) / whole}%`, y1: "0", y2: "100%", class: "edge" })] : [];
  const legend = parts.map(([kind, bytes]) => h("li", {},
    h("button", { type: "button", className: "part-name", onfocus: () => tell(kind), onblur: () => tell(null), onpointerenter: () => tell(kind), onpointerleave: () => tell(null), title: TOLD[kind], onclick: () => tell(kind) },
      h("span", { className: `swatch ${kind}`, "aria-hidden": "true" }), `${word(kind)} `, h("b", {}, formatBytes(bytes)))));
  legend.forEach((item, i) => { item.firstChild.dataset.kind = parts[i][0]; });
  const figure = h("figure", { className: lacks || shortfall(pool) > 0 ? "pool short" : "pool" },
    h("figcaption", {}, h("span", { className: "pool-name" }, name), h("span", { className: "pool-room" }, room(pool))),
    h("svg", { class: "bar", "aria-hidden": "true", focusable: "false" }, rects, overlay(parts, whole), edge),
    h("ul", { className: "legend" }, legend),
    detail);
  tell(null);
  return figure;
}

/** Hatching over what is no plain color (its patterns are in `index.html`), so that parts differ without colors too. */
function overlay(parts, whole) {
  let x = 0;
  const drawnOver = [];
  for (const [kind, bytes] of parts) {
    if (["cache", "transient", "reserve", "runtime"].includes(kind)) {
      drawnOver.push(h("rect", { x: `${(100 * x) / whole}%`, y: "0", width: `${(100 * bytes) / whole}%`, height: "100%", class: "hatch", fill: `url(#hatch-${kind})` }));
    }
    x += bytes;
  }
  return drawnOver;
}

/** What is missing; negative: what is left. @type {(pool: import("./plan").Pool) => number} */
const shortfall = (pool) => {
  const rooms = pool.limits.map((limit) => limit.limit_bytes - limit.used_bytes);
  if (pool.budget_bytes !== null) rooms.push(pool.budget_bytes - pool.used_bytes);
  return rooms.length ? -Math.min(...rooms) : 0;
};

/** @param {import("./plan").Pool} pool */
export function room(pool) {
  if (pool.free_bytes === null) return `${formatBytes(pool.used_bytes)} used of an unknown amount`;
  const lack = shortfall(pool);
  const said = `${formatBytes(pool.used_bytes)} used of ${formatBytes(pool.free_bytes)} free`;
  return lack > 0 ? `${said}, ${formatBytes(lack)} missing` : said;
}

/** @param {import("./plan").Pool} pool */
function summed(pool) {
  const lack = shortfall(pool);
  const limits = pool.limits.map((limit) => ` · ${limit.id}: ${formatBytes(limit.used_bytes)} of the ${formatBytes(limit.limit_bytes)} that it may take`);
  if (pool.budget_bytes === null) return ["free memory is not known", ...limits];
  return [lack > 0 ? `${formatBytes(lack)} are missing` : `${formatBytes(-lack)} are left beside the margin`, ...limits];
}

/** @param {import("./plan").Pool} pool @param {string} kind */
function told(pool, kind) {
  const items = pool.items.filter((item) => item.kind === kind);
  const said = items.slice(0, 6).map((item) => `${item.label} ${formatBytes(item.bytes)} (${item.basis}${item.mapped ? ", file-backed" : ""}${item.when ? `, when ${item.when}` : ""})`);
  const more = items.length > 6 ? ` and ${items.length - 6} more` : "";
  return [h("b", {}, `${TOLD[kind]}: ${count(pool[`${kind}_bytes`])} bytes. `), said.join(" · ") + more];
}
