// Run and integrity: whether every byte is what it was, and how the release was made.

import { get, post, session } from "./api.js";
import {
  button,
  bytes,
  count,
  details,
  el,
  empty,
  facts,
  instant,
  note,
  part,
  plural,
  table,
  tell,
  tiles,
} from "./dom.js";

const PAUSE = 700;

/** The screen. */
export async function view(_params, signal) {
  const said = await get("/api/integrity", {}, signal);
  const place = el("div", { id: "integrity" });
  const draw = (now) =>
    place.replaceChildren(
      ...state(now, () => {
        draw({ ...now, state: "running", problems: [], log: {} });
        check(draw, signal);
      }),
    );
  draw(said);
  if (said.state === "running") follow(draw, signal);
  return el("div", {}, el("h1", {}, "Run and integrity"), part("Integrity", place), run(said.run ?? {}));
}

async function check(draw, signal) {
  try {
    const said = await post("/api/integrity");
    draw(said);
    await follow(draw, signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    tell(`${error.message} ${error.remedy ?? ""}`, "bad");
    get("/api/integrity", {}, signal).then(draw, () => undefined);
  }
}

async function follow(draw, signal) {
  for (;;) {
    await new Promise((resolve) => {
      setTimeout(resolve, PAUSE);
    });
    if (signal.aborted) return;
    const said = await get("/api/integrity", {}, signal);
    draw(said);
    if (said.state !== "running") {
      tell(
        said.state === "good" ? "Every byte is what it was." : `The check ended: ${said.state}.`,
        said.state === "good" ? "" : "bad",
      );
      return;
    }
  }
}

function state(said, start) {
  const kinds = { good: "good", problems: "bad", failed: "bad" };
  const going = said.state === "running";
  const found = said.problems.map(({ path, message }) => [el("code", {}, path), message]);
  const log = said.log ?? {};
  return [
    tiles([
      [
        "Release",
        el("span", { class: kinds[said.state] ?? "", "data-integrity": said.state }, said.state),
        said.checked_at ? instant(said.checked_at) : "",
      ],
      ["Review log", el("span", { class: kinds[log.state] ?? "" }, log.state ?? "not run"), ""],
      ["Files", count(said.files), bytes(said.bytes)],
    ]),
    el(
      "div",
      { class: "bar mid" },
      button(going ? "Checking…" : "Check every byte", start, { class: "main", disabled: going, id: "check" }),
      note("Reads and decodes every file, and follows the chain of the review log. Large releases take minutes."),
    ),
    said.why ? el("p", { class: "bad" }, said.why) : null,
    found.length ? table(["File", "Problem"], found, { caption: plural(said.count ?? found.length, "problem") }) : null,
    log.problems?.length
      ? el(
          "div",
          {},
          el("h3", {}, "Problems of the review log"),
          el(
            "ul",
            {},
            log.problems.map((text) => el("li", { class: "bad" }, text)),
          ),
        )
      : null,
  ].filter(Boolean);
}

function run(said) {
  const packages = Object.entries(said.packages ?? {}).sort(([a], [b]) => a.localeCompare(b));
  const tool = said.tool ? `${said.tool.name ?? ""} ${said.tool.version ?? ""}`.trim() : "–";
  return el(
    "div",
    {},
    part(
      "Run",
      facts([
        ["Fingerprint", el("code", {}, session()?.fingerprint ?? "")],
        ["Run", el("code", {}, said.run_id ?? "–")],
        ["Seed", String(said.seed ?? "–")],
        ["Made by", tool],
      ]),
    ),
    part(
      "Made with",
      packages.length
        ? details(
            "Packages",
            table(
              ["Package", "Version"],
              packages.map(([name, version]) => [name, version]),
              { caption: plural(packages.length, "package") },
            ),
          )
        : empty("No package is named."),
      details("Config", el("pre", { tabindex: "0" }, JSON.stringify(said.config ?? {}, null, 2))),
      details("Lineage", el("pre", { tabindex: "0" }, JSON.stringify(said.lineage ?? {}, null, 2))),
      said.inputs ? details("Inputs", el("pre", { tabindex: "0" }, JSON.stringify(said.inputs, null, 2))) : null,
    ),
  );
}
