// The page: asks the node how it is, for ever, and hands each stream to its card.

import { ask, nodeNow } from "./api.js";
import { Card } from "./card.js";
import { clock, count, duration, list, make, mark, parts, percent, put, reasons, sum } from "./text.js";

const LOOK_MS = 1000;
const LOOK_MANY_MS = 2000; // with more than MANY streams
const LOOK_HIDDEN_MS = 10000; // for the title and the icon of a background tab
const MANY = 40;
const TICK_MS = 250;

const page = parts(document);
const cards = new Map();
const inView = new Set();
const icon = document.head.appendChild(make("link"));
let wake = () => {};
let version = null;
let name = "The node";
let answeredAt = Date.now();
let logged = [];
let iconColour = "";

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cards.get(target.dataset.id);
    if (!isIntersecting || !card) inView.delete(card);
    else if (!inView.has(card)) inView.add(card) && card.show();
  }
}, { rootMargin: "100px" });

async function main() {
  signal("ok", document.title); // before the browser looks for an icon of its own accord
  setInterval(tick, TICK_MS);
  page.filter.addEventListener("input", applyFilter);
  page.levels.addEventListener("change", applyFilter);
  page.more.addEventListener("click", toggleLog);
  document.addEventListener("visibilitychange", () => wake());
  for (;;) {
    await look();
    const pause = document.hidden ? LOOK_HIDDEN_MS : cards.size > MANY ? LOOK_MANY_MS : LOOK_MS;
    await new Promise((resolve) => { wake = resolve; setTimeout(resolve, pause); });
  }
}

async function look() {
  try {
    const [node, { streams }] = await Promise.all([ask("api/node"), ask("api/streams")]);
    // A new version of the node brings its own page, and this one may be open for months.
    if ((version ??= node.info.version) !== node.info.version) return location.reload();
    showNode(node, streams);
    showLog(node.log);
    showStreams(streams);
    showFound();
  } catch (error) {
    showLost(error); // whatever it was: the next look may succeed
  }
}

function tick() {
  if (document.hidden || document.body.classList.contains("silent")) return;
  const now = Date.now();
  for (const card of inView) card.tick(now);
}

function showLost(error) {
  document.body.classList.add("silent");
  page.lost.hidden = false;
  put(page.lost, `${name} has not answered since ${clock(answeredAt)}: ${error.message}. `
    + "What you see is from then. Trying again.");
  signal("bad", `no answer · ${name}`);
}

function showFound() {
  answeredAt = Date.now();
  document.body.classList.remove("silent");
  page.lost.hidden = true;
}

function showNode({ info, stats, broker, ready, why_not_ready }, streams) {
  name = info.node;
  put(page.node, info.node);
  mark(page.ready, ready ? "ok" : "bad", ready ? "ready" : `not ready: ${why_not_ready}`);
  const levels = { online: "ok", connecting: "warn", none: "off" };
  const broken = broker.state === "none" ? "no broker" : `broker ${broker.state}`;
  mark(page.broker, levels[broker.state] ?? "bad", [broken, broker.message].filter(Boolean).join(": "));
  const up = duration((nodeNow() - Date.parse(info.started_at)) / 1000);
  put(page.about, [`streamexit ${info.version}`, info.device, `up ${up}`, broker.url].filter(Boolean).join(" · "));
  list(page.totals, totalsOf(stats, streams));
}

function totalsOf(stats, streams) {
  const withReasons = (counts) => [count(sum(counts)), reasons(counts)].filter(Boolean).join(" · ");
  const { fairness, allocated_ms_per_s, networks } = stats ?? {};
  const rows = [["frames/s", streams.reduce((fps, stream) => fps + stream.status.fps, 0).toFixed(1)]];
  if (!stats) return [...rows, ["totals", "not yet"]];
  rows.push(["answered", count(stats.answered)]);
  rows.push(["dropped", withReasons(stats.dropped)]);
  rows.push(["results lost", withReasons(stats.results_lost)]);
  if (fairness) {
    const worst = `${fairness.worst_stream} ${percent(fairness.worst_agreement)}`;
    rows.push(["evenness", `${fairness.jain.toFixed(3)} · worst ${worst}`]);
  }
  if (allocated_ms_per_s != null) rows.push(["promised", `${allocated_ms_per_s.toFixed(0)} ms/s`]);
  for (const { pipeline, policy, device, notes } of networks) {
    rows.push([`${pipeline}, ${policy}`, [device, ...notes].join(" · ")]);
  }
  return rows;
}

/** Adds only what is new on top, so that screen readers read that and no more. */
function showLog(log) {
  const keys = log.map((entry) => JSON.stringify(entry));
  const known = keys.indexOf(logged[0]);
  const fresh = known < 0 ? log : log.slice(0, known);
  if (known < 0) page.log.replaceChildren();
  page.log.prepend(...fresh.map(logLine));
  while (page.log.children.length > log.length) page.log.lastChild.remove();
  logged = keys;
}

function logLine({ at, stream, text }) {
  const line = make("li");
  line.append(make("time", clock(Date.parse(at))), " ", make("b", stream ?? ""), " ", text);
  return line;
}

function toggleLog() {
  const open = page.more.getAttribute("aria-expanded") !== "true";
  page.more.setAttribute("aria-expanded", open);
  put(page.more, open ? "Less" : "More");
}

function showStreams(streams) {
  const ids = new Set(streams.map((stream) => stream.id));
  for (const [id, card] of cards) if (!ids.has(id)) removeCard(id, card);
  streams.forEach((stream, position) => {
    const card = cards.get(stream.id) ?? addCard(stream.id);
    const there = page.cards.children[position] ?? null;
    if (there !== card.element) page.cards.insertBefore(card.element, there);
    card.update(stream);
    if (inView.has(card) && !document.hidden) card.show();
  });
  const down = showLevels();
  applyFilter();
  signal(down ? "bad" : "ok", down ? `${down} down · ${name}` : name);
}

function addCard(id) {
  const card = new Card(id, () => wake());
  card.element.dataset.id = id;
  cards.set(id, card);
  observer.observe(card.element);
  return card;
}

function removeCard(id, card) {
  observer.unobserve(card.element);
  inView.delete(card);
  cards.delete(id);
  card.remove();
}

function showLevels() {
  const levels = [...cards.values()].map((card) => card.level);
  for (const input of page.levels.querySelectorAll("input")) {
    const n = input.value === "all" ? levels.length : levels.filter((level) => level === input.value).length;
    put(input.nextElementSibling.querySelector("b"), String(n));
    input.parentElement.dataset.level = n ? input.value : "";
  }
  return levels.filter((level) => level === "bad").length;
}

function applyFilter() {
  const wanted = page.filter.value.trim().toLowerCase();
  const level = page.levels.querySelector("input:checked").value;
  let shown = 0;
  for (const card of cards.values()) {
    const fits = card.haystack.includes(wanted) && (level === "all" || card.level === level);
    card.element.hidden = !fits;
    shown += fits;
  }
  put(page.empty, cards.size === 0 ? "This node has no streams." : shown === 0 ? "No stream is like that." : "");
}

/** Title and icon, so that trouble shows in a background tab, too. */
function signal(level, title) {
  if (document.title !== title) document.title = title;
  const colour = level === "bad" ? "#d13438" : "#2e8b57";
  if (colour === iconColour) return;
  iconColour = colour;
  const disc = `<circle cx="8" cy="8" r="7" fill="${colour}"/>`;
  const drawing = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">${disc}</svg>`;
  URL.revokeObjectURL(icon.href);
  icon.rel = "icon";
  icon.href = URL.createObjectURL(new Blob([drawing], { type: "image/svg+xml" }));
}

main();
