// The filter of a list of samples: what holds now as chips, and a form that adds to it.

import { get } from "./api.js";
import { button, el, labelled, number, select, words } from "./dom.js";
import { sent } from "./route.js";

const LISTS = {
  decision: ["keep", "hold", "drop"],
  split: ["train", "val", "test", "hold", "dropped"],
  state: ["undecided", "approve", "reject", "hold", "redraw", "disputed"],
  label_source: ["pseudo", "human", "human_corrected", "none"],
  verdict: ["keep", "drop", "hold", "correct", "weight", "none"],
};
/** Columns of numbers that can be filtered and drawn. */
export const NUMBERS = [
  "label_confidence",
  "boundary_uncertainty",
  "student_iou",
  "student_boundary_iou",
  "temporal_iou",
  "q",
  "miss",
  "extra",
  "stability",
  "mask_area_share",
  "mask_components",
  "n_persons",
  "cluster_distance",
  "sampling_weight",
];
const UNKNOWN = "\u0000unknown";
const TITLES = { state: "review state", verdict: "judge's verdict" };
let known = null;

/** Attributes of the release with their values, read once. */
export async function attributes() {
  known ??= get("/api/coverage").then((said) => said.attributes);
  return known.catch((error) => {
    known = null;
    throw error;
  });
}

/** A filter in words, one per condition: [[text, filter without it], …]. */
export function conditions(filter) {
  const found = [];
  const without = (key) => {
    const { [key]: _, ...rest } = filter;
    return rest;
  };
  for (const key of [...Object.keys(LISTS), "reason"]) {
    if (filter[key]?.length) found.push([`${TITLES[key] ?? words(key)}: ${filter[key].join(" or ")}`, without(key)]);
  }
  for (const [name, values] of Object.entries(filter.attr ?? {})) {
    found.push([
      `${words(name)}: ${values.map((value) => value ?? "unknown").join(" or ")}`,
      drop(filter, "attr", name),
    ]);
  }
  for (const [column, [low, high]] of Object.entries(filter.range ?? {})) {
    found.push([`${words(column)}: ${range(low, high)}`, drop(filter, "range", column)]);
  }
  if (filter.cluster?.length) found.push([`cluster: ${filter.cluster.join(" › ")}`, without("cluster")]);
  for (const key of ["cell", "group", "id"]) if (filter[key]) found.push([`${key}: ${filter[key]}`, without(key)]);
  return found;
}

function drop(filter, key, name) {
  const { [name]: _, ...rest } = filter[key];
  const { [key]: __, ...others } = filter;
  return Object.keys(rest).length ? { ...others, [key]: rest } : others;
}

function range(low, high) {
  if (low === null) return `below ${number(high, 4)}`;
  if (high === null) return `from ${number(low, 4)}`;
  return `${number(low, 4)} to ${number(high, 4)}`;
}

/** The filter in one line of words. */
export function told(filter) {
  return (
    conditions(filter)
      .map(([text]) => text)
      .join("; ") || "all samples"
  );
}

/** Chips, a form to add a condition, and the order. `apply` is called with the new filter. */
export function filterBar(filter, apply) {
  const chips = conditions(filter).map(([text, rest]) =>
    el(
      "span",
      { class: "chip" },
      text,
      button("×", () => apply(rest), { "aria-label": `Remove ${text}` }),
    ),
  );
  const clear = chips.length > 1 ? button("Remove all", () => apply(order(filter)), { class: "quiet" }) : null;
  const columns = [["", "sample id"], ...NUMBERS.map((name) => [name, words(name)])];
  const sort = select(columns, filter.sort ?? "", (value) => {
    const { sort: _, descending: __, ...rest } = filter;
    apply(value ? { ...rest, sort: value, ...(filter.descending ? { descending: true } : {}) } : rest);
  });
  const down = el("input", {
    type: "checkbox",
    checked: Boolean(filter.descending),
    onchange: () => {
      const { descending: _, ...rest } = filter;
      apply(down.checked ? { ...rest, descending: true } : rest);
    },
  });
  return el(
    "div",
    { class: "filters" },
    el(
      "div",
      { class: "bar mid" },
      chips.length ? [chips, clear] : el("span", { class: "meta" }, "No filter: all samples"),
    ),
    el(
      "details",
      {},
      el("summary", {}, "Add a filter, sort"),
      el(
        "div",
        { class: "bar" },
        adder(filter, apply),
        labelled("Sort by", sort),
        labelled("Largest first", down, "tick"),
      ),
    ),
  );
}

function order(filter) {
  return { ...(filter.sort ? { sort: filter.sort } : {}), ...(filter.descending ? { descending: true } : {}) };
}

function adder(filter, apply) {
  const fields = [
    ...Object.keys(LISTS).map((key) => [key, TITLES[key] ?? words(key)]),
    ["reason", "reason"],
    ["attr", "attribute"],
    ["range", "range of a number"],
    ["id", "sample id"],
    ["group", "group"],
  ];
  const place = el("div", { class: "bar" });
  const pick = select(fields, "state", (key) => show(key));
  const show = async (key) => {
    const add = (value) => value !== null && apply({ ...filter, [key]: value });
    place.replaceChildren(...(await controls(key, filter, add)));
  };
  show("state");
  return el("div", { class: "bar" }, labelled("Filter by", pick), place);
}

async function controls(key, filter, add) {
  if (LISTS[key]) return listControls(LISTS[key], (value) => add([...new Set([...(filter[key] ?? []), value])]));
  if (key === "attr") return attributeControls(filter, add);
  if (key === "range") return rangeControls(filter, add);
  const input = el("input", { type: "text", autocomplete: "off" });
  const one = () => {
    const value = input.value.trim();
    if (value) add(key === "reason" ? [...(filter.reason ?? []), value] : value);
  };
  return [labelled(key === "id" ? "Begins with" : "Is", input), button("Add", one)];
}

function listControls(options, add) {
  const value = select(options, options[0]);
  return [labelled("Is", value), button("Add", () => add(value.value))];
}

async function attributeControls(filter, add) {
  const all = await attributes();
  const value = el("select");
  const fill = (name) => {
    const found = all.find((attribute) => attribute.name === name)?.values ?? [];
    const named = found
      .filter((entry) => entry.value !== null && entry.value !== "unknown")
      .map((entry) => [entry.value, words(entry.value)]);
    value.replaceChildren(...select([...named, [UNKNOWN, "unknown"]], "").children);
  };
  const name = select(
    all.map((attribute) => [attribute.name, words(attribute.name)]),
    all[0]?.name,
    fill,
  );
  fill(all[0]?.name);
  const one = () => {
    const chosen = value.value === UNKNOWN ? null : value.value;
    const before = filter.attr?.[name.value] ?? [];
    add({ ...filter.attr, [name.value]: [...new Set([...before, chosen])] });
  };
  return [labelled("Attribute", name), labelled("Is", value), button("Add", one)];
}

function rangeControls(filter, add) {
  const column = select(
    NUMBERS.map((name) => [name, words(name)]),
    NUMBERS[0],
  );
  const [low, high] = ["From", "To below"].map((text) => [text, el("input", { type: "number", step: "any", size: 6 })]);
  const bound = (input) => (input.value === "" ? null : Number(input.value));
  const one = () => {
    const [from, to] = [bound(low[1]), bound(high[1])];
    if (from !== null || to !== null) add({ ...filter.range, [column.value]: [from, to] });
  };
  return [labelled("Number", column), labelled(...low), labelled(...high), button("Add", one)];
}

/** How many samples a filter finds. */
export async function found(filter, signal) {
  return (await get("/api/page", { filter: sent(filter), offset: 0, limit: 1 }, signal)).total;
}
