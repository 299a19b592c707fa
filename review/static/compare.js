// Compare: what this release and another of the same root differ in, and the changed samples before and after.

import { get } from "./api.js";
import { savedLook, Tile } from "./canvas.js";
import { stack } from "./charts.js";
import {
  button,
  chip,
  count,
  details,
  el,
  empty,
  labelled,
  note,
  number,
  part,
  percent,
  plural,
  select,
  table,
  tiles,
  words,
} from "./dom.js";
import { go, to } from "./route.js";

const KINDS = [
  ["decision", "decision"],
  ["mask", "mask"],
  ["split", "split"],
  ["attribute", "attribute"],
  ["added", "added"],
  ["removed", "removed"],
];
const PER_PAGE = 24;
const SIDE = 256;
const RELATIONS = {
  same: "the same release",
  successor: "this release was made from the other",
  parent: "the other was made from this release",
  siblings: "both were made from one parent",
  unrelated: "neither was made from the other",
};

/** The screen. */
export async function view(params, signal) {
  const releases = await get("/api/releases", {}, signal);
  const others = releases.filter(({ current }) => !current);
  const chosen = params.with || others.find((release) => release.parent_of_current)?.fingerprint || "";
  const options = [
    ["", "choose a release"],
    ...others.map((release) => [
      release.fingerprint,
      `${release.name} (${plural(release.rows, "row")}${release.parent_of_current ? ", parent" : ""})`,
    ]),
  ];
  const pick = labelled(
    "Compare this release with",
    select(options, chosen, (fingerprint) => go("compare", { with: fingerprint })),
  );
  const head = [el("h1", {}, "Compare"), others.length ? el("div", { class: "bar" }, pick) : null];
  if (!others.length)
    return el(
      "div",
      {},
      head,
      empty("There is no other release in this folder. The next one is made by curate apply-reviews."),
    );
  if (!chosen) return el("div", {}, head, empty("Choose a release to see what differs."));
  const [said, current] = [
    await get("/api/compare", { with: chosen }, signal),
    releases.find((release) => release.current),
  ];
  const sides = sidesOf(said, releases);
  const kind = params.kind ?? KINDS.find(([key]) => said.samples[key])?.[0] ?? "decision";
  const changed = await samples(
    { chosen, kind, offset: Number(params.offset) || 0, current: current?.fingerprint, said, sides },
    signal,
  );
  return el(
    "div",
    {},
    head,
    summary(said, sides),
    changed,
    moves(said),
    cells(said, sides),
    drift(said, sides),
    settings(said, sides),
  );
}

/** What A and B are called: this release, or the other by the name of its folder. */
function sidesOf(said, releases) {
  const name = ({ fingerprint }) => {
    const found = releases.find((release) => release.fingerprint === fingerprint);
    return found?.current ? "this release" : (found?.name ?? fingerprint.slice(0, 12));
  };
  return { a: name(said.a), b: name(said.b) };
}

function summary({ samples, relation, counts, splits }, sides) {
  const change = (row) => [row.name.replace("_", " "), count(row.a), count(row.b), signed(row.b - row.a)];
  const head = ["", `A: ${sides.a}`, `B: ${sides.b}`, "B − A"];
  return part(
    "What differs",
    note(`A is ${sides.a}, B is ${sides.b}; ${RELATIONS[relation] ?? relation}.`),
    tiles([
      ["In both", count(samples.common)],
      ["Changed", count(samples.changed)],
      ["Added in B", count(samples.added)],
      ["Removed from A", count(samples.removed)],
      ["Decision", count(samples.decision)],
      ["Split", count(samples.split)],
      ["Mask", count(samples.mask)],
      ["Attribute", count(samples.attribute)],
    ]),
    el(
      "div",
      { class: "two" },
      table(head, counts.map(change), { caption: "Frames", numeric: [1, 2, 3] }),
      table(head, splits.map(change), { caption: "Samples per split", numeric: [1, 2, 3] }),
    ),
  );
}

function signed(n) {
  return n > 0 ? `+${count(n)}` : n < 0 ? `−${count(-n)}` : "0";
}

async function samples(about, signal) {
  const { chosen, kind, offset, said } = about;
  const again = (changes) => go("compare", { with: chosen, kind, ...changes });
  const picks = el(
    "div",
    { class: "choice", role: "group", "aria-label": "What changed" },
    KINDS.map(([key, text]) =>
      button(`${text} ${count(said.samples[key])}`, () => again({ kind: key }), {
        "aria-pressed": String(key === kind),
        "data-kind": key,
      }),
    ),
  );
  const page = await get("/api/compare/page", { with: chosen, kind, offset, limit: PER_PAGE }, signal);
  const cards = page.samples.map((sample) => card(sample, about, signal));
  const last = offset + page.samples.length;
  const pager =
    page.total > PER_PAGE
      ? el(
          "div",
          { class: "bar mid" },
          button("Previous", () => again({ offset: Math.max(0, offset - PER_PAGE) }), { disabled: offset === 0 }),
          el("span", { class: "meta" }, `${count(offset + 1)} to ${count(last)} of ${count(page.total)}`),
          button("Next", () => again({ offset: last }), { disabled: last >= page.total }),
        )
      : null;
  return part(
    "Changed samples",
    picks,
    cards.length
      ? el("div", { class: "panels", id: "pairs" }, cards)
      : empty(`No sample differs in this way: ${kind}.`),
    pager,
  );
}

function card({ id, before, after }, { said, current, sides }, signal) {
  const look = savedLook();
  const side = (row, release, name) => {
    if (!row)
      return el(
        "figure",
        {},
        el("div", { class: "picture" }, el("span", { class: "nothing" }, "not there")),
        el("figcaption", { class: "meta" }, name),
      );
    const tile = new Tile({ id, pixels: row.pixels }, SIDE, {
      release: release === current ? "" : release,
      label: `${name}: ${id.slice(0, 8)}`,
    });
    tile.load(look, signal);
    return el(
      "figure",
      {},
      tile.node,
      el(
        "figcaption",
        { class: "meta" },
        `${name}: ${row.decision}, ${row.split}`,
        (row.reasons ?? []).map((reason) => chip(reason)),
      ),
    );
  };
  const here = said.a.fingerprint === current ? before : after;
  const named = here
    ? el("a", { class: "mono", href: to("sample", { id }) }, id.slice(0, 10))
    : el("span", { class: "mono" }, id.slice(0, 10));
  const attributes =
    before && after
      ? Object.keys({ ...before.attributes, ...after.attributes }).map((name) =>
          el(
            "div",
            { class: "meta" },
            `${words(name)}: ${told(before.attributes?.[name])} → ${told(after.attributes?.[name])}`,
          ),
        )
      : null;
  return el(
    "section",
    { "data-changed": id },
    el("h3", {}, named),
    el(
      "div",
      { class: "pair" },
      side(before, said.a.fingerprint, `A, ${sides.a}`),
      side(after, said.b.fingerprint, `B, ${sides.b}`),
    ),
    attributes,
  );
}

function told(value) {
  return value ? `${value.value ?? "unknown"} (${value.provenance})` : "–";
}

function moves({ moves: found, attributes }) {
  const listed = (title, rows) =>
    rows.length
      ? table(
          ["From", "To", "Samples"],
          rows.map((row) => [row.before, row.after, count(row.count)]),
          { caption: title, numeric: [2] },
        )
      : empty(`${title}: none moved.`);
  return part(
    "Moves",
    el(
      "div",
      { class: "two" },
      listed("Decision", found.decision),
      listed("Split", found.split),
      attributes.length
        ? table(
            ["Attribute", "Samples"],
            attributes.map(({ name, changed }) => [words(name), count(changed)]),
            { caption: "Attributes whose value or provenance changed", numeric: [1] },
          )
        : empty("No attribute changed."),
    ),
  );
}

function cells({ cells: found }, sides) {
  const rows = found.filter((cell) => cell.delta || cell.a?.target !== cell.b?.target);
  if (!rows.length) return part("Quota cells", empty("Every cell holds as many samples as before."));
  const body = rows.map((cell) => [
    `${words(cell.attribute)}: ${words(cell.value)}`,
    count(cell.a?.target),
    count(cell.a?.actual),
    count(cell.b?.target),
    count(cell.b?.actual),
    el("td", { class: `n ${cell.delta < 0 ? "h2" : cell.delta > 0 ? "u2" : ""}` }, signed(cell.delta)),
  ]);
  return part(
    "Quota cells",
    table(["Cell", "Target A", "Actual A", "Target B", "Actual B", "B − A"], body, {
      caption: `Cells that differ, of ${count(found.length)}; A: ${sides.a}, B: ${sides.b}`,
      numeric: [1, 2, 3, 4, 5],
      class: "heat",
    }),
  );
}

function drift({ drift: found }, sides) {
  const body = found.map((row) => [
    words(row.column),
    row.of,
    count(row.a),
    count(row.b),
    number(row.linf, 2),
    number(row.js, 2),
    spread(row),
  ]);
  return part(
    "Drift",
    note(
      "L∞ is the largest difference of a share, JS the Jensen-Shannon divergence (base 2); both are 0 for equal distributions and at most 1.",
    ),
    body.length
      ? table(["Column", "Of", "A", "B", "L∞", "JS", "Values"], body, {
          caption: `Largest drift first; A: ${sides.a}, B: ${sides.b}`,
          numeric: [2, 3, 4, 5],
        })
      : empty("No column can be compared."),
  );
}

function spread({ column, values, edges }) {
  const named = (value, at) =>
    value !== null && value !== undefined
      ? words(value)
      : edges && at + 1 < edges.length
        ? `${number(edges[at])} to ${number(edges[at + 1])}`
        : "missing";
  const rows = values.map((row, at) => [
    named(row.value, at),
    percent(row.a),
    percent(row.b),
    stack([["A", row.a, "p0"]], 1, "A"),
    stack([["B", row.b, "p1"]], 1, "B"),
  ]);
  return details(
    plural(values.length, "value"),
    table(["Value", "A", "B", "", ""], rows, { caption: `${words(column)}: shares`, numeric: [1, 2], class: "mid" }),
  );
}

function settings({ config, models }, sides) {
  const shown = (value) =>
    value === null || value === undefined
      ? "–"
      : el("code", {}, typeof value === "string" ? value : JSON.stringify(value));
  const short = (digest) => (digest ? el("code", {}, digest.slice(0, 12)) : "–");
  const head = [`A: ${sides.a}`, `B: ${sides.b}`];
  return part(
    "Settings and models",
    config.length
      ? table(
          ["Setting", ...head],
          config.map((row) => [el("code", {}, row.path), shown(row.a), shown(row.b)]),
          { caption: "Settings that differ" },
        )
      : empty("The settings are the same."),
    models.length
      ? table(
          ["Role", "Model", ...head],
          models.map((row) => [row.role, row.id, short(row.a), short(row.b)]),
          { caption: "Models that differ" },
        )
      : empty("The models are the same."),
  );
}
