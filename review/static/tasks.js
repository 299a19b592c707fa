// Review tasks: a blind random sample worked through by hand, judged again by a second person, and the disputes.

import { get, reviewer, session } from "./api.js";
import { savedLook, Tile } from "./canvas.js";
import { change, named, onKeys, reasonField, showKeys } from "./decide.js";
import {
  button,
  chip,
  count,
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
  tell,
  tiles,
} from "./dom.js";
import { lookBar } from "./grid.js";
import { again, filterOf, go, sent, to } from "./route.js";

const KEYS = [
  ["g", "Good: the mask is right"],
  ["d", "Defect: the mask is wrong"],
  ["m", "Next way to see the mask"],
  ["[ ]", "Less or more opacity"],
  ["?", "These keys"],
];
const SIDE = 768;

/** The screen: all tasks, or one of them where the address names it. */
export async function view(params, signal) {
  return params.task === undefined ? list(params, signal) : work(Number(params.task), signal);
}

async function list(params, signal) {
  const [tasks, disputed] = await Promise.all([
    get("/api/tasks", {}, signal),
    get("/api/page", { filter: sent({ state: ["disputed"] }), limit: 60 }, signal),
  ]);
  return el(
    "div",
    {},
    el("h1", {}, "Review tasks"),
    part(
      "Tasks",
      tasks.length
        ? overview(tasks)
        : empty("No task yet. A blind audit of a random sample says how many masks are wrong."),
    ),
    part("Disputes", disputes(disputed, signal)),
    session()?.read_only ? null : creation(tasks, filterOf(params)),
  );
}

function overview(tasks) {
  const rows = tasks.map((task) => [
    el("a", { href: to("tasks", { task: String(task.seq) }), "data-task": task.seq }, task.title),
    task.kind,
    `${count(task.done)} of ${count(task.size)}`,
    ...(task.hidden
      ? ["hidden", "told when you have judged all", "hidden"]
      : [count(task.defects), rate(task), agreement(task.agreement)]),
  ]);
  return table(["Task", "Kind", "Done", "Defects", "Defect rate", "Agreement"], rows, {
    caption: "Blind samples of this release",
    numeric: [2, 3],
  });
}

function rate(task) {
  if (!task.done) return "–";
  const [low, high] = task.interval ?? [null, null];
  return `${percent(task.rate)}${high === null ? "" : ` (95 %: ${percent(low)} to ${percent(high)})`}`;
}

function agreement(found) {
  if (!found?.both) return "–";
  return `${percent(found.share)} of ${count(found.both)}${found.kappa === null ? "" : `, kappa ${number(found.kappa)}`}`;
}

function disputes(page, signal) {
  if (!page.total) return empty("No sample is disputed.");
  const look = savedLook();
  const figures = page.samples.map((sample) => {
    const tile = new Tile(sample, 128);
    tile.load(look, signal);
    return el(
      "figure",
      {},
      el(
        "a",
        {
          href: to("sample", { id: sample.id }),
          "data-dispute": sample.id,
          "aria-label": `Sample ${sample.id.slice(0, 8)}`,
        },
        tile.node,
      ),
      el("figcaption", { class: "mono" }, sample.id.slice(0, 8)),
    );
  });
  return [
    el("p", {}, plural(page.total, "sample"), " on which reviewers disagree. Open one to adjudicate."),
    el("div", { class: "strip", id: "disputes" }, figures),
    el("p", {}, el("a", { href: to("grid", { filter: { state: ["disputed"] } }) }, "All of them")),
  ];
}

function creation(tasks, filter) {
  const audits = tasks.filter((task) => task.kind === "audit");
  const title = el("input", { type: "text", maxlength: 200, name: "title" });
  const size = el("input", { type: "number", min: 1, max: 100000, value: "60", name: "size" });
  const seed = el("input", { type: "number", min: 0, value: "0", name: "seed" });
  const of = select(
    [
      ["", "a new random sample (audit)"],
      ...audits.map((task) => [String(task.seq), `again: ${task.title} (overlap)`]),
    ],
    "",
  );
  const decision = select(
    [
      ["", "all samples"],
      ["keep", "kept"],
      ["hold", "held"],
      ["drop", "dropped"],
    ],
    filter.decision?.[0] ?? "keep",
  );
  const send = async (event) => {
    event.preventDefault();
    const body = {
      title: title.value.trim() || `Audit of ${size.value}`,
      size: Number(size.value),
      seed: Number(seed.value),
    };
    const kind = of.value
      ? { kind: "overlap", of_task: Number(of.value) }
      : { kind: "audit", filter: { ...filter, ...(decision.value ? { decision: [decision.value] } : {}) } };
    const done = await change("/api/tasks", { ...body, ...kind });
    if (!done) return;
    tell("The sample is drawn; its list is frozen.");
    go("tasks", { task: String(done.seq) });
  };
  return part(
    "New task",
    el(
      "form",
      { class: "form", id: "task", onsubmit: send, novalidate: true },
      labelled("Title", title),
      labelled("Draw from", of),
      labelled("Of", decision),
      labelled("How many", size),
      labelled("Seed", seed),
      el("div", {}, el("button", { type: "submit", class: "main" }, "Draw the sample")),
    ),
    note(
      "No defect in n samples bounds the rate of defects at about 3/n (95 %): 60 samples without one show at most 5 %. ",
      "An overlap draws from the samples of an audit, for another reviewer, and gives the agreement of both.",
    ),
  );
}

async function work(seq, signal) {
  const task = await get(`/api/tasks/${seq}`, {}, signal);
  if (!reviewer()) {
    const begin = async () => (await named()) && again(signal);
    return el(
      "div",
      {},
      el("h1", {}, task.title),
      empty("Say who you are first: the samples that you have judged are not shown again."),
      button("Give my name", begin, { class: "main" }),
    );
  }
  const waiting = task.next;
  const place = el("div", { id: "work" });
  const node = el(
    "div",
    {},
    el("h1", {}, task.title),
    el("p", {}, el("a", { href: to("tasks") }, "All tasks")),
    figures(task),
    place,
  );
  if (waiting.length) place.replaceChildren(...one(task, waiting[0], signal));
  else
    place.append(
      el(
        "p",
        { class: "absent", id: "done" },
        task.mine >= task.size
          ? "You have judged every sample of this task."
          : "No sample of this task is left for you.",
      ),
    );
  return node;
}

/** What came of a task; the server hides it from somebody who still judges: the task is blind. */
function figures(task) {
  const mine = ["Done by you", `${count(task.mine)} of ${count(task.size)}`, task.kind];
  if (task.hidden) return el("div", { id: "figures" }, tiles([mine]));
  return el(
    "div",
    { id: "figures" },
    tiles([
      mine,
      ["Judged", count(task.done), plural(task.defects, "defect")],
      [
        "Defect rate",
        task.done ? percent(task.rate) : "–",
        task.done && task.interval ? `95 %: ${percent(task.interval[0])} to ${percent(task.interval[1])}` : "",
      ],
      ...(task.agreement ? [["Agreement", agreement(task.agreement), task.agreement.told]] : []),
    ]),
    note(task.told),
    task.differ?.length
      ? el(
          "p",
          {},
          "Judged differently: ",
          task.differ
            .slice(0, 50)
            .map((id) => [el("a", { class: "mono", href: to("sample", { id }) }, id.slice(0, 8)), " "]),
        )
      : null,
  );
}

function one(task, id, signal) {
  const look = savedLook();
  const tile = new Tile({ id, pixels: true }, SIDE, { label: "Picture with the mask to judge" });
  tile.load(look, signal);
  const looks = lookBar(look, (now) => tile.draw(now));
  const reasons = reasonField("What is wrong (for a defect)");
  let sending = false;
  const record = async (verdict) => {
    if (sending) return;
    sending = true;
    const done = await change(`/api/tasks/${task.seq}/result`, {
      id,
      verdict,
      reasons: verdict === "defect" ? reasons.value() : [],
    });
    sending = false;
    if (done) again(signal);
  };
  onKeys(signal, (key, { repeat }) => {
    if (key === "g" && !repeat) return (record("good"), true);
    if (key === "d" && !repeat) return (record("defect"), true);
    if (key === "?") return (showKeys(KEYS), true);
    return looks.key(key);
  });
  return [
    el("p", {}, chip("blind"), "What others and the judge said of this sample is not shown."),
    el("div", { class: "bar mid" }, looks.node),
    el(
      "div",
      { class: "bar" },
      el(
        "div",
        { class: "choice", role: "group", "aria-label": "Result" },
        button(["Good ", el("kbd", {}, "g")], () => record("good"), { "data-result": "good" }),
        button(["Defect ", el("kbd", {}, "d")], () => record("defect"), { "data-result": "defect" }),
      ),
      reasons.node,
      button(["Keys ", el("kbd", {}, "?")], () => showKeys(KEYS)),
    ),
    el("figure", { class: "one", "data-work": id }, tile.node),
  ];
}
