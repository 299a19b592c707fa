// Overview and gate: what the release holds, whether its counts add up, and what still stands in its way.

import { get } from "./api.js";
import { stack } from "./charts.js";
import { chip, count, el, empty, facts, instant, note, part, percent, plural, table, tiles, words } from "./dom.js";
import { again, to } from "./route.js";

const AGAIN = 1500;
const FUNNEL = [
  ["read", "Read"],
  ["undecodable", "Undecodable"],
  ["duplicate", "Duplicate"],
  ["not_sampled", "Not sampled"],
  ["dropped", "Dropped"],
  ["held", "Held"],
  ["kept", "Kept"],
];
const OPENS = { dropped: { decision: ["drop"] }, held: { decision: ["hold"] }, kept: { decision: ["keep"] } };

/** The screen. */
export async function view(_params, signal) {
  const said = await get("/api/overview", {}, signal);
  if (said.loading) setTimeout(() => again(signal), AGAIN);
  return el("div", {}, el("h1", {}, said.name), gate(said), funnel(said), review(said), made(said));
}

function gate(said) {
  const {
    signoff,
    checks,
    review: { counts: states },
  } = said;
  const rows = checks.map(({ name, state, told }) => [
    name,
    chip(state, { pass: "good", fail: "bad" }[state] ?? ""),
    told,
  ]);
  return part(
    "Gate",
    tiles([
      [
        "Sign-off",
        SIGNED[signoff.state] ?? signoff.state,
        signoff.signoff ? `${signoff.signoff.reviewer}, ${instant(signoff.signoff.at)}` : "",
      ],
      ["Samples", count(said.rows), plural(said.sources, "source")],
      ["Undecided", count(states.undecided ?? 0), `of ${count(said.rows)}`],
      ["Disputed", count(states.disputed ?? 0), states.disputed ? "needs an adjudication" : ""],
    ]),
    signoff.state === "broken" ? el("p", { class: "bad", id: "void" }, signoff.why) : null,
    el(
      "p",
      {},
      el("a", { href: to("signoff") }, "Sign-off"),
      " · ",
      el("a", { href: to("integrity") }, "Check the bytes"),
    ),
    rows.length
      ? table(["Check", "State", "What it found"], rows, { caption: "Checks of this release" })
      : empty("No check was made."),
  );
}

const SIGNED = { none: "None", signed: "Signed off", expired: "Expired", withdrawn: "Withdrawn", broken: "Void" };

function funnel({ counts, adds_up: addsUp }) {
  const parts = FUNNEL.slice(1);
  const sum = parts.reduce((total, [key]) => total + (counts[key] ?? 0), 0);
  const whole = addsUp && sum === counts.read;
  const link = (key, name) => (OPENS[key] ? el("a", { href: to("grid", { filter: OPENS[key] }) }, name) : name);
  const rows = FUNNEL.map(([key, name]) => [
    link(key, name),
    count(counts[key]),
    percent(counts.read ? counts[key] / counts.read : null),
    stack(
      [
        [
          name,
          counts[key] ?? 0,
          key === "kept" || key === "read" ? "p0" : key === "held" ? "p1" : key === "dropped" ? "p3" : "p4",
        ],
      ],
      counts.read,
      name,
    ),
  ]);
  return part(
    "From read to kept",
    table(["Frames", "Number", "Of read", ""], rows, {
      caption: "Every frame that was read ends as exactly one of these",
      numeric: [1, 2],
      class: "mid",
    }),
    el(
      "p",
      { class: whole ? "good" : "bad", id: "adds-up" },
      `${count(sum)} of ${count(counts.read)} frames accounted for: ${whole ? "the counts add up." : "the counts do not add up."}`,
    ),
  );
}

function review({ review: { counts: states, events }, rows, splits, decisions, verdicts }) {
  const order = ["undecided", "approve", "reject", "hold", "redraw", "disputed"];
  const reviewed = order.map((state) => [
    el("a", { href: to("grid", { filter: { state: [state] } }) }, state),
    count(states[state] ?? 0),
    percent(rows ? (states[state] ?? 0) / rows : null),
  ]);
  const listed = (title, found, key) =>
    table(
      [title, "Samples"],
      Object.entries(found).map(([name, n]) => [
        name === "audit"
          ? "audit: dropped, pixels kept"
          : el("a", { href: to("grid", { filter: { [key]: [name] } }) }, name),
        count(n),
      ]),
      { caption: title, numeric: [1] },
    );
  return part(
    "What is in it",
    el(
      "div",
      { class: "two" },
      table(["Review state", "Samples", "Share"], reviewed, {
        caption: `${plural(events ?? 0, "event")} in the review log`,
        numeric: [1, 2],
      }),
      listed("Split", splits, "split"),
      listed("Decision", decisions, "decision"),
      listed("Judge's verdict", verdicts, "verdict"),
    ),
  );
}

function made(said) {
  const models = (said.models ?? []).map((model) => [
    model.role,
    model.id,
    el("code", {}, String(model.sha256 ?? "").slice(0, 12)),
    model.source ?? "",
    model.licence ?? "",
  ]);
  const parents = (said.parents ?? []).map((parent) => {
    return el("a", { href: to("compare", { with: parent }) }, el("code", {}, parent.slice(0, 12)));
  });
  return part(
    "Where it comes from",
    facts([
      ["Fingerprint", el("code", {}, said.fingerprint)],
      [
        "Parents",
        parents.length ? parents.flatMap((link, at) => (at ? [", ", link] : [link])) : "none: a first release",
      ],
      ...(said.successor_of
        ? Object.entries(said.successor_of).map(([key, value]) => [
            words(key),
            typeof value === "object" ? JSON.stringify(value) : String(value),
          ])
        : []),
      [
        "Schemas",
        Object.entries(said.schemas ?? {})
          .map(([name, version]) => `${name} ${version}`)
          .join(", "),
      ],
    ]),
    models.length
      ? table(["Role", "Model", "sha256", "Source", "Licence"], models, { caption: "Models that had a say" })
      : empty("No model is named."),
    note("How it was made, with every setting, stands under Run and integrity."),
  );
}
