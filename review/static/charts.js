// Charts as SVG with classes for their colours; every number in them also stands in a table beside them.

import { count, el, number, percent, svg } from "./dom.js";

const W = 520;
const H = 180;
const LEFT = 46;
const BOTTOM = 34;
const TOP = 10;

/** Round marks from 0 to at least `high`. */
export function ticks(high, wanted = 4) {
  if (!(high > 0)) return [0, 1];
  const raw = high / wanted;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw);
  const whole = Math.max(step, Number.isInteger(high) ? 1 : step);
  return Array.from({ length: Math.ceil(high / whole - 1e-9) + 1 }, (_, at) => at * whole);
}

/** Bars over bins of equal width, whatever they span; `open(k)` is called for a bin that a person chooses. */
export function histogram(edges, counts, { label, highest = Math.max(...counts), open }) {
  const marks = ticks(highest);
  const top = marks.at(-1);
  const x = (at) => LEFT + (at / counts.length) * (W - LEFT - 12);
  const y = (value) => TOP + (1 - value / top) * (H - TOP - BOTTOM);
  const rules = marks.map((mark) => [
    svg("line", { class: "g", x1: LEFT, x2: W - 12, y1: y(mark), y2: y(mark) }),
    svg("text", { class: "t", x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, count(mark)),
  ]);
  const shown = new Set([0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(share * counts.length)));
  const below = [...shown].map((at) =>
    svg("text", { class: "t", x: x(at), y: H - BOTTOM + 18, "text-anchor": "middle" }, number(edges[at])),
  );
  const bars = counts.map((n, k) => bar(n, k, { edges, x, y, open, label }));
  const name = `${label}: ${count(counts.reduce((sum, n) => sum + n, 0))} samples in ${counts.length} bins`;
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": name },
    rules,
    below,
    bars,
  );
}

function bar(n, k, { edges, x, y, open, label }) {
  if (!n) return null;
  const [left, right] = [x(k), x(k + 1)];
  const told = `${label} from ${number(edges[k])} to ${number(edges[k + 1])}: ${count(n)}`;
  const marks = { class: "bin", role: "link", tabindex: "0", "aria-label": `${told}. Show them` };
  const press = (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(k);
    }
  };
  const width = Math.max(1, right - left - 1);
  const height = Math.max(2, y(0) - y(n));
  return svg(
    "g",
    { ...marks, onclick: () => open(k), onkeydown: press },
    svg("title", {}, told),
    svg("rect", { class: "hit", x: left, y: TOP, width, height: y(0) - TOP }),
    svg("rect", { class: "v", x: left, y: y(0) - height, width, height }),
  );
}

/** A rate with its interval on an axis from 0 to `high`, with the overall rate as a dashed line. */
export function forest(row, overall, high) {
  const w = 260;
  const x = (share) => 6 + Math.min(1, share / high) * (w - 12);
  const [low, up] = row.interval ?? [row.rate, row.rate];
  const told = `${percent(row.rate)}, 95 % interval ${percent(low)} to ${percent(up)}`;
  const kind = row.flagged ? " bad" : row.claim ? "" : " weak";
  return svg(
    "svg",
    { class: "forest", viewBox: `0 0 ${w} 22`, role: "img", "aria-label": told },
    svg("title", {}, told),
    svg("line", { class: "g", x1: x(0), x2: x(high), y1: 11, y2: 11 }),
    overall === null || overall === undefined
      ? null
      : svg("line", { class: "r", x1: x(overall), x2: x(overall), y1: 0, y2: 22 }),
    svg("line", { class: `c${kind}`, x1: x(low), x2: x(up), y1: 11, y2: 11 }),
    row.rate === null ? null : svg("circle", { class: `d${kind}`, cx: x(row.rate), cy: 11, r: 4 }),
  );
}

/** The axis of forest rows. */
export function forestAxis(high) {
  const w = 260;
  const marks = [0, high / 2, high];
  const x = (share) => 6 + (share / high) * (w - 12);
  const anchors = ["start", "middle", "end"];
  return svg(
    "svg",
    { class: "forest", viewBox: `0 0 ${w} 16`, "aria-hidden": "true" },
    marks.map((mark, at) =>
      svg("text", { class: "t", x: x(mark), y: 12, "text-anchor": anchors[at] }, percent(mark, high < 0.1 ? 1 : 0)),
    ),
  );
}

/** Parts of a whole beside each other: [[name, n, class], …]. */
export function stack(parts, total, label) {
  const w = 200;
  let at = 0;
  const told = parts
    .filter(([, n]) => n)
    .map(([name, n]) => `${name} ${count(n)}`)
    .join(", ");
  const bars = parts.map(([name, n, kind]) => {
    const width = total ? (n / total) * w : 0;
    const node = n
      ? svg(
          "rect",
          { class: kind, x: at, y: 2, width: Math.max(0.5, width), height: 12 },
          svg("title", {}, `${name}: ${count(n)}`),
        )
      : null;
    at += width;
    return node;
  });
  const marks = { class: "stack", viewBox: `0 0 ${w} 16`, preserveAspectRatio: "none", role: "img" };
  return svg("svg", { ...marks, "aria-label": `${label}: ${told || "none"}` }, bars);
}

/** The names of colours. */
export function legend(entries) {
  return el(
    "ul",
    { class: "legend" },
    entries.map(([name, kind]) =>
      el(
        "li",
        {},
        svg(
          "svg",
          { class: "swatch", viewBox: "0 0 14 14", "aria-hidden": "true" },
          svg("rect", { class: kind, width: 14, height: 14 }),
        ),
        name,
      ),
    ),
  );
}
