// Memory and rate against the context: two small charts with one axis, and the same figures as a table.
import { h, table } from "./dom.js";
import { count, formatBytes, formatRate, shortTokens } from "./units.js";

const GIB = 2 ** 30;
const HEIGHT = 190;
const PAD = { left: 46, right: 14, top: 14, bottom: 26 };

/** Contexts to plan for: doubled up to what the model was trained for. */
export function contexts(trained) {
  const most = Math.min(trained || 32768, 1 << 20);
  const found = [];
  for (let tokens = 2048; tokens < most; tokens *= 2) found.push(tokens);
  return [...found, most].slice(-11);
}

export function curves(points, planned, width, open = false) {
  const wide = width >= 640 ? (width - 28) / 2 : width;
  const asked = points.toSorted((a, b) => a.context - b.context);
  return [
    chart({ title: "Memory", unit: "GiB", width: wide, points: asked, planned, series: memory(asked) }),
    chart({ title: "Decode, with the context full", unit: "tokens/s", width: wide, points: asked, planned, series: rate(asked) }),
    h("details", { className: "as-table", open }, h("summary", {}, "The same as a table"), h("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Figures of the curves" }, asTable(asked))),
  ];
}

const isHost = (pool) => pool.id === "host";
const sum = (pools, of) => pools.reduce((total, pool) => (pool[of] === null ? total : total + pool[of]), 0);

function memory(points) {
  const has = (test) => points.some((point) => point.pools.some(test));
  const series = [];
  for (const [name, test] of [["devices", (pool) => !isHost(pool)], ["RAM", isHost]]) {
    if (!has(test)) continue;
    const at = (of) => points.map((point) => (point.pools.length ? [point.context, sum(point.pools.filter(test), of) / GIB] : null));
    series.push({ name, line: at("used"), className: name === "RAM" ? "second" : "first" });
    if (name === "devices") series.push({ name: "free", line: at("free"), className: "limit" });
  }
  return series;
}

function rate(points) {
  const at = (i) => points.map((point) => (point.decode ? [point.context, point.decode[i]] : null));
  return [{ name: "decode", line: at(0), band: [at(1), at(2)], className: "first" }];
}

function chart({ title, unit, width, points, planned, series }) {
  const values = series.flatMap((one) => [one.line, ...(one.band ?? [])].flat()).filter(Boolean).map(([, y]) => y);
  const top = niceTop(Math.max(...values, 0));
  const [low, high] = [Math.log2(points[0]?.context ?? 2048), Math.log2(points.at(-1)?.context ?? 32768)];
  const x = (tokens) => PAD.left + ((Math.log2(tokens) - low) / Math.max(high - low, 1e-9)) * (width - PAD.left - PAD.right);
  const y = (value) => HEIGHT - PAD.bottom - (value / top) * (HEIGHT - PAD.top - PAD.bottom);
  const ticks = [0, top / 2, top].map((value) => h("g", {},
    h("line", { x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value), class: "grid" }),
    h("text", { x: PAD.left - 6, y: y(value) + 4, "text-anchor": "end", class: "tick" }, value >= 10 || value === 0 ? count(value) : value.toFixed(1))));
  const every = Math.ceil(points.length / Math.max(2, Math.floor((width - PAD.left) / 58)));
  const below = points.filter((_, i) => (points.length - 1 - i) % every === 0).map(({ context }) =>
    h("text", { x: x(context), y: HEIGHT - 8, "text-anchor": context === points.at(-1).context ? "end" : "middle", class: "tick" }, shortTokens(context)));
  const drawn = series.flatMap((one) => [
    one.band && h("path", { d: area(one.band, x, y), class: "band" }),
    h("path", { d: line(one.line, x, y), class: `curve ${one.className}` }),
    ...(one.className === "limit" ? [] : one.line.filter(Boolean).map(([tokens, value]) => h("circle", { cx: x(tokens), cy: y(value), r: 2.5, class: `dot ${one.className}` }))),
  ]);
  const missed = points.filter((point) => point.state === "no").map(({ context }) => h("text", { x: x(context), y: y(0) - 4, class: "missed", "text-anchor": "middle" }, "×"));
  const here = planned && Math.log2(planned) >= low && Math.log2(planned) <= high
    ? h("line", { x1: x(planned), x2: x(planned), y1: PAD.top, y2: HEIGHT - PAD.bottom, class: "here" }) : null;
  const names = series.length > 1 ? h("span", { className: "names" }, series.map((one) => h("span", { className: `name ${one.className}` }, one.name))) : null;
  return h("figure", { className: "chart" },
    h("figcaption", {}, `${title} `, h("span", { className: "quiet" }, unit), " ", names),
    h("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${title} in ${unit} at ${points.length} contexts; the table below has the figures` },
      ticks, below, here, drawn, missed));
}

function line(points, x, y) {
  let started = false;
  return points.map((point) => {
    if (!point) {
      started = false;
      return "";
    }
    const step = `${started ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`;
    started = true;
    return step;
  }).join("");
}

function area([low, high], x, y) {
  const there = low.map((point, i) => [point, high[i]]).filter(([a, b]) => a && b);
  if (there.length < 2) return "";
  const up = there.map(([, b]) => `${x(b[0]).toFixed(1)} ${y(b[1]).toFixed(1)}`);
  const down = there.toReversed().map(([a]) => `${x(a[0]).toFixed(1)} ${y(a[1]).toFixed(1)}`);
  return `M${[...up, ...down].join("L")}Z`;
}

function niceTop(value) {
  if (!(value > 0)) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((n) => n * step).find((n) => n >= value) ?? value;
}

const WORDS = { full: "full speed", ram: "in RAM", starts: "starts", no: "no" };

export function asTable(points) {
  const rows = points.toSorted((a, b) => a.context - b.context).map((point) => [
    count(point.context), WORDS[point.state],
    point.pools.length ? formatBytes(sum(point.pools.filter((pool) => !isHost(pool)), "used")) : "",
    point.pools.length ? formatBytes(sum(point.pools.filter(isHost), "used")) : "",
    point.decode ? `~${formatRate(point.decode[0])} (${formatRate(point.decode[1])}-${formatRate(point.decode[2])})` : "",
    point.prefill ? `~${formatRate(point.prefill)}` : "",
  ]);
  return table("Memory and rates at each context", ["context", "verdict", "devices", "RAM", "decode", "prefill"], rows, [0, 2, 3, 4, 5]);
}
