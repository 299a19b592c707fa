// The frame of the page: which screen, its loading, failed and stale states, who reviews, and the navigation.

import { follow, later, refresh, reviewer, session, takeToken, watch } from "./api.js";
import { askName } from "./decide.js";
import { button, chip, el, replace, tell } from "./dom.js";
import { here, to } from "./route.js";
import * as bias from "./bias.js";
import * as clusters from "./clusters.js";
import * as compare from "./compare.js";
import * as coverage from "./coverage.js";
import * as grid from "./grid.js";
import * as held from "./held.js";
import * as integrity from "./integrity.js";
import * as overview from "./overview.js";
import * as quality from "./quality.js";
import * as rights from "./rights.js";
import * as sample from "./sample.js";
import * as signoff from "./signoff.js";
import * as tasks from "./tasks.js";

/** The screens: name in the address, title, and the module whose `view` builds it. */
const SCREENS = [
  ["overview", "Overview and gate", overview],
  ["coverage", "Coverage", coverage],
  ["bias", "Filter bias", bias],
  ["quality", "Label quality", quality],
  ["grid", "Samples", grid],
  ["held", "Dropped and held", held],
  ["clusters", "Clusters and leakage", clusters],
  ["rights", "Rights", rights],
  ["compare", "Compare", compare],
  ["tasks", "Review tasks", tasks],
  ["signoff", "Sign-off", signoff],
  ["integrity", "Run and integrity", integrity],
];
const HIDDEN = [["sample", "Sample", sample, "grid"]];
let left = new AbortController();

function drawTop(said, stale) {
  const name = reviewer();
  const who = said?.read_only
    ? chip("read only")
    : button(name ? `Reviewer: ${name}` : "Name the reviewer", askName, { id: "reviewer" });
  replace(
    document.getElementById("top"),
    el(
      "div",
      { class: "head" },
      el("strong", {}, said ? said.release : "Review"),
      said ? el("code", { title: said.fingerprint }, said.fingerprint.slice(0, 12)) : null,
      said && said.name !== said.release ? el("span", { class: "meta" }, said.name) : null,
      el(
        "span",
        { class: "who" },
        name && said && !said.read_only
          ? el("span", { class: "meta", id: "who" }, `decides in every tab of this browser; ${said.how_known}`)
          : null,
        said ? who : null,
      ),
    ),
  );
  drawBanners(said, stale);
}

function drawBanners(said, stale) {
  const found = [];
  if (stale) {
    found.push(
      el(
        "div",
        { class: "banner bad", role: "alert", id: "changed" },
        el("strong", {}, "The bytes changed."),
        ` ${stale} What this page shows is no longer on disk, and no sign-off holds. Start curate review again on the release that is there now.`,
      ),
    );
  }
  if (said?.changed?.length && !stale) {
    found.push(
      el(
        "div",
        { class: "banner bad", role: "alert", id: "written" },
        el("strong", {}, "Files were written to since the release was opened: "),
        said.changed.slice(0, 3).join(", "),
        said.changed.length > 3 ? ` and ${said.changed.length - 3} more` : "",
        ". Nothing can be decided and no sign-off holds until ",
        el("a", { href: to("integrity") }, "the integrity check"),
        " shows that the bytes are the same.",
      ),
    );
  }
  if (said?.newer?.length) {
    found.push(
      el(
        "div",
        { class: "banner", role: "status", id: "newer" },
        el("strong", {}, "A newer release exists: "),
        said.newer.map(({ name }) => name).join(", "),
        ". ",
        el("a", { href: to("compare", { with: said.newer[0].fingerprint }) }, "Compare"),
        " before you go on deciding here.",
      ),
    );
  }
  replace(document.getElementById("banners"), found);
}

function drawNav(current) {
  const list = el(
    "ul",
    { class: "screens", id: "screens", hidden: true },
    SCREENS.map(([name, title]) =>
      el("li", {}, el("a", { href: to(name), "aria-current": name === current ? "page" : null }, title)),
    ),
  );
  const title = [...SCREENS, ...HIDDEN].find(([name]) => name === current)?.[1] ?? "Screens";
  const fold = button(
    [title, el("span", { "aria-hidden": "true" }, "☰")],
    () => {
      list.hidden = !list.hidden;
      fold.setAttribute("aria-expanded", String(!list.hidden));
    },
    {
      class: "fold",
      "aria-expanded": "false",
      "aria-controls": "screens",
      "aria-label": `${title}: open the list of screens`,
    },
  );
  replace(document.getElementById("nav"), fold, list);
}

function failed(error) {
  return el(
    "div",
    { class: "failed", role: "alert" },
    el("h1", {}, "This screen could not be shown"),
    el("p", {}, error.message),
    error.remedy ? el("p", {}, error.remedy) : null,
    button("Try again", show),
  );
}

async function show() {
  left.abort();
  left = new AbortController();
  const { signal } = left;
  const { screen, params } = here();
  const entry = [...SCREENS, ...HIDDEN].find(([name]) => name === screen);
  const main = document.getElementById("main");
  main.dataset.screen = "";
  drawNav(entry?.[3] ?? screen);
  document.title = `${entry?.[1] ?? "Not found"} · ${session()?.release ?? "Review"}`;
  replace(main, el("p", { class: "loading", role: "status" }, "Loading…"));
  let shown;
  try {
    if (!entry) throw new Error(`There is no screen “${screen}”.`);
    shown = await entry[2].view(params, signal);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    shown = failed(error);
  }
  if (signal.aborted) return;
  replace(main, shown);
  main.dataset.screen = screen;
  main.dataset.state = shown.classList.contains("failed") ? "failed" : "shown";
  if (show.before !== screen) {
    if (show.before) main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  show.before = screen;
  later();
}

async function start() {
  const main = document.getElementById("main");
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  if (!takeToken()) {
    replace(
      main,
      el("h1", {}, "This page needs its token"),
      el(
        "p",
        {},
        "Open the address that curate review printed; it ends in #token=… and is valid until the server stops.",
      ),
    );
    main.dataset.state = "failed";
    return;
  }
  watch(drawTop);
  try {
    await refresh();
  } catch (error) {
    drawTop(null, "");
    replace(main, failed(error));
    main.dataset.state = "failed";
    return;
  }
  addEventListener("hashchange", () => {
    takeToken();
    show();
  });
  addEventListener("unhandledrejection", (event) => {
    if (event.reason?.name === "AbortError") event.preventDefault();
    else tell(String(event.reason?.message ?? event.reason), "bad");
  });
  follow();
  await show();
}

start();
