// Rights: under which licence and consent the samples stand, whose retention has ended, and what was erased.

import { get } from "./api.js";
import { chip, count, el, empty, instant, note, part, plural, table, tiles } from "./dom.js";
import { to } from "./route.js";

/** The screen. */
export async function view(_params, signal) {
  const said = await get("/api/rights", {}, signal);
  const { retention } = said;
  return el(
    "div",
    {},
    el("h1", {}, "Rights"),
    tiles([
      ["Retention ended", count(retention.due_n), retention.due_n ? "must leave the release" : "none"],
      [
        "Next end",
        retention.next ?? "–",
        retention.unstated ? `${plural(retention.unstated, "sample")} without a date` : "",
      ],
      ["Subjects", count(said.subjects), "people named by a key"],
      ["Erasures", count(said.erasures.length)],
    ]),
    part(
      "Licence and consent",
      el(
        "div",
        { class: "two" },
        table(
          ["Licence", "Samples"],
          said.licences.map(({ licence, n }) => [licence || chip("not stated", "bad"), count(n)]),
          { caption: "Licence of the samples", numeric: [1] },
        ),
        table(
          ["Consent", "Samples"],
          said.consent.map(({ status, n }) => [status || chip("not stated", "bad"), count(n)]),
          { caption: "Consent of the people in them", numeric: [1] },
        ),
      ),
    ),
    due(retention),
    erased(said),
  );
}

function due({ due: rows, due_n: n }) {
  if (!n) return part("Retention", empty("No sample is held longer than it may be."));
  const listed = rows.map(({ id, until }) => [el("a", { class: "mono", href: to("sample", { id }) }, id), until]);
  return part(
    "Retention",
    el(
      "p",
      { class: "bad" },
      `${plural(n, "sample")} held for longer than allowed: curate verify fails until they are gone.`,
    ),
    note("curate forget takes them out of this release and of all that share their bytes."),
    table(["Sample", "May be held until"], listed, {
      caption: n > rows.length ? `The first ${count(rows.length)} of ${count(n)}` : "Held too long",
    }),
  );
}

function erased({ erasures, releases_sharing: sharing }) {
  const rows = erasures.map((erasure) => [
    el("code", {}, erasure.id),
    erasure.at ? instant(erasure.at) : "–",
    erasure.reason ?? "–",
    count(erasure.count),
  ]);
  return part(
    "Erasures",
    rows.length
      ? table(["Erasure", "When", "Why", "Samples"], rows, {
          caption: "Tombstones: what was erased is not told",
          numeric: [3],
        })
      : empty("Nothing was erased from this release."),
    el("h3", {}, "Releases that hold some of the same bytes"),
    sharing.length
      ? el(
          "ul",
          {},
          sharing.map((name) => el("li", {}, name)),
        )
      : empty("None beside this one."),
  );
}
