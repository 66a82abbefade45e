// Draws a stream's last half hour: mean cost against its budget, and below it the shares of its exits.

import { clock, make, percent } from "./text.js";

const HEIGHT = 132;
const LEFT = 34; // of the plot: room for "100%"
const RIGHT = 6;
const COST = { top: 6, bottom: 82 };
const SHARES = { top: 88, bottom: 114 };
const SHORTEST_S = 120; // a node that has just started should not draw seconds as wide as minutes
const LEAST_SPAN = 0.2; // of the cost axis: noise of a point should look like one
const TOLERANCE = 0.05; // within it a stream is on budget

/** One colour per exit, from the earliest to the last, however many there are; see style.css. */
export function paintExit(element, exit, exits) {
  element.style.setProperty("--depth", `${exits < 2 ? 100 : (100 * exit) / (exits - 1)}%`);
}

export class Chart {
  constructor(svg, reading) {
    this.svg = svg;
    this.reading = reading;
    this.history = this.plot = null;
    this.picked = null; // index of the moment that is read off
    for (const kind of ["pointermove", "pointerdown"]) {
      svg.addEventListener(kind, (event) => this.pick(this.indexAt(event.offsetX)));
    }
    svg.addEventListener("pointerleave", () => this.pick(null));
    svg.addEventListener("blur", () => this.pick(null));
    svg.addEventListener("keydown", (event) => this.pickByKey(event));
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  show(history) {
    this.history = history;
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!this.history?.at.length || !width) return;
    this.plot = layOut(this.history, width);
    this.cursor = path("cursor", "");
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("aria-label", inWords(this.history));
    this.svg.replaceChildren(
      ...outages(this.plot),
      ...grid(this.plot),
      ...shareBands(this.plot),
      ...costLines(this.plot),
      this.cursor,
    );
    this.pick(this.picked);
  }

  indexAt(px) {
    if (!this.plot) return null;
    const distances = this.history.at.map((t) => Math.abs(this.plot.x(t) - px));
    return distances.indexOf(Math.min(...distances));
  }

  pickByKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -15, PageDown: 15 }[event.key];
    if (!step || !this.plot) return;
    event.preventDefault();
    const last = this.history.at.length - 1;
    this.pick(Math.min(last, Math.max(0, (this.picked ?? last) + step)));
  }

  /** Reads one moment off; none: says what the lines are. */
  pick(index) {
    const at = this.history?.at[index];
    this.picked = at == null ? null : index;
    this.cursor?.setAttribute("d", at == null ? "" : `M${this.plot.x(at)} ${COST.top}V${SHARES.bottom}`);
    this.reading.replaceChildren(...(at == null ? legend() : [momentInWords(this.history, index)]));
  }
}

function inWords({ at, mean_fraction, target_fraction }) {
  const mean = percent(mean_fraction.findLast((value) => value != null));
  return `Mean cost from ${clock(1000 * at[0])} to ${clock(1000 * at.at(-1))}, at last ${mean} of the full network; `
    + `budget ${percent(target_fraction.at(-1))}. Arrow keys read single moments.`;
}

function momentInWords({ at, mean_fraction, target_fraction, fps, agreement }, i) {
  const cost = `${percent(mean_fraction[i])} of ${percent(target_fraction[i])}`;
  const agrees = agreement[i] == null ? "" : ` · agreement ${percent(agreement[i])}`;
  return `${clock(1000 * at[i])} · ${cost} · ${fps[i].toFixed(1)} frames/s${agrees}`;
}

function legend() {
  const keys = { mean: "mean cost", target: "budget", tolerance: "within 5%", outage: "no frames" };
  return Object.entries(keys).map(([kind, text]) => make("span", text, `key ${kind}`));
}

/** Where things go: a history with its scales. */
function layOut(history, width) {
  const { at, mean_fraction, target_fraction, every_s } = history;
  const end = at.at(-1);
  const start = Math.min(at[0], end - SHORTEST_S);
  const axis = costAxis([...mean_fraction, ...target_fraction]);
  const runs = (has) => runsOf(at, has, 3 * every_s);
  return {
    history, width, start, end, runs, ticks: axis.ticks,
    some: (values) => runs((i) => values[i] != null),
    x: (t) => LEFT + ((t - start) / (end - start)) * (width - LEFT - RIGHT),
    y: scale(axis.low, axis.high, COST),
  };
}

function outages({ history: { at, fps }, runs, x }) {
  const [y, height] = [COST.top, SHARES.bottom - COST.top];
  return runs((i) => fps[i] === 0).map((run) => {
    const [from, to] = [x(at[run[0]]), x(at[run.at(-1)])];
    return shape("rect", "outage", { x: from, y, width: to - from, height });
  });
}

function grid({ x, y, ticks, start, end, width }) {
  const levels = ticks.flatMap((value) => [
    path("grid", `M${LEFT} ${y(value)}H${width - RIGHT}`),
    label(LEFT - 5, y(value) + 4, percent(value, 0), "end"),
  ]);
  const moments = timeTicks(start, end, width).flatMap((t) => [
    path("grid", `M${x(t)} ${COST.top}V${SHARES.bottom + 3}`),
    label(x(t), HEIGHT - 4, clock(1000 * t, false), "middle"),
  ]);
  return [...levels, ...moments, label(LEFT - 5, SHARES.bottom - 8, "exits", "end")];
}

function shareBands({ history: { at, exit_shares }, some, x }) {
  const runs = some(exit_shares);
  const exits = exit_shares.findLast((shares) => shares)?.length ?? 0;
  const y = scale(0, 1, SHARES);
  const upTo = (i, exit) => y(exit_shares[i].slice(0, exit).reduce((a, b) => a + b, 0));
  return Array.from({ length: exits }, (_, exit) => {
    const areas = runs.map((run) => area(run, (i) => x(at[i]), (i) => upTo(i, exit + 1), (i) => upTo(i, exit)));
    const band = path("exit", areas.join(""));
    paintExit(band, exit, exits);
    return band;
  });
}

function costLines({ history: { at, mean_fraction: mean, target_fraction: target }, some, x, y }) {
  const line = (values) => some(values).map((run) => stroke(run, (i) => x(at[i]), (i) => y(values[i]))).join("");
  const edge = (factor) => (i) => y(target[i] * factor);
  const allowed = some(target).map((run) => area(run, (i) => x(at[i]), edge(1 + TOLERANCE), edge(1 - TOLERANCE)));
  return [path("tolerance", allowed.join("")), path("target", line(target)), path("mean", line(mean))];
}

/** From a bit below the least value to a bit above the greatest, with at most five round ticks. */
function costAxis(values) {
  const known = values.filter((v) => v != null);
  const least = known.length ? Math.min(...known) : 0;
  const most = known.length ? Math.max(...known) : 1;
  const span = Math.max(LEAST_SPAN, 1.15 * (most - least));
  const step = [0.05, 0.1, 0.2, 0.25, 0.5, 1].find((s) => span / s <= 4) ?? 1;
  const low = Math.max(0, Math.floor((least + most - span) / 2 / step) * step);
  const high = Math.max(most, Math.min(1, Math.ceil((low + span) / step) * step));
  const ticks = [];
  for (let value = low; value <= high + 1e-9; value += step) ticks.push(value);
  return { low, high, ticks };
}

function timeTicks(start, end, width) {
  const room = Math.max(2, (width - LEFT) / 72);
  const step = [60, 120, 300, 600, 900, 1800].find((s) => (end - start) / s <= room) ?? 1800;
  const ticks = [];
  for (let t = Math.ceil(start / step) * step; t <= end; t += step) ticks.push(t);
  return ticks;
}

const scale = (low, high, { top, bottom }) => (value) => bottom - ((value - low) / (high - low)) * (bottom - top);

/** Indices of neighbours that have a value: lines break where nothing is known. */
function runsOf(at, has, longestGap) {
  const runs = [];
  at.forEach((t, i) => {
    if (!has(i)) return;
    const run = runs.at(-1);
    if (run?.at(-1) === i - 1 && t - at[i - 1] <= longestGap) run.push(i);
    else runs.push([i]);
  });
  return runs;
}

const point = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;
const stroke = (run, x, y) => `M${run.map((i) => point(x(i), y(i))).join("L")}h0`; // h0: a single moment is a dot
const area = (run, x, upper, lower) => {
  const forth = run.map((i) => point(x(i), upper(i)));
  const back = run.map((i) => point(x(i), lower(i))).reverse();
  return `M${[...forth, ...back].join("L")}Z`;
};

function shape(name, className, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  if (className) element.setAttribute("class", className);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

const path = (className, d) => shape("path", className, { d });

function label(x, y, text, anchor) {
  const element = shape("text", "", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}
