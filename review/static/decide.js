// Decisions of a person: who, on what, with which reasons. Nothing here changes a release; the log takes events.

import { post, rename, reviewer, session } from "./api.js";
import { ask, button, count, el, labelled, note, plural, tell } from "./dom.js";

/** Verdicts with their keys and what they lead to. */
export const VERDICTS = [
  { verdict: "approve", key: "a", text: "Approve", leads: "kept in the next release" },
  { verdict: "reject", key: "r", text: "Reject", leads: "dropped from the next release" },
  { verdict: "hold", key: "h", text: "Hold", leads: "held back in the next release" },
  { verdict: "redraw", key: "f", text: "Redraw", leads: "held back until the mask is drawn again" },
];
/** Reasons that are offered; any other text is taken as well. */
export const REASONS = [
  "part missing",
  "too much marked",
  "rough edge",
  "wrong person",
  "not a person",
  "bad picture",
  "duplicate",
  "privacy",
];
const LONGEST_NAME = 80;

/** The verdict that a key stands for, or undefined; a key that is held down decides once. */
export function verdictOf({ key, repeat }) {
  return repeat ? undefined : VERDICTS.find((entry) => entry.key === key)?.verdict;
}

/** Ask for the reviewer's name; null where the person leaves. */
export function askName() {
  return ask("Who reviews?", (close) => {
    const input = el("input", {
      type: "text",
      maxlength: LONGEST_NAME,
      autocomplete: "name",
      required: true,
      value: reviewer(),
    });
    const save = async (event) => {
      event.preventDefault();
      const name = input.value.trim();
      if (!name) return;
      try {
        await rename(name);
        close(name);
      } catch (error) {
        tell(`${error.message} ${error.remedy ?? ""}`, "bad");
      }
    };
    return el(
      "form",
      { class: "form", onsubmit: save },
      note(
        "The name stands in every decision that you make from now on, in every tab and window of this browser: one browser is one reviewer. ",
        "Two people need two browsers, or two profiles. The name is not verified unless the events are signed.",
      ),
      labelled("Name", input),
      el(
        "div",
        { class: "bar" },
        el("button", { type: "submit", class: "main" }, "Save"),
        button("Cancel", () => close(null)),
      ),
    );
  });
}

/** The reviewer's name, asked for before the first decision; false where there is none, or the page is read only. */
export async function named() {
  if (session()?.read_only) {
    tell("This server only reads: start curate review without --read-only to decide.", "bad");
    return false;
  }
  return Boolean(reviewer() || (await askName()));
}

/** Send a change; says what went wrong and returns null then, after `overtaken` where others were quicker. */
export async function change(path, body, overtaken = () => undefined) {
  if (!(await named())) return null;
  try {
    return await post(path, body);
  } catch (error) {
    tell(why(error), "bad");
    if (error.status === 409) overtaken();
    return null;
  }
}

function why(error) {
  return `${error.message} ${error.remedy ?? ""}`.trim();
}

const line = { sent: Promise.resolve(), waiting: 0, broken: 0 };

/**
 * Record a verdict on samples. Decisions leave one after the other, in the order in which they were made, and keys need
 * not wait for them. Where one is refused, those made after it are not sent either: a dialog says so and takes the keys,
 * so that none meets a sample that the page has gone back to.
 *
 * The answer holds the states of the samples, or is null; `back` is called for the first that is refused.
 */
export function decide(ids, verdict, reasons, back) {
  const asked = named().then((may) => may && reviewer()); // now: the question for the name takes the keys
  const { broken } = line;
  line.waiting += 1;
  const mine = line.sent.then(async () => {
    const who = await asked;
    line.waiting -= 1;
    if (!who) return (back(), null);
    return broken === line.broken ? sentNow({ ids, verdict, reasons }, who, back) : null;
  });
  line.sent = mine;
  return mine;
}

async function sentNow(body, who, back) {
  const { ids, verdict } = body;
  try {
    const said = await post("/api/decide", body, who);
    tell(`${plural(ids.length, "sample")}: ${verdict} (event ${count(said.seq)}), by ${who}`);
    return said;
  } catch (error) {
    line.broken += 1;
    await refused(ids, verdict, error);
    back();
    return null;
  }
}

function refused(ids, verdict, error) {
  const which = ids.length === 1 ? `sample ${ids[0].slice(0, 8)}` : plural(ids.length, "sample");
  return ask("Not recorded", (close) => [
    el("p", { id: "refused" }, el("strong", {}, `${verdict} of ${which} was not recorded.`), ` ${why(error)}`),
    line.waiting ? el("p", {}, `${plural(line.waiting, "decision")} made after it: not sent either.`) : null,
    button("Go back to it", () => close(null), { class: "main" }),
  ]);
}

/** Wait until every decision that was made has its answer; false where one was refused meanwhile. */
export async function settled() {
  const { broken } = line;
  for (let last = null; last !== line.sent;) await (last = line.sent);
  return broken === line.broken;
}

/** Settle a dispute, unless somebody decided after the event `head` that the person has seen. */
export async function adjudicate(id, verdict, reasons, head, overtaken) {
  const said = await change("/api/decide", { ids: [id], verdict, reasons, adjudicates: true, head }, overtaken);
  if (said) tell(`Settled: ${verdict} (event ${count(said.seq)}), by ${reviewer()}`);
  return said;
}

/** A field for reasons, separated by commas. */
export function reasonField(text = "Reasons (optional, separated by commas)") {
  const id = `reasons-${(reasonField.made = (reasonField.made ?? 0) + 1)}`;
  const input = el("input", { type: "text", list: id, maxlength: 400, autocomplete: "off" });
  const node = labelled(text, input);
  node.append(
    el(
      "datalist",
      { id },
      REASONS.map((value) => el("option", { value })),
    ),
  );
  return {
    node,
    value: () =>
      input.value
        .split(",")
        .map((reason) => reason.trim())
        .filter(Boolean),
    clear: () => {
      input.value = "";
    },
  };
}

/** Buttons for the verdicts. */
export function verdictButtons(onpick, pressed = "") {
  return el(
    "div",
    { class: "choice", role: "group", "aria-label": "Verdict" },
    VERDICTS.map(({ verdict, key, text, leads }) =>
      button([text, " ", el("kbd", {}, key)], () => onpick(verdict), {
        title: leads,
        "data-verdict": verdict,
        "aria-pressed": pressed ? String(pressed === verdict) : null,
      }),
    ),
  );
}

/** Decide all samples of a filter at once, after the person has seen how many they were at the event `head`. */
export function bulk(filter, { total, head }, shown) {
  return ask("Decide all of these samples", (close) => {
    const reasons = reasonField();
    let verdict = "";
    const send = button("Record the decision", () => record(), { class: "main", disabled: true, "data-bulk": "send" });
    const choice = verdictButtons((picked) => {
      verdict = picked;
      for (const node of choice.children) node.setAttribute("aria-pressed", String(node.dataset.verdict === picked));
      send.disabled = false;
      send.textContent = `Record ${picked} for ${plural(total, "sample")}`;
    });
    const record = async () => {
      send.disabled = true;
      const body = { filter, verdict, reasons: reasons.value(), expect: total, head };
      const said = await change("/api/bulk", body, () => close({ overtaken: true }));
      if (said) {
        tell(`${plural(said.count, "sample")}: ${verdict} (event ${count(said.seq)}), by ${reviewer()}`);
        close(said);
      } else send.disabled = false;
    };
    return el(
      "div",
      { class: "form" },
      el(
        "p",
        {},
        "This freezes the list of the ",
        el("strong", { "data-bulk": "count" }, plural(total, "sample")),
        " that are found now: ",
        shown,
        ".",
      ),
      note(
        "One event holds the verdict and the digest of the list. If the filter finds another number by then, or asks for review states and somebody has decided, nothing is recorded.",
      ),
      choice,
      reasons.node,
      el(
        "div",
        { class: "bar" },
        send,
        button("Cancel", () => close(null)),
      ),
    );
  });
}

/** What the keys do. */
export function showKeys(extra = []) {
  const keys = [...VERDICTS.map(({ key, text, leads }) => [key, `${text}: ${leads}`]), ...extra];
  return ask("Keys", (close) => [
    el(
      "dl",
      { class: "facts" },
      keys.map(([key, text]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)]),
    ),
    button("Close", () => close(null), { class: "main" }),
  ]);
}

/** Call `act(key, event)` for keys that no field and no dialog takes; ends with the signal. */
export function onKeys(signal, act) {
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.target.closest("input:not([type=checkbox]):not([type=range]), select, textarea")) return;
      if (act(event.key, event)) event.preventDefault();
    },
    { signal },
  );
}
