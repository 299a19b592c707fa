// Coverage: what the quotas asked for and what came of it; what is not known is always shown.

import { get } from "./api.js";
import { legend, stack } from "./charts.js";
import { count, el, empty, note, part, percent, table, words } from "./dom.js";
import { to } from "./route.js";

const WHO = [
  ["human", "p2"],
  ["model", "p0"],
  ["source", "p1"],
  ["unknown", "p4"],
];

/** The screen. */
export async function view(_params, signal) {
  const said = await get("/api/coverage", {}, signal);
  return el("div", {}, el("h1", {}, "Coverage"), quotas(said), values(said), provenance(said));
}

/** Class of the colour of a cell: how far below (h) or above (u) its target it is. */
export function shade(target, actual) {
  if (!target) return actual ? "u4" : "";
  const off = (actual - target) / target;
  const level = [0.02, 0.1, 0.25, 0.5].filter((step) => Math.abs(off) >= step).length;
  return level ? `${off < 0 ? "h" : "u"}${level}` : "";
}

function quotas({ cells, cells_left_out: more }) {
  if (!cells.length) return part("Quota cells", empty("The release names no quota cell: it was not balanced."));
  const groups = Map.groupBy ? Map.groupBy(cells, (cell) => cell.attribute) : grouped(cells);
  const tables = [...groups].map(([name, found]) => quotaTable(name, found));
  return part(
    "Quota cells: target and actual",
    el(
      "p",
      {},
      key("h4", "50 % or more below the target"),
      key("h2", "10 %"),
      key("", "met"),
      key("u2", "10 % above"),
      key("u4", "50 % or more"),
    ),
    el("div", { class: "panels", id: "heat" }, tables),
    more ? note(`${count(more)} further cells are not listed.`) : null,
  );
}

function grouped(cells) {
  const groups = new Map();
  for (const cell of cells) groups.set(cell.attribute, [...(groups.get(cell.attribute) ?? []), cell]);
  return groups;
}

function key(kind, text) {
  return el("span", { class: `key ${kind}`.trim() }, text);
}

function quotaTable(name, cells) {
  const unknown = cells.some((cell) => cell.value === null || cell.value === "unknown");
  const rows = cells.map((cell) => {
    const kind = shade(cell.target, cell.actual);
    const value = cell.value ?? "unknown";
    const found = el("a", { href: to("grid", { filter: filterFor(name, cell) }) }, words(value));
    return [
      found,
      count(cell.target),
      el("td", { class: `n ${kind}` }, count(cell.actual)),
      el("td", { class: `n ${kind}` }, percent(cell.share, 0)),
      el("td", { class: "meta" }, cell.judged_unfillable ?? ""),
    ];
  });
  if (!unknown) rows.push(["unknown", "0", "0", "–", el("td", { class: "meta" }, "every value is known")]);
  return table(["Value", "Target", "Actual", "Share", "Why it is not full"], rows, {
    caption: words(name),
    numeric: [1, 2, 3],
    class: "heat",
  });
}

function filterFor(name, cell) {
  return { cell: cell.cell ?? `${name}=${cell.value ?? "unknown"}`, decision: ["keep"] };
}

function values({ attributes }) {
  if (!attributes.length) return part("Attributes", empty("The release has no attribute."));
  const tables = attributes.map((attribute) => {
    const open = (value) =>
      el(
        "a",
        { href: to("grid", { filter: { attr: { [attribute.name]: [value] } } }) },
        value === null ? "unknown" : words(value),
      );
    const unknown =
      typeof attribute.unknown === "number"
        ? { kept: null, held: null, dropped: null, n: attribute.unknown }
        : attribute.unknown;
    const row = (value, { kept, held, dropped, n }) => {
      const all = n ?? kept + held + dropped;
      return [
        open(value),
        count(all),
        count(kept),
        count(held),
        count(dropped),
        stack(
          [
            ["kept", kept ?? 0, "p0"],
            ["held", held ?? 0, "p1"],
            ["dropped", dropped ?? 0, "p3"],
          ],
          all,
          value ?? "unknown",
        ),
      ];
    };
    const rows = attribute.values.filter(({ value }) => value !== null).map((found) => row(found.value, found));
    return table(["Value", "All", "Kept", "Held", "Dropped", ""], [...rows, row(null, unknown)], {
      caption: words(attribute.name),
      numeric: [1, 2, 3, 4],
      class: "mid",
    });
  });
  return part(
    "Attributes by decision",
    legend([
      ["kept", "p0"],
      ["held", "p1"],
      ["dropped", "p3"],
    ]),
    el("div", { class: "panels" }, tables),
  );
}

function provenance({ provenance: found }) {
  if (!found.length) return part("Who says so", empty("The release has no attribute."));
  const rows = found.map((row) => {
    const all = WHO.reduce((sum, [who]) => sum + (row[who] ?? 0), 0);
    return [
      words(row.attribute),
      stack(
        WHO.map(([who, kind]) => [who, row[who] ?? 0, kind]),
        all,
        row.attribute,
      ),
      ...WHO.map(([who]) => percent(all ? (row[who] ?? 0) / all : null)),
    ];
  });
  return part(
    "Who says so",
    legend(WHO),
    note("A value that a model inferred is a guess of that model, not a fact about a person."),
    table(["Attribute", "", ...WHO.map(([who]) => who)], rows, {
      caption: "Share of the samples by who says the value",
      numeric: [2, 3, 4, 5],
      class: "mid",
    }),
  );
}
