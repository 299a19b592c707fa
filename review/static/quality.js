// Label quality: how the numbers of the labels are spread, sliced by an attribute; a bin opens its samples.

import { get } from "./api.js";
import { histogram } from "./charts.js";
import { count, details, el, empty, labelled, note, number, part, plural, select, table, words } from "./dom.js";
import { attributes, filterBar, NUMBERS } from "./filter.js";
import { filterOf, go, sent } from "./route.js";

const FIRST = ["label_confidence", "boundary_uncertainty", "student_iou", "student_boundary_iou", "temporal_iou", "q"];

/** The screen. */
export async function view(params, signal) {
  const filter = filterOf(params);
  const { by = "", column = "" } = params;
  const columns = column ? [column] : FIRST;
  const asked = columns.map((name) => get("/api/histogram", { column: name, by, filter: sent(filter) }, signal));
  const [all, ...charts] = await Promise.all([attributes(), ...asked]);
  const again = (part) => go("quality", { filter, by, column, ...part });
  const slices = [["", "nothing"], ...all.map(({ name }) => [name, words(name)])];
  const numbers = [["", "the main ones"], ...NUMBERS.map((name) => [name, words(name)])];
  return el(
    "div",
    {},
    el("h1", {}, "Label quality"),
    note("Choose a bar to see its samples. Samples without the number are counted as missing, never as zero."),
    filterBar(filter, (next) => again({ filter: next })),
    el(
      "div",
      { class: "bar" },
      labelled(
        "Numbers",
        select(numbers, column, (value) => again({ column: value })),
      ),
      labelled(
        "Sliced by",
        select(slices, by, (value) => again({ by: value })),
      ),
    ),
    el(
      "div",
      { class: by || column ? "" : "panels" },
      charts.map((chart) => one(chart, by, filter)),
    ),
  );
}

function one(chart, by, filter) {
  const title = words(chart.column);
  if (chart.missing === chart.n)
    return part(
      title,
      empty(chart.n ? `None of the ${plural(chart.n, "sample")} has this number.` : "No sample matches the filter."),
    );
  const highest = by ? undefined : Math.max(...chart.series.flatMap((series) => series.counts));
  const panels = chart.series.map((series) => panel(chart, series, { by, filter, highest }));
  return part(title, el("div", { class: by ? "panels" : "" }, panels), numbers(chart, by));
}

function panel(chart, series, { by, filter, highest }) {
  const name = by ? (series.value ?? "unknown") : words(chart.column);
  const open = (k) =>
    go("grid", {
      filter: {
        ...filter,
        ...(by && !series.rest ? { attr: { ...filter.attr, [by]: [series.value] } } : {}),
        range: { ...filter.range, [chart.column]: [chart.edges[k], chart.edges[k + 1]] },
        sort: chart.column,
      },
    });
  const known = series.n - series.missing;
  return el(
    "div",
    {},
    by ? el("h3", {}, words(name)) : null,
    el("p", { class: "meta" }, `n = ${count(known)}${series.missing ? `, ${count(series.missing)} missing` : ""}`),
    known
      ? histogram(chart.edges, series.counts, { label: words(name), highest, open })
      : empty("Missing in all of them."),
  );
}

function numbers(chart, by) {
  const head = ["From", "To", ...chart.series.map((series) => (by ? (series.value ?? "unknown") : "Samples"))];
  const rows = chart.edges
    .slice(0, -1)
    .map((edge, k) => [
      number(edge, 4),
      number(chart.edges[k + 1], 4),
      ...chart.series.map((series) => count(series.counts[k])),
    ])
    .filter((_, k) => chart.series.some((series) => series.counts[k]));
  return details(
    "The numbers",
    table(head, rows, {
      caption: `${words(chart.column)} in bins that are not empty`,
      numeric: head.map((_, at) => at),
    }),
  );
}
