// Elements by construction: every text enters as a text node, so no name from a release can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; `marks` are attributes, `on…` listeners and `class`; children are nodes, texts, lists or null. */
export function el(name, marks = {}, ...children) {
  return filled(document.createElement(name), marks, children);
}

/** An element of SVG. */
export function svg(name, marks = {}, ...children) {
  return filled(document.createElementNS(SVG, name), marks, children);
}

function filled(node, marks, children) {
  for (const [key, value] of Object.entries(marks)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "value" && "value" in node) node.value = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  add(node, children);
  return node;
}

/** Append nodes and texts, lists of them unrolled, null left out. */
export function add(node, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : clean(String(child)));
  }
  return node;
}

/** Put something in the place of all that a node holds. */
export function replace(node, ...children) {
  node.replaceChildren();
  return add(node, children);
}

/** Text without control characters and marks that turn the direction of what follows. */
export function clean(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}]/gu, (c) => (c === "\n" || c === "\t" ? c : "·"));
}

const WHOLE = new Intl.NumberFormat("en-GB");
const NONE = "–";

/** A count with separators of thousands. */
export function count(n) {
  return n === null || n === undefined ? NONE : WHOLE.format(n);
}

/** A number in at most `digits` significant digits. */
export function number(value, digits = 3) {
  if (value === null || value === undefined) return NONE;
  if (Number.isInteger(value)) return WHOLE.format(value);
  return new Intl.NumberFormat("en-GB", { maximumSignificantDigits: digits }).format(value);
}

/** A share as percent. */
export function percent(value, digits = 1) {
  return value === null || value === undefined ? NONE : `${(100 * value).toFixed(digits)} %`;
}

/** An instant as its day and minute in UTC. */
export function instant(text) {
  return text ? `${String(text).slice(0, 16).replace("T", " ")} UTC` : NONE;
}

/** Bytes in the unit that reads best. */
export function bytes(n) {
  if (n === null || n === undefined) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const at = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, n)) / 3));
  return `${number(n / 1000 ** at)} ${units[at]}`;
}

/** "1 sample", "2 samples". */
export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** A name of a column in words. */
export function words(name) {
  return String(name)
    .replaceAll("_", " ")
    .replace(/\biou\b/, "IoU");
}

/** A short mark beside a name. */
export function chip(text, kind = "") {
  return el("span", { class: `chip ${kind}`.trim() }, text);
}

/** A mark for the review state or the decision of a sample. */
export function stateChip(state) {
  const kind = { approve: "good", reject: "bad", disputed: "bad", drop: "bad", keep: "good" }[state] ?? "";
  return chip(state, kind);
}

/** A table in a frame that scrolls by itself; cells of `numeric` columns stand right. */
export function table(head, rows, { caption, numeric = [], class: kind = "" }) {
  const mark = (at) => (numeric.includes(at) ? "n" : null);
  const top = el(
    "tr",
    {},
    head.map((cell, at) => el("th", { scope: "col", class: mark(at) }, cell)),
  );
  const body = rows.map(([first, ...rest]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, first),
      rest.map((cell, at) => celled(cell, mark(at + 1))),
    ),
  );
  const inner = el(
    "table",
    { class: kind || null },
    el("caption", {}, caption),
    el("thead", {}, top),
    el("tbody", {}, body),
  );
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, inner);
}

function celled(cell, kind) {
  if (cell instanceof HTMLTableCellElement) return cell;
  return el("td", { class: kind }, cell);
}

/** Figures side by side: [name, value, remark]. */
export function tiles(figures) {
  return el(
    "dl",
    { class: "tiles" },
    figures.map(([name, value, remark]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value, remark ? el("small", {}, remark) : null)),
    ),
  );
}

/** Names and values below each other. */
export function facts(pairs) {
  return el(
    "dl",
    { class: "facts" },
    pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value ?? NONE)]),
  );
}

/** A part that can be folded away. */
export function details(summary, children, open = false) {
  return el("details", { open }, el("summary", {}, summary), children);
}

/** A part of a screen. */
export function part(title, ...children) {
  return el("section", { class: "part" }, el("h2", {}, title), children);
}

/** How to read what follows. */
export function note(...children) {
  return el("p", { class: "note" }, children);
}

/** Why there is nothing to show. */
export function empty(reason) {
  return el("p", { class: "absent" }, reason);
}

/** A button that does something on this page. */
export function button(text, onclick, marks = {}) {
  return el("button", { type: "button", onclick, ...marks }, text);
}

let names = 0;

/** A control with its label. */
export function labelled(text, control, kind = "field") {
  control.id ||= `control-${(names += 1)}`;
  return el("div", { class: kind }, el("label", { for: control.id }, text), control);
}

/** A list to choose from: options are texts or [value, text]. */
export function select(options, value, onchange) {
  const node = el("select", { onchange: (event) => onchange?.(event.target.value) });
  add(
    node,
    options.map((option) => {
      const [key, text] = Array.isArray(option) ? option : [option, option];
      return el("option", { value: key, selected: key === value }, text);
    }),
  );
  return node;
}

/** A dialog; resolves with the value that `close` was called with, or null when the person leaves it. */
export function ask(title, build) {
  return new Promise((resolve) => {
    let answer = null;
    const before = document.activeElement;
    const dialog = el("dialog", { "aria-label": title });
    const close = (value) => {
      answer = value;
      dialog.close();
    };
    add(dialog, [el("h2", {}, title), build(close)]);
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Say what happened, to the eye and to a screen reader. */
export function tell(text, kind = "") {
  const place = document.getElementById("told");
  place.className = `told ${kind}`.trim();
  replace(place, text, text ? button("Close", () => tell(""), { class: "quiet" }) : null);
  clearTimeout(tell.timer);
  if (text && kind !== "bad") tell.timer = setTimeout(() => tell(""), 8000);
}
