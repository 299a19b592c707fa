// Sign-off: a person answers the questions of the data card and puts a name to this fingerprint.

import { get, rename, reviewer, session } from "./api.js";
import { change, named } from "./decide.js";
import {
  ask,
  button,
  chip,
  count,
  el,
  empty,
  facts,
  instant,
  labelled,
  note,
  part,
  plural,
  tell,
  words,
} from "./dom.js";
import { again, to } from "./route.js";

/** The screen. */
export async function view(_params, signal) {
  const said = await get("/api/signoff", {}, signal);
  return el(
    "div",
    {},
    el("h1", {}, "Sign-off"),
    standing(said, signal),
    open(said),
    said.state === "signed" ? null : form(said, signal),
  );
}

function standing(said, signal) {
  const kind = { signed: "good", broken: "bad" }[said.state] ?? "";
  const { signoff } = said;
  const listed = signoff
    ? facts([
        ["By", `${signoff.reviewer} (${signoff.how_known})`],
        ["At", instant(signoff.at)],
        ["Expires", signoff.expires_at ? instant(signoff.expires_at) : "never"],
        ["Event", count(signoff.seq)],
        ["Conditions", signoff.conditions || "none"],
        ...Object.entries(signoff.checklist ?? {}).map(([question, answer]) => [
          asked(said, question),
          answer === true ? "yes" : answer === false ? "no" : String(answer),
        ]),
      ])
    : null;
  return part(
    "State",
    el("p", { "data-signoff": said.state }, chip(said.state, kind), " ", said.why ?? ""),
    note(
      "A sign-off holds for the fingerprint ",
      el("code", {}, session()?.fingerprint ?? ""),
      " alone: any changed byte voids it.",
    ),
    listed,
    said.state === "signed" ? button("Withdraw the sign-off…", () => withdraw(signal), { id: "withdraw" }) : null,
  );
}

function asked(said, key) {
  return said.requirements.find((entry) => entry.key === key)?.question ?? words(key);
}

/** What the list above says with a link, or the form below with a field. */
const OWN = /^open: |samples are (disputed|undecided)$/;

function open(said) {
  const questions = said.unmet.filter((text) => text.startsWith("open: ")).length;
  const lines = [
    said.disputes
      ? el(
          "li",
          {},
          el("a", { href: to("tasks") }, plural(said.disputes, "disputed sample")),
          " without an adjudication",
        )
      : null,
    said.undecided_held
      ? el(
          "li",
          {},
          el(
            "a",
            { href: to("grid", { filter: { decision: ["hold"], state: ["undecided"] } }) },
            plural(said.undecided_held, "held sample"),
          ),
          " that nobody has decided",
        )
      : null,
    questions ? el("li", {}, plural(questions, "question"), " of the data card, below") : null,
    ...said.unmet
      .filter((text) => !OWN.test(text))
      .map((text) => el("li", {}, text.startsWith("integrity") ? el("a", { href: to("integrity") }, text) : text)),
  ].filter(Boolean);
  return part(
    "Still open",
    note("Without conditions a release can be signed off only when nothing of this is left."),
    lines.length ? el("ul", { id: "unmet" }, lines) : empty("Nothing stands in the way."),
  );
}

function form(said, signal) {
  const answers = said.requirements.map((entry) => [
    entry,
    entry.kind === "yes" ? el("input", { type: "checkbox" }) : el("textarea", { rows: 2, maxlength: 4000 }),
  ]);
  const name = el("input", { type: "text", maxlength: 80, autocomplete: "name", value: reviewer(), name: "name" });
  const conditions = el("textarea", { rows: 2, maxlength: 4000, name: "conditions" });
  const expires = el("input", { type: "date", name: "expires" });
  const send = async (event) => {
    event.preventDefault();
    const checklist = {};
    for (const [entry, control] of answers) {
      const answer = entry.kind === "yes" ? control.checked : control.value.trim();
      if (answer) checklist[entry.key] = answer;
    }
    const body = { name: name.value.trim(), checklist, conditions: conditions.value.trim() };
    if (expires.value) body.expires_at = `${expires.value}T00:00:00Z`;
    if (!reviewer() && body.name) await rename(body.name);
    const done = await change("/api/signoff", body);
    if (!done) return;
    tell("The release is signed off.");
    again(signal);
  };
  return part(
    "Sign off",
    el(
      "form",
      { class: "form", id: "signoff", onsubmit: send, novalidate: true },
      answers.map(([entry, control]) => labelled(entry.question, control, entry.kind === "yes" ? "tick" : "field")),
      labelled("Conditions under which it may be used", conditions),
      labelled("Expires on (optional, UTC)", expires),
      labelled("Your name, as a signature", name),
      el("div", { class: "bar" }, el("button", { type: "submit", class: "main" }, "Sign off")),
      note("The name is not verified by this page. Sign the event with ssh-keygen to prove who wrote it."),
    ),
  );
}

async function withdraw(signal) {
  if (!(await named())) return;
  await ask("Withdraw the sign-off", (close) => {
    const why = el("textarea", { rows: 3, maxlength: 4000 });
    const send = async (event) => {
      event.preventDefault();
      const done = await change("/api/withdraw", { reasons: [why.value.trim()].filter(Boolean) });
      if (!done) return;
      close(done);
      tell("The sign-off is withdrawn.");
      again(signal);
    };
    return el(
      "form",
      { class: "form", onsubmit: send },
      labelled("Why", why),
      el(
        "div",
        { class: "bar" },
        el("button", { type: "submit", class: "main" }, "Withdraw"),
        button("Cancel", () => close(null)),
      ),
    );
  });
}
