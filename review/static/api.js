// The server's side of the page: one token, one name, and every image fetched with both.

const TOKEN = "curate.token";
const NAME = "curate.reviewer";
const POLL = 30_000;
const state = { session: null, stale: "" };
const watchers = new Set();

/** A request that the server refused; `status` is 0 where it did not answer. */
export class Refused extends Error {
  constructor(status, error, remedy) {
    super(error);
    this.status = status;
    this.remedy = remedy;
  }
}

/** Take the token out of the address, so that it stays out of the history and of screenshots. */
export function takeToken() {
  const found = /^#token=([A-Za-z0-9_-]+)$/.exec(location.hash);
  if (found) {
    sessionStorage.setItem(TOKEN, found[1]);
    history.replaceState(null, "", `${location.pathname}#/overview`);
  }
  return sessionStorage.getItem(TOKEN) !== null;
}

/** Call when the session changes (name, newer releases, changed bytes), and not when it was read again as it was. */
export function watch(change) {
  watchers.add(change);
}

function changed() {
  const now = JSON.stringify([state.session, state.stale, reviewer()]);
  if (now === changed.told) return;
  changed.told = now;
  for (const change of watchers) change(state.session, state.stale);
}

/** What the server said of the session last. */
export function session() {
  return state.session;
}

/** The name that decisions of this browser carry, in all its tabs, or "". */
export function reviewer() {
  return localStorage.getItem(NAME) ?? state.session?.reviewer ?? "";
}

function headers(name) {
  const sent = { "X-Curate-Token": sessionStorage.getItem(TOKEN) ?? "" };
  if (name) sent["X-Reviewer"] = encodeURIComponent(name);
  return sent;
}

async function request(path, { who = reviewer(), ...options }) {
  let answer;
  try {
    answer = await fetch(path, {
      ...options,
      headers: { ...headers(who), ...options.headers },
      cache: options.cache ?? "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(
      0,
      "The server does not answer.",
      "Start curate review again and open the address that it prints.",
    );
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 409 && said.stale) later();
  throw new Refused(answer.status, said.error ?? `The server answered ${answer.status}.`, said.remedy ?? "");
}

/** A JSON document; `query` are its parameters, null and "" left out. */
export async function get(path, query = {}, signal = undefined) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(given).toString();
  return (await request(`${path}${text ? `?${text}` : ""}`, { signal })).json();
}

/** Change something, by the reviewer `who`; the answer is a JSON document. */
export async function post(path, body = {}, who = reviewer()) {
  const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, who };
  const said = await (await request(path, options)).json();
  later();
  return said;
}

/** Read the session again. */
export async function refresh() {
  state.session = await get("/api/session");
  state.stale = state.session.stale ?? "";
  changed();
  return state.session;
}

/** Read the session soon: one reading at a time, and one more where it was asked for meanwhile. */
export function later() {
  later.again = true;
  if (later.reading) return;
  later.again = false;
  later.reading = true;
  refresh()
    .catch(() => undefined)
    .finally(() => {
      later.reading = false;
      if (later.again) later();
    });
}

/** Keep up with other tabs, with other reviewers and with the disk for as long as somebody can see the page. */
export function follow() {
  const seen = () => document.visibilityState === "visible" && later();
  setInterval(seen, POLL);
  document.addEventListener("visibilitychange", seen);
  addEventListener("storage", (event) => event.key === NAME && changed());
}

/** Give this browser a name; decisions made before keep theirs. */
export async function rename(name) {
  const said = await post("/api/session", { reviewer: name });
  localStorage.setItem(NAME, said.reviewer ?? name);
  await refresh();
}

const LANES = 6;
const waiting = [];
let running = 0;

function lane(work, signal) {
  return new Promise((resolve, reject) => {
    const start = async () => {
      if (signal?.aborted) return (reject(new DOMException("left", "AbortError")), next());
      running += 1;
      try {
        resolve(await work());
      } catch (error) {
        reject(error);
      } finally {
        running -= 1;
        next();
      }
    };
    waiting.push(start);
    next();
  });
}

function next() {
  if (running < LANES && waiting.length) waiting.shift()();
}

/** Pixels of a sample: kind is thumb, mask, teacher or ignore; release a sibling's fingerprint or "". */
export async function pixels(kind, id, side, { release = "", signal } = {}) {
  const folder = kind === "thumb" ? "thumb" : "mask";
  const query = new URLSearchParams(kind === "thumb" ? { side } : { side, kind });
  const path = `/${folder}/${release ? `${release}/` : ""}${id}?${query}`;
  return lane(async () => {
    const blob = await (await request(path, { signal, cache: "default" })).blob();
    return createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  }, signal);
}
