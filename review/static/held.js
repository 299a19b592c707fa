// Dropped and held: why samples did not get in, with pictures of those whose pixels are kept.

import { get } from "./api.js";
import { savedLook, Tile } from "./canvas.js";
import { stack } from "./charts.js";
import { count, el, empty, note, part, plural, table, tiles } from "./dom.js";
import { sent, to } from "./route.js";

const NO_REASON = "no reason given";
const SHOWN = 6;
const SIDE = 128;

/** The screen. */
export async function view(_params, signal) {
  const said = await get("/api/reasons", {}, signal);
  const rows = said.reasons.filter((row) => row.held || row.dropped);
  const out = await Promise.all(
    ["hold", "drop"].map((decision) => get("/api/page", { filter: sent({ decision: [decision] }), limit: 1 }, signal)),
  );
  const [held, dropped] = out.map((page) => page.total);
  const most = Math.max(1, ...rows.map((row) => (row.held ?? 0) + (row.dropped ?? 0)));
  const open = (reason, decision, n) =>
    n && reason !== NO_REASON
      ? el("a", { href: to("grid", { filter: { reason: [reason], decision: [decision] } }) }, count(n))
      : count(n);
  const listed = rows.map((row) => [
    row.reason,
    open(row.reason, "hold", row.held),
    open(row.reason, "drop", row.dropped),
    stack(
      [
        ["held", row.held ?? 0, "p1"],
        ["dropped", row.dropped ?? 0, "p3"],
      ],
      most,
      row.reason,
    ),
  ]);
  return el(
    "div",
    {},
    el("h1", {}, "Dropped and held"),
    tiles([
      ["Held", el("a", { href: to("grid", { filter: { decision: ["hold"] } }) }, count(held)), "wait for a person"],
      [
        "Dropped",
        el("a", { href: to("grid", { filter: { decision: ["drop"] } }) }, count(dropped)),
        "pixels of a part are kept to be audited",
      ],
    ]),
    part(
      "By reason",
      listed.length
        ? table(["Reason", "Held", "Dropped", ""], listed, {
            caption: "A sample with two reasons counts for both",
            numeric: [1, 2],
            class: "mid",
          })
        : empty("Nothing was dropped or held."),
    ),
    await Promise.all(
      rows
        .filter(({ reason }) => reason !== NO_REASON)
        .slice(0, 12)
        .map((row) => examples(row, signal)),
    ),
  );
}

async function examples(row, signal) {
  const filter = { reason: [row.reason], decision: ["drop", "hold"] };
  const page = await get("/api/page", { filter: sent(filter), limit: 60 }, signal);
  const seen = page.samples.filter((sample) => sample.pixels).slice(0, SHOWN);
  const look = savedLook();
  const figures = seen.map((sample) => {
    const tile = new Tile(sample, SIDE);
    tile.load(look, signal);
    return el(
      "figure",
      {},
      el("a", { href: to("sample", { id: sample.id }), "aria-label": `Sample ${sample.id.slice(0, 8)}` }, tile.node),
      el("figcaption", {}, sample.decision),
    );
  });
  return part(
    row.reason,
    el("p", {}, el("a", { href: to("grid", { filter }) }, plural(page.total, "sample"))),
    figures.length ? el("div", { class: "strip" }, figures) : note("No pixels of these samples are kept."),
  );
}
