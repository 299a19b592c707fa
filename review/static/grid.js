// The grid: sixty samples with their masks at the size of a tile, decided by keys.

import { get } from "./api.js";
import { keepLook, MODES, savedLook, Tile } from "./canvas.js";
import { bulk, decide, onKeys, reasonField, settled, showKeys, verdictButtons, verdictOf } from "./decide.js";
import { button, chip, count, el, empty, labelled, number, plural, stateChip, tell } from "./dom.js";
import { filterBar, told } from "./filter.js";
import { again, filterOf, go, sent, to } from "./route.js";

export const PER_PAGE = 60;
const SIDE = 256;
const KEYS = [
  ["n", "Next sample"],
  ["p", "Previous sample"],
  ["← → ↑ ↓", "Move between samples"],
  ["Enter", "Open the sample"],
  ["Space", "Choose or leave out the sample; with Shift, all from the one before"],
  ["Esc", "Choose none"],
  ["m", "Next way to see the mask"],
  ["[ ]", "Less or more opacity"],
  ["?", "These keys"],
];

/** The walk that the sample screen goes on with: what was listed, where, and what a decision took out of the list. */
export const walk = { filter: {}, offset: 0, total: 0, ids: [], gone: new Set() };

/** Go on with another page of a list. */
export function walkOn(filter, offset, page) {
  Object.assign(walk, { filter, offset, total: page.total, ids: page.samples.map(({ id }) => id), gone: new Set() });
}

/** Note the states of decided samples: a list by review state may have lost them. */
export function left(states) {
  const listed = walk.filter.state;
  for (const [id, state] of Object.entries(states)) {
    if (!listed?.length || listed.includes(state)) walk.gone.delete(id);
    else if (walk.ids.includes(id)) walk.gone.add(id);
  }
}

/** How many samples of the page its list still holds: the next page begins after them. */
export function still() {
  return walk.ids.length - walk.gone.size;
}

/** Controls for how masks are seen; `changed` is called with the look. */
export function lookBar(look, changed) {
  const range = el("input", { type: "range", min: 0, max: 100, value: String(Math.round(100 * look.opacity)) });
  const buttons = MODES.map((mode) =>
    button(mode[0].toUpperCase() + mode.slice(1), () => set({ mode }), { "data-mode": mode }),
  );
  const show = () => {
    for (const node of buttons) node.setAttribute("aria-pressed", String(node.dataset.mode === look.mode));
    range.disabled = look.mode !== "overlay";
    range.value = String(Math.round(100 * look.opacity));
  };
  const set = (part) => {
    Object.assign(look, part);
    keepLook(look);
    show();
    changed(look);
  };
  range.addEventListener("input", () => set({ opacity: Number(range.value) / 100 }));
  show();
  const node = el(
    "div",
    { class: "bar mid" },
    el("div", { class: "choice", role: "group", "aria-label": "Mask" }, buttons),
    labelled("Opacity", range),
  );
  const key = (pressed) => {
    if (pressed === "m") set({ mode: MODES[(MODES.indexOf(look.mode) + 1) % MODES.length] });
    else if (pressed === "[" || pressed === "]")
      set({ opacity: Math.min(1, Math.max(0, look.opacity + (pressed === "]" ? 0.1 : -0.1))) });
    else return false;
    return true;
  };
  return { node, key };
}

/** The screen. */
export async function view(params, signal) {
  const filter = filterOf(params);
  const offset = Math.max(0, Math.floor(Number(params.offset) || 0));
  const page = await get("/api/page", { filter: sent(filter), offset, limit: PER_PAGE }, signal);
  walkOn(filter, offset, page);
  const grid = new Grid(page, filter, signal, params.at);
  return el("div", {}, el("h1", {}, "Samples"), grid.head(), grid.node, grid.pager());
}

class Grid {
  constructor(page, filter, signal, at) {
    Object.assign(this, { page, filter, signal });
    this.samples = page.samples;
    this.look = savedLook();
    this.at = at === "last" ? this.samples.length - 1 : Math.max(0, walk.ids.indexOf(at));
    this.spent = false;
    this.upto = page.head;
    this.anchor = this.at;
    this.chosen = new Set();
    this.reasons = reasonField();
    this.tiles = this.samples.map((sample) => new Tile(sample, SIDE));
    this.cards = this.samples.map((sample, k) => this.card(sample, k));
    this.node = this.samples.length
      ? el("ul", { class: "grid", "aria-label": "Samples" }, this.cards)
      : empty(
          page.total
            ? "There is no page so far back."
            : "No sample matches this filter. Remove a condition to see more.",
        );
    this.looks = lookBar(this.look, (look) => this.tiles.forEach((tile) => tile.draw(look)));
    this.selection = el("span", { class: "meta" });
    this.tiles.forEach((tile) => tile.load(this.look, signal));
    onKeys(signal, (key, event) => this.key(key, event));
    this.mark();
    requestAnimationFrame(() => this.cards[this.at]?.scrollIntoView({ block: "nearest" }));
  }

  head() {
    const { total } = this.page;
    const apply = (filter) => go("grid", { filter });
    const all = button(`Decide all ${count(total)}…`, () => this.bulk(), {
      disabled: total === 0,
      "data-bulk": "open",
    });
    return el(
      "div",
      { class: "lead" },
      filterBar(this.filter, apply),
      el(
        "div",
        { class: "bar" },
        this.looks.node,
        button(["Keys ", el("kbd", {}, "?")], () => showKeys(KEYS)),
      ),
      el(
        "div",
        { class: "bar" },
        verdictButtons((verdict) => this.decide(verdict)),
        this.reasons.node,
        all,
      ),
      el(
        "p",
        { class: "bar mid" },
        el("strong", { "data-total": total }, plural(total, "sample")),
        this.selection,
        this.pager(),
      ),
    );
  }

  pager() {
    const { offset, total } = this.page;
    if (total <= PER_PAGE && offset === 0) return null;
    const last = Math.min(offset + this.samples.length, total);
    return el(
      "span",
      { class: "bar mid" },
      button("Previous page", () => this.turn(-1), { disabled: offset === 0 }),
      el("span", { class: "meta" }, this.samples.length ? `${count(offset + 1)} to ${count(last)}` : ""),
      button("Next page", () => this.turn(1), { disabled: last >= total }),
    );
  }

  card(sample, k) {
    const pick = el("input", {
      type: "checkbox",
      "aria-label": `Choose sample ${sample.id.slice(0, 8)}`,
      onclick: (event) => this.choose(k, event.shiftKey),
    });
    const href = to("sample", { id: sample.id });
    const open = el("a", { href, class: "mono", onfocus: () => this.mark(k) }, sample.id.slice(0, 10));
    this.tiles[k].node.addEventListener("click", (event) => {
      this.mark(k);
      if (event.shiftKey) this.choose(k, true);
      else if (event.ctrlKey || event.metaKey) this.choose(k, false);
    });
    this.tiles[k].node.addEventListener("dblclick", () => go("sample", { id: sample.id }));
    const footer = el("footer", {});
    const node = el(
      "li",
      { class: "tile", "data-id": sample.id },
      this.tiles[k].node,
      el("span", { class: "pick" }, pick),
      footer,
    );
    node.redraw = () => {
      footer.replaceChildren(
        el("div", {}, open, " ", sample.state === "undecided" ? null : stateChip(sample.state)),
        el(
          "div",
          { class: "meta" },
          [sample.decision, sample.split, sample.label_source === "pseudo" ? null : sample.label_source]
            .filter((text, at, all) => text && all.indexOf(text) === at)
            .join(" · "),
        ),
        el("div", { class: "meta" }, facts(sample)),
        el(
          "div",
          {},
          (sample.reasons ?? []).map((reason) => chip(reason)),
        ),
      );
      node.dataset.state = sample.state;
    };
    node.redraw();
    node.pick = pick;
    return node;
  }

  mark(k = this.at) {
    this.spent = false;
    this.cards[this.at]?.classList.remove("at");
    this.at = Math.min(Math.max(0, k), Math.max(0, this.cards.length - 1));
    this.cards[this.at]?.classList.add("at");
  }

  /** Go to a sample and let a screen reader hear it. */
  move(k) {
    const { offset, total } = this.page;
    this.mark(k);
    if (k < 0) return void (offset > 0 && this.turn(-1, "last"));
    if (k >= this.cards.length) return void (offset + this.samples.length < total && this.turn(1));
    this.cards[k].querySelector("a").focus({ preventScroll: true });
    this.cards[k].scrollIntoView({ block: "nearest" });
    return undefined;
  }

  choose(k, all) {
    const [from, upto] = all ? [Math.min(this.anchor, k), Math.max(this.anchor, k)] : [k, k];
    const on = all || !this.chosen.has(k);
    for (let at = from; at <= upto; at += 1) {
      if (on) this.chosen.add(at);
      else this.chosen.delete(at);
      this.cards[at].pick.checked = on;
      this.cards[at].classList.toggle("chosen", on);
    }
    this.anchor = k;
    this.mark(k);
    this.selection.textContent = this.chosen.size
      ? `${plural(this.chosen.size, "sample")} chosen: a verdict is for all of them`
      : "";
  }

  none() {
    for (const k of [...this.chosen]) this.choose(k, false);
  }

  /** Decide what is chosen now, or the sample at the cursor, and go on at once: the answer finds its own samples. */
  decide(verdict) {
    if (!this.cards.length || this.turning) return;
    if (this.spent && !this.chosen.size)
      return void tell("The sample at the cursor has just been decided. Move to one first (n, p, arrows).", "bad");
    const [at, many] = [this.at, [...this.chosen].sort((a, b) => a - b)];
    const which = many.length ? many : [at];
    for (const k of which) this.cards[k].classList.add("sending");
    const ids = which.map((k) => this.samples[k].id);
    decide(ids, verdict, this.reasons.value(), () => this.back(at, many)).then((said) => this.answered(said, which));
    if (many.length) this.none();
    else if (at + 1 < this.cards.length) return void this.move(at + 1);
    this.spent = true;
    return undefined;
  }

  answered(said, which) {
    for (const k of which) this.cards[k].classList.remove("sending");
    if (!said) return;
    if (said.seq === this.upto + 1) this.upto = said.seq; // else somebody decided in between
    for (const k of which) {
      this.samples[k].state = said.states[this.samples[k].id];
      this.cards[k].redraw();
    }
    left(said.states);
  }

  /** Back to where the first of the decisions was made that did not come about. */
  back(at, many) {
    if (this.signal.aborted)
      return void go("grid", { filter: this.filter, offset: this.page.offset, at: this.samples[at].id });
    this.none();
    for (const k of many) this.choose(k, false);
    this.move(at);
    return undefined;
  }

  async bulk() {
    if (!(await settled())) return;
    const filter = unsorted(this.filter);
    const now = await get("/api/page", { filter: sent(filter), limit: 1 }, this.signal);
    if (filter.state?.length && now.head !== this.upto) {
      tell("Others decided meanwhile; this is the list as it is now.", "bad");
      again(this.signal);
    } else if (await bulk(filter, now, told(filter))) again(this.signal);
  }

  /** The next page begins after what still matches: samples decided here may have left a filter by state. */
  async turn(direction, at = "") {
    if (this.turning) return;
    this.turning = true;
    const whole = await settled();
    this.turning = false;
    if (!whole || this.signal.aborted) return;
    const offset = direction > 0 ? this.page.offset + still() : Math.max(0, this.page.offset - PER_PAGE);
    if (direction > 0 && still() === 0) again(this.signal);
    else go("grid", { filter: this.filter, offset, at });
  }

  key(key, event) {
    const columns = Math.max(1, this.node.children ? columnsOf(this.node) : 1);
    const steps = { n: 1, p: -1, ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    if (key in steps && !(event.target.type === "range")) return (this.move(this.at + steps[key]), true);
    if (verdictOf(event)) return (this.decide(verdictOf(event)), true);
    if (this.looks.key(key)) return true;
    return this.other(key, event);
  }

  other(key, event) {
    if (key === "?") return (showKeys(KEYS), true);
    if (key === "Escape") return (this.none(), tell(""), true);
    if (event.target.closest("button, summary, a:not(.tile a), input")) return false;
    if (key === " " && this.cards.length) return (this.choose(this.at, event.shiftKey), true);
    if (key === "Enter" && this.cards.length) return (go("sample", { id: this.samples[this.at].id }), true);
    return false;
  }
}

function columnsOf(node) {
  return getComputedStyle(node).gridTemplateColumns.split(" ").length;
}

function unsorted({ sort: _, descending: __, ...filter }) {
  return filter;
}

function facts(sample) {
  const found = [
    ["q", sample.q],
    ["confidence", sample.label_confidence],
    ["student IoU", sample.student_iou],
  ];
  return found
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => `${name} ${number(value)}`)
    .join(" · ");
}
