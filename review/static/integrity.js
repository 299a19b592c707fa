// Run and integrity: whether every byte is what it was, and how the release was made.

import { get, later, post, session } from "./api.js";
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
const ENDS = {
  good: "Every byte is what it was.",
  "not run": "The check was stopped: nothing is known of the bytes.",
};

/** The screen. */
export async function view(_params, signal) {
  const said = await get("/api/integrity", {}, signal);
  const place = el("div", { id: "integrity" });
  const draw = (now) => {
    const start = () => {
      draw({ ...now, state: "starting", problems: [], log: {} });
      change({}, draw, signal).then((begun) => begun && follow(draw, signal));
    };
    place.replaceChildren(...state(now, start, () => change({ cancel: true }, draw, signal)));
  };
  draw(said);
  if (said.state === "running") follow(draw, signal);
  return el("div", {}, el("h1", {}, "Run and integrity"), part("Integrity", place), run(said.run ?? {}));
}

/** Begin a check or stop it; false where that was refused. */
async function change(body, draw, signal) {
  try {
    const said = await post("/api/integrity", body);
    if (!signal.aborted) draw(said);
    return true;
  } catch (error) {
    tell(`${error.message} ${error.remedy ?? ""}`, "bad");
    get("/api/integrity", {}, signal).then(draw, () => undefined);
    return false;
  }
}

async function follow(draw, signal) {
  let said;
  do {
    await new Promise((resolve) => {
      setTimeout(resolve, PAUSE);
    });
    if (signal.aborted) return;
    said = await get("/api/integrity", {}, signal);
    draw(said);
  } while (said.state === "running");
  later();
  tell(ENDS[said.state] ?? `The check ended: ${said.state}.`, said.state === "good" ? "" : "bad");
}

function state(said, start, stop) {
  const kinds = { good: "good", problems: "bad", failed: "bad" };
  const running = said.state === "running";
  const going = running || said.state === "starting";
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
      running ? button("Stop the check", stop, { id: "stop" }) : null,
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
    ),
  );
}
