// Where the page is: `#/screen?key=value`, so that every view can be bookmarked and reloaded.

/** The screen and its parameters. */
export function here() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { screen: path || "overview", params: Object.fromEntries(new URLSearchParams(query)) };
}

/** The address of a screen; parameters that are empty, or the number 0, are left out, objects become JSON. */
export function to(screen, params = {}) {
  const given = Object.entries(params)
    .map(([key, value]) => [key, value !== null && typeof value === "object" ? JSON.stringify(value) : value])
    .filter(([, value]) => !["", "{}", null, undefined, 0].includes(value));
  const query = new URLSearchParams(given).toString();
  return `#/${screen}${query ? `?${query}` : ""}`;
}

/** Go to a screen. */
export function go(screen, params = {}) {
  location.hash = to(screen, params);
}

/** Build the screen anew from what the server says now, unless it was left. */
export function again(signal) {
  if (!signal.aborted) dispatchEvent(new Event("hashchange"));
}

/** The filter of the address, {} where there is none or it is no JSON object. */
export function filterOf(params) {
  try {
    const found = JSON.parse(params.filter ?? "{}");
    return found && typeof found === "object" && !Array.isArray(found) ? found : {};
  } catch {
    return {};
  }
}

/** A filter as the server takes it; "" for all samples. */
export function sent(filter) {
  const text = JSON.stringify(filter);
  return text === "{}" ? "" : text;
}
