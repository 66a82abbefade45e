// Words and figures for people, and the few ways in which they get into the document: as text only.

export const count = (n) => n.toLocaleString("en");
export const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);
export const words = (name) => name.replaceAll("_", " ");
export const percent = (x, digits = 1) => (x == null ? "–" : `${(100 * x).toFixed(digits)}%`);

/** "buffer full 12, too old 3", the most frequent first. */
export const reasons = (counts) =>
  Object.entries(counts)
    .filter(([, n]) => n > 0)
    .sort((a, b) => b[1] - a[1])
    .map(([name, n]) => `${words(name)} ${count(n)}`)
    .join(", ");

export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** The time of day, with the date unless it is today. */
export function clock(milliseconds, seconds = true) {
  const moment = new Date(milliseconds);
  const time = moment.toLocaleTimeString("en-GB", seconds ? {} : { hour: "2-digit", minute: "2-digit" });
  const today = moment.toDateString() === new Date().toDateString();
  return today ? time : `${moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

/** Elements by their data-part. */
export const parts = (root) =>
  Object.fromEntries([...root.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));

/** Sets a text only if it changes: what stays the same is neither laid out nor read aloud again. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets a text and, for its colour, a level: ok, warn, bad, off. */
export function mark(element, level, text) {
  put(element, text);
  if (element.dataset.level !== level) element.dataset.level = level;
}

export function make(name, text = "", className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** Fills a dl with [term, text]; rows that stay are kept. */
export function list(dl, rows) {
  while (dl.children.length < rows.length) {
    const row = make("div");
    row.append(make("dt"), make("dd"));
    dl.append(row);
  }
  while (dl.children.length > rows.length) dl.lastChild.remove();
  rows.forEach(([term, text], i) => {
    put(dl.children[i].firstChild, term);
    put(dl.children[i].lastChild, text);
  });
}
