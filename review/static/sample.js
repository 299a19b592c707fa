// One sample: its pixels and masks, all that is known of it and who says so, and what people decided.

import { get, pixels } from "./api.js";
import { band, bandWidth, bitsOf, COLOURS, mix, savedLook, Tile } from "./canvas.js";
import {
  adjudicate,
  change,
  decide,
  onKeys,
  reasonField,
  settled,
  showKeys,
  verdictButtons,
  verdictOf,
} from "./decide.js";
import {
  button,
  chip,
  count,
  details,
  el,
  empty,
  facts,
  instant,
  labelled,
  note,
  number,
  part,
  percent,
  stateChip,
  table,
  tell,
  words,
} from "./dom.js";
import { left, lookBar, PER_PAGE, still, walk, walkOn } from "./grid.js";
import { again, go, sent, to } from "./route.js";

const [SIDE, LARGE] = [512, 1280];
const KEYS = [
  ["n", "Next sample of the list"],
  ["p", "Previous sample of the list"],
  ["g", "Back to the list"],
  ["m", "Next way to see the mask"],
  ["[ ]", "Less or more opacity"],
  ["l", "Large picture"],
  ["?", "These keys"],
];

/** The screen. */
export async function view(params, signal) {
  const said = await get(`/api/sample/${encodeURIComponent(params.id ?? "")}`, {}, signal);
  const reasons = reasonField();
  let sending = "";
  const record = async (verdict) => {
    if (verdict === sending) return; // the same key twice
    sending = verdict;
    const back = () => signal.aborted && go("sample", { id: said.id });
    const done = await decide([said.id], verdict, reasons.value(), back);
    if (done) left(done.states);
    await settled();
    sending = "";
    if (done) again(signal);
  };
  const pictures = new Pictures(said, signal);
  const steps = {
    n: () => step(said.id, 1, signal),
    p: () => step(said.id, -1, signal),
    g: () => back(said.id),
    l: () => pictures.enlarge(),
    "?": () => showKeys(KEYS),
  };
  onKeys(signal, (key, event) => {
    if (steps[key]) return (steps[key](), true);
    if (verdictOf(event)) return (record(verdictOf(event)), true);
    return pictures.looks.key(key);
  });
  return el(
    "div",
    { "data-sample": said.id },
    el("h1", {}, "Sample ", el("span", { class: "mono" }, said.id)),
    el(
      "p",
      {},
      stateChip(said.state),
      stateChip(said.decision?.decision ?? "none"),
      said.decision?.split ? chip(said.decision.split) : null,
      (said.decision?.decision_reasons ?? []).map((reason) => chip(reason)),
    ),
    walkBar(said.id, signal),
    el(
      "div",
      { class: "bar" },
      verdictButtons((verdict) => record(verdict)),
      reasons.node,
      button(["Keys ", el("kbd", {}, "?")], () => showKeys(KEYS)),
    ),
    said.state === "disputed" ? dispute(said, signal) : null,
    pictures.node,
    neighbours(said, signal),
    el("div", { class: "two" }, history(said), comments(said, signal)),
    metadata(said),
  );
}

function walkBar(id, signal) {
  const at = walk.ids.indexOf(id);
  if (at < 0) return el("p", {}, el("a", { href: to("grid") }, "All samples"));
  return el(
    "div",
    { class: "bar mid" },
    button("Previous", () => step(id, -1, signal), { disabled: at + walk.offset === 0 }),
    button("Next", () => step(id, 1, signal), { disabled: at + walk.offset + 1 >= walk.total }),
    button("Back to the list", () => back(id), { class: "quiet" }),
    el("span", { class: "meta" }, `${count(walk.offset + at + 1)} of ${count(walk.total)} of the list`),
  );
}

function back(id) {
  go("grid", { filter: walk.filter, offset: walk.offset, at: id });
}

/** To the sample before or after in the list; reads another page of it where it ends. */
async function step(id, by, signal) {
  const at = walk.ids.indexOf(id) + by;
  if (walk.ids.indexOf(id) < 0 || walk.offset + at < 0 || walk.offset + at >= walk.total) return;
  if (at >= 0 && at < walk.ids.length) return void go("sample", { id: walk.ids[at] });
  if (!(await settled())) return; // a decision may take its sample out of the list
  const offset = by > 0 ? walk.offset + still() : Math.max(0, walk.offset - PER_PAGE);
  const limit = by > 0 ? PER_PAGE : walk.offset - offset;
  try {
    const page = await get("/api/page", { filter: sent(walk.filter), offset, limit }, signal);
    if (!page.samples.length) return void tell("The list ends here.");
    walkOn(walk.filter, offset, page);
    const next = walk.ids.at(by > 0 ? 0 : -1);
    if (next) go("sample", { id: next });
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message, "bad");
  }
}

class Pictures {
  constructor(said, signal) {
    Object.assign(this, { said, signal, look: savedLook(), large: false });
    this.looks = lookBar(this.look, (look) => this.tile?.draw(look));
    this.place = el("div", { class: "big" });
    const grow = button("Large picture", () => this.enlarge(), { "aria-pressed": "false", id: "large" });
    this.grow = grow;
    this.node = part("Pixels", el("div", { class: "bar mid" }, this.looks.node, grow), this.place);
    this.draw();
  }

  enlarge() {
    this.large = !this.large;
    this.grow.setAttribute("aria-pressed", String(this.large));
    this.place.className = this.large ? "one" : "big";
    this.draw();
  }

  draw() {
    const { said, signal } = this;
    const kept = said.pixels ?? {};
    if (!kept.image)
      return void this.place.replaceChildren(empty("No pixels of this sample are kept: only its row of the table."));
    const side = this.large ? LARGE : SIDE;
    this.tile = new Tile({ id: said.id, pixels: true }, side, {
      mask: kept.mask ? "mask" : "",
      label: "Picture with its mask",
    });
    const main = figure(this.tile.node, kept.mask ? "Mask of the release" : "No mask is kept", "mask");
    this.place.replaceChildren(main);
    const ready = this.tile.load(this.look, signal);
    if (!this.large)
      ready
        .then(() => this.more(kept, side))
        .catch((error) => error.name !== "AbortError" && tell(error.message, "bad"));
    return undefined;
  }

  async more(kept, side) {
    const { image, bits } = this.tile;
    if (!image || this.signal.aborted || this.large) return;
    const { width, height } = image;
    const reach = bandWidth(width, height);
    if (bits) {
      const near = band(bits, width, height, reach);
      this.place.append(
        figure(
          painted(image, (data) => mix(data, near, COLOURS.band, 0.6), "Boundary band"),
          `Boundary band: within ${reach} pixels of the contour (2 % of the diagonal)`,
          "band",
        ),
      );
    }
    if (kept.teacher_mask) await this.teacher(image, bits, side);
    else if (bits)
      this.place.append(
        el(
          "p",
          { class: "absent" },
          "No other mask is kept: the mask of the release is the one that the labeller drew, so there is no disagreement to show.",
        ),
      );
    if (kept.ignore) {
      const ignored = bitsOf(await pixels("ignore", this.said.id, side, { signal: this.signal }));
      this.place.append(
        figure(
          painted(image, (data) => mix(data, ignored, COLOURS.ignore, 0.6), "Ignored pixels"),
          "Pixels that no measure counts",
          "ignore",
        ),
      );
    }
  }

  async teacher(image, bits, side) {
    const theirs = bitsOf(await pixels("teacher", this.said.id, side, { signal: this.signal }));
    const differ = {
      mask: bits.map((bit, at) => bit & (1 - theirs[at])),
      teacher: theirs.map((bit, at) => bit & (1 - bits[at])),
    };
    const [only, other] = [differ.mask, differ.teacher].map(
      (found) => found.reduce((sum, bit) => sum + bit, 0) / found.length,
    );
    const both = (data) => {
      mix(data, differ.mask, COLOURS.mask, 0.75);
      mix(data, differ.teacher, COLOURS.teacher, 0.75);
    };
    this.place.append(
      figure(
        painted(image, (data) => mix(data, theirs, COLOURS.teacher, 0.5), "Teacher's mask"),
        "What the teacher had said, before a student's mask took its place",
        "teacher",
      ),
      figure(
        painted(image, both, "Disagreement"),
        [
          swatch("mask"),
          `only in the release ${percent(only)}`,
          " ",
          swatch("teacher"),
          `only the teacher ${percent(other)} of the picture`,
        ],
        "disagreement",
      ),
    );
  }
}

function swatch(kind) {
  return el("span", { class: `dot ${kind}`, "aria-hidden": "true" });
}

function figure(node, caption, kind) {
  return el("figure", { "data-picture": kind }, node, el("figcaption", {}, caption));
}

function painted(image, paint, label) {
  const data = new Uint8ClampedArray(image.data);
  paint(data);
  const canvas = el("canvas", { width: image.width, height: image.height, role: "img", "aria-label": label });
  canvas.getContext("2d").putImageData(new ImageData(data, image.width, image.height), 0, 0);
  return el("div", { class: "picture" }, canvas);
}

function neighbours(said, signal) {
  if (!said.neighbours?.length)
    return part("Neighbouring frames", empty("No other frame of this source is in the release."));
  const look = savedLook();
  const figures = said.neighbours.map((frame) => {
    const tile = new Tile(frame, 128);
    tile.load(look, signal);
    const time = frame.frame_pts_us === null ? "" : `${number(frame.frame_pts_us / 1e6, 4)} s · `;
    return el(
      "figure",
      {},
      el("a", { href: to("sample", { id: frame.id }), "aria-label": `Sample ${frame.id.slice(0, 8)}` }, tile.node),
      el("figcaption", {}, `${time}${frame.decision}`),
    );
  });
  return part(
    "Neighbouring frames",
    el("div", { class: "strip", tabindex: "0", role: "region", "aria-label": "Neighbouring frames" }, figures),
  );
}

function dispute(said, signal) {
  const reasons = reasonField("Why (it goes into the log)");
  let sending = false;
  const settle = async (verdict) => {
    if (sending) return;
    sending = true;
    const anew = () => again(signal);
    const done = await adjudicate(said.id, verdict, reasons.value(), said.head, anew);
    sending = false;
    if (done) anew();
  };
  return el(
    "section",
    { class: "absent", id: "adjudicate", "aria-label": "Adjudication" },
    el("p", { class: "bad" }, "Reviewers disagree. Both decisions stand until somebody adjudicates."),
    el("div", { class: "bar" }, verdictButtons(settle), reasons.node),
  );
}

/** How much of a long list is shown. */
function newest(shown, all) {
  return all > shown.length ? note(`The newest ${count(shown.length)} of ${count(all)}.`) : null;
}

function history({ history: events, history_n: all }) {
  const lines = events.map((event) =>
    el(
      "li",
      { "data-event": event.seq },
      el(
        "div",
        {},
        el("strong", {}, event.verdict ?? words(event.type)),
        " by ",
        event.reviewer,
        " ",
        chip(event.how_known),
        event.adjudicates ? chip("adjudication") : null,
        event.count > 1 ? chip(`one of ${count(event.count)}`) : null,
      ),
      el(
        "div",
        { class: "meta" },
        `event ${count(event.seq)}, ${instant(event.at)}${event.reasons?.length ? `: ${event.reasons.join(", ")}` : ""}`,
      ),
    ),
  );
  return part(
    "Decisions",
    newest(events, all),
    lines.length ? el("ol", { class: "log", id: "history" }, lines) : empty("Nobody has decided yet."),
  );
}

function comments({ id, comments: said, comments_n: all }, signal) {
  const text = el("textarea", { rows: 2, maxlength: 4000 });
  const send = async (event) => {
    event.preventDefault();
    if (text.value.trim() && (await change("/api/comment", { id, text: text.value.trim() }))) {
      tell("The comment is in the log.");
      again(signal);
    }
  };
  const lines = said.map((event) =>
    el("li", {}, el("div", {}, event.text), el("div", { class: "meta" }, `${event.reviewer}, ${instant(event.at)}`)),
  );
  return part(
    "Comments",
    newest(said, all),
    lines.length ? el("ol", { class: "log", id: "comments" }, lines) : null,
    el(
      "form",
      { class: "form", id: "comment", onsubmit: send },
      labelled("Comment (stays in the log for ever: no names of people in the picture)", text),
      el("div", {}, el("button", { type: "submit" }, "Add the comment")),
    ),
  );
}

function metadata(said) {
  const attributes = (said.attributes ?? []).map((row) => [
    words(row.name),
    row.value === null ? chip("unknown") : words(row.value),
    row.provenance,
    row.confidence === null || row.confidence === undefined ? "–" : number(row.confidence),
    row.source_id ?? "–",
  ]);
  const evidence = (said.evidence ?? []).map((row) => [
    words(row.name),
    row.value ?? "–",
    row.provenance,
    row.source_id ?? "–",
    row.confidence === null || row.confidence === undefined ? "–" : number(row.confidence),
    instant(row.recorded_at),
  ]);
  const groups = [
    ["Identity", said.identity],
    ["Label", said.label],
    ["Judge", said.judge],
    ["Decision", said.decision],
    ["Rights", said.rights],
    ["More", said.more],
  ];
  return el(
    "div",
    {},
    part(
      "Attributes",
      attributes.length
        ? table(["Attribute", "Value", "Who says", "Confidence", "Source"], attributes, {
            caption: "Winning value of each attribute",
            numeric: [3],
          })
        : empty("No attribute."),
    ),
    part(
      "Evidence",
      evidence.length
        ? table(["Name", "Value", "Who says", "Source", "Confidence", "Recorded"], evidence, {
            caption: "All that was asserted of this sample",
            numeric: [4],
          })
        : empty("Nothing else was asserted of this sample."),
    ),
    part(
      "Row of the manifest",
      el(
        "div",
        { class: "two" },
        groups.map(([title, found]) =>
          found && Object.keys(found).length
            ? details(
                title,
                facts(Object.entries(found).map(([key, value]) => [words(key), plain(value)])),
                !["Rights", "More"].includes(title),
              )
            : details(title, note("Nothing is stated.")),
        ),
      ),
    ),
  );
}

function plain(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "number") return number(value, 5);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) return value.join(", ") || "–";
  return typeof value === "object" ? el("code", {}, JSON.stringify(value)) : String(value);
}
