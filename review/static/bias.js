// Filter bias: does the judge remove some values of an attribute more often than the pool as a whole?

import { get } from "./api.js";
import { forest, forestAxis, legend, stack } from "./charts.js";
import { chip, count, el, empty, labelled, note, part, percent, select, table, tiles, words } from "./dom.js";
import { go, to } from "./route.js";

/** The screen. */
export async function view(params, signal) {
  const said = await get("/api/bias", { attribute: params.attribute }, signal);
  const { overall, rows } = said;
  const names = params.attribute
    ? (await get("/api/coverage", {}, signal)).attributes.map(({ name }) => name)
    : [...new Set(rows.map((row) => row.attribute))];
  const pick = select(
    [["", "all attributes"], ...names.map((name) => [name, words(name)])],
    params.attribute ?? "",
    (attribute) => go("bias", { attribute }),
  );
  const rate = overall.rate ?? (overall.n ? overall.removed / overall.n : null);
  const flags = rows.filter((row) => row.flagged).length;
  return el(
    "div",
    {},
    el("h1", {}, "Filter bias"),
    tiles([
      ["Removed overall", percent(rate), `95 %: ${percent(overall.interval[0])} to ${percent(overall.interval[1])}`],
      ["Dropped", count(overall.dropped), `of ${count(overall.n)}`],
      ["Held", count(overall.held), `of ${count(overall.n)}`],
      ["Flagged values", count(flags), `of ${count(rows.length)}`],
    ]),
    note(
      "Removed is dropped or held. A value is flagged where its 95 % interval excludes the rate of the whole pool (dashed line). ",
      `Below n = ${count(said.floor)} nothing is claimed. With many values a few are flagged by chance: a flag is a question.`,
    ),
    el("div", { class: "bar" }, labelled("Attribute", pick)),
    overall.n === 0 ? empty("The pool is empty.") : charts(rows, rate),
  );
}

function charts(rows, rate) {
  const reasons = [...new Set(rows.flatMap((row) => Object.keys(row.reasons ?? {})))].sort();
  const colour = Object.fromEntries(reasons.map((reason, at) => [reason, `p${Math.min(at, 4)}`]));
  const high = axis(rows, rate);
  const names = [...new Set(rows.map((row) => row.attribute))];
  return el(
    "div",
    { id: "forests" },
    reasons.length
      ? legend(reasons.map((reason) => [reason, colour[reason]]))
      : note("Nothing was removed, so there are no reasons."),
    names.map((name) =>
      attribute(
        name,
        rows.filter((row) => row.attribute === name),
        { rate, high, colour },
      ),
    ),
  );
}

/** The end of the axis: the least of 5, 10, 20, 50, 100 % that holds every rate, and every interval that claims. */
function axis(rows, rate) {
  const most = Math.max(rate ?? 0, ...rows.map((row) => Math.max(row.rate ?? 0, row.claim ? row.interval[1] : 0)));
  return [0.05, 0.1, 0.2, 0.5].find((end) => most <= end) ?? 1;
}

function attribute(name, rows, { rate, high, colour }) {
  const inferred = rows.filter((row) => row.provenance === "model" || row.provenance === "mixed").length;
  const body = rows.map((row) => [
    [value(row), " ", row.flagged ? chip("flagged", "bad") : null, row.claim ? null : chip("no claim")],
    forest(row, rate, high),
    percent(row.rate),
    `${percent(row.interval[0])} to ${percent(row.interval[1])}`,
    count(row.n),
    count(row.removed),
    stack(
      Object.entries(row.reasons ?? {}).map(([reason, n]) => [reason, n, colour[reason]]),
      Math.max(row.removed, 1),
      "reasons",
    ),
    row.provenance,
  ]);
  const head = ["Value", forestAxis(high), "Rate", "95 % interval", "n", "Removed", "Reasons", "Who says"];
  const caption = inferred ? `${words(name)}: inferred by a model, not asked of a person` : `${words(name)} by value`;
  return part(words(name), table(head, body, { caption, numeric: [2, 3, 4, 5], class: "mid" }));
}

function value(row) {
  if (row.rest) return row.value;
  const filter = { attr: { [row.attribute]: [row.value] }, decision: ["drop", "hold"] };
  return el("a", { href: to("grid", { filter }) }, row.value === null ? "unknown" : words(row.value));
}
