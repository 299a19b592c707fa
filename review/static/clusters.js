// Clusters, and what leaks from one split into another.

import { get } from "./api.js";
import { savedLook, Tile } from "./canvas.js";
import { stack } from "./charts.js";
import { chip, count, el, empty, note, number, part, plural, table, tiles } from "./dom.js";
import { to } from "./route.js";

const SPLITS = [
  ["train", "p0"],
  ["val", "p1"],
  ["test", "p2"],
];
const SIDE = 128;

/** The screen. */
export async function view(params, signal) {
  const path = (params.path ?? "").split(",").filter(Boolean).map(Number);
  const [found, leaks] = await Promise.all([
    get("/api/clusters", { path: path.join(",") }, signal),
    path.length ? null : get("/api/leakage", {}, signal),
  ]);
  return el(
    "div",
    {},
    el("h1", {}, "Clusters and leakage"),
    leaks ? leakage(leaks, signal) : null,
    clusters(found, path, signal),
  );
}

function clusters(found, path, signal) {
  const up = path.map((_, at) => [
    " › ",
    el("a", { href: to("clusters", { path: path.slice(0, at + 1).join(",") }) }, path[at]),
  ]);
  const where = el("p", {}, el("a", { href: to("clusters") }, "All clusters"), up);
  if (!found.clusters.length)
    return part(
      "Clusters",
      where,
      empty(path.length ? "There is no cluster below this one." : "The release has no clusters."),
    );
  const cards = found.clusters.map((cluster) => card(cluster, found.levels, signal));
  const left = found.clusters_left_out
    ? note(`${plural(found.clusters_left_out, "smaller cluster")} not listed.`)
    : null;
  return part(
    "Clusters",
    path.length ? where : null,
    note("Largest first. Colours show how the kept samples lie in the splits: train, val, test."),
    el("div", { class: "panels" }, cards),
    left,
  );
}

function card(cluster, levels, signal) {
  const named = cluster.path ? cluster.path.join(" › ") : "without a cluster";
  const deeper = cluster.path && cluster.path.length < (levels ?? 0);
  const inSplits = SPLITS.reduce((sum, [name]) => sum + (cluster.splits?.[name] ?? 0), 0);
  const head = el(
    "h3",
    {},
    deeper
      ? el("a", { href: to("clusters", { path: cluster.path.join(",") }) }, `Cluster ${named}`)
      : `Cluster ${named}`,
  );
  const look = savedLook();
  const pictures = (cluster.examples ?? []).map((id) => {
    const tile = new Tile({ id, pixels: true }, SIDE);
    tile.load(look, signal);
    return el(
      "figure",
      {},
      el("a", { href: to("sample", { id }), "aria-label": `Sample ${id.slice(0, 8)}` }, tile.node),
    );
  });
  const all = cluster.path
    ? el("a", { href: to("grid", { filter: { cluster: cluster.path } }) }, plural(cluster.n, "sample"))
    : plural(cluster.n, "sample");
  return el(
    "section",
    { class: "cluster" },
    head,
    el(
      "p",
      { class: "meta" },
      all,
      `: ${count(cluster.kept)} kept, ${count(cluster.held)} held, ${count(cluster.dropped)} dropped`,
      cluster.noise ? `. Noise ${interval(cluster.noise)}` : "",
      " ",
      cluster.gate
        ? chip(
            typeof cluster.gate === "string" ? cluster.gate : JSON.stringify(cluster.gate),
            cluster.gate === "passed" ? "good" : "bad",
          )
        : null,
    ),
    stack(
      SPLITS.map(([name, kind]) => [name, cluster.splits?.[name] ?? 0, kind]),
      inSplits,
      "splits",
    ),
    pictures.length ? el("div", { class: "strip" }, pictures) : note("No pixels of this cluster are kept."),
  );
}

function interval(noise) {
  if (!Array.isArray(noise)) return number(noise);
  const [mid, low, high] = noise;
  return `${number(mid)} (${number(low)} to ${number(high)})`;
}

function leakage(said, signal) {
  const leaks = said.across_splits.map((leak) => [
    el("a", { href: to("grid", { filter: { group: leak.group } }) }, leak.group),
    ...SPLITS.map(([name]) => count(leak.splits?.[name] ?? 0)),
    leak.ids.slice(0, 3).map((id) => [el("a", { class: "mono", href: to("sample", { id }) }, id.slice(0, 8)), " "]),
  ]);
  const pairs = said.near_duplicates.slice(0, 24).map((pair) => twins(pair, signal));
  const across = said.across_n ?? leaks.length;
  return part(
    "Leakage between splits",
    tiles([
      ["Groups", count(said.groups)],
      ["Groups in several splits", count(across), across ? "a leak" : "none: no leak"],
      ["Near duplicates across splits", count(said.near_n ?? said.near_duplicates.length), "to be looked at"],
    ]),
    leaks.length
      ? table(["Group", "train", "val", "test", "Samples"], leaks, {
          caption: "Groups whose kept samples lie in several splits",
          numeric: [1, 2, 3],
        })
      : empty("No group lies in two splits."),
    el("h3", {}, "Near duplicates across splits"),
    note(said.told),
    pairs.length ? el("div", { class: "panels" }, pairs) : empty("No two kept samples of different splits look alike."),
  );
}

function twins(pair, signal) {
  const look = savedLook();
  const pictures = [pair.a, pair.b].map((id) => {
    const tile = new Tile({ id, pixels: true }, SIDE);
    tile.load(look, signal);
    return el("a", { href: to("sample", { id }), "aria-label": `Sample ${id.slice(0, 8)}` }, tile.node);
  });
  return el(
    "figure",
    {},
    el("div", { class: "pair" }, pictures),
    el("figcaption", { class: "meta" }, `${pair.splits.join(" and ")}, ${plural(pair.distance, "bit")} apart`),
  );
}
