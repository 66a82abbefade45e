// One stream's card. Its headline is always kept up to date; the rest, its chart and its picture only
// while it is in view.

import { ask, askPicture, nodeNow } from "./api.js";
import { Chart, paintExit } from "./chart.js";
import { factsOf } from "./facts.js";
import { duration, list, make, mark, parts, percent, put, sum, words } from "./text.js";

const PICTURE_MS = 1000;
const HISTORY_MS = 5000;
const RETRY_MS = 3000; // after a picture or a history that did not come
const SAID_MS = 30000;

const DOWN = ["stalled", "reconnecting", "offline", "error"];
const HELD = {
  on_budget: ["ok", "on budget"],
  saturated: ["warn", "saturated: off budget"],
  unreachable: ["bad", "unreachable: below the first exit"],
  not_binding: ["off", "not binding: full network"],
};

/** bad: no pictures though wanted; warn: look at it; off: nothing is wanted of it; ok. */
export function levelOf(stream) {
  const { state } = stream.status;
  if (DOWN.includes(state)) return "bad";
  if (state === "disabled" || state === "ended") return "off";
  if (state === "connecting" || silent(stream)) return "warn";
  return ["saturated", "unreachable"].includes(stream.budget?.state) ? "warn" : "ok";
}

const ageOf = (stream) => (stream.status.last_result_at ? (nodeNow() - Date.parse(stream.status.last_result_at)) / 1000 : null);

/** Pictures come, answers do not. */
const silent = (stream) => stream.status.state === "online" && ageOf(stream) > 5 + 5 / Math.max(0.1, stream.status.fps);

export function answerOf({ state }) {
  if (!state) return "no answer yet";
  return `${state.label} ${state.share == null ? percent(state.probability, 0) : `${percent(state.share, 0)} of picture`}`;
}

export class Card {
  /** @param afterCommand Called when the node has accepted a command. */
  constructor(id, afterCommand) {
    this.id = id;
    this.afterCommand = afterCommand;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.element.dataset.testid = `stream-${id}`;
    this.element.setAttribute("aria-label", `Stream ${id}`);
    this.part = parts(this.element);
    this.chart = new Chart(this.part.chart, this.part.reading);
    this.pictureDue = this.historyDue = 0;
    this.pictureOf = null; // time of the result that the picture shows
    this.edited = new Set();
    this.part.toggle.setAttribute("aria-label", `Stream ${id} enabled`); // what it shows changes, its name should not
    put(this.part.id, id);
    this.listen();
  }

  listen() {
    const { budgetForm, budgetInput, rateForm, rateInput, toggle } = this.part;
    for (const input of [budgetInput, rateInput]) input.addEventListener("input", () => this.edited.add(input));
    budgetInput.addEventListener("change", () => budgetInput.value === "" && this.edited.delete(budgetInput));
    const submitted = (act) => (event) => { event.preventDefault(); act(); };
    budgetForm.addEventListener("submit", submitted(() => this.setBudget()));
    rateForm.addEventListener("submit", submitted(() => this.setRate()));
    toggle.addEventListener("click", () => this.toggle());
  }

  setBudget() {
    const value = this.part.budgetInput.valueAsNumber;
    if (Number.isNaN(value)) return this.say("bad", "Type how many percent of the full network a frame may cost.");
    const fraction = Number((value / 100).toPrecision(12)); // 0.07, not 0.07000000000000001
    this.command("set_budget", { budget: { fraction }, persist: false }, `The budget is ${value}%.`, this.part.budgetInput);
  }

  setRate() {
    const { value, valueAsNumber, validity } = this.part.rateInput;
    if (validity.badInput) return this.say("bad", "Type a number of frames per second, or nothing for every frame.");
    const frame_rate = value === "" ? null : valueAsNumber;
    const done = value === "" ? "Every frame is analysed." : `At most ${value} frames a second are analysed.`;
    this.command("set_frame_rate", { frame_rate }, done, this.part.rateInput);
  }

  toggle() {
    const { enabled } = this.stream;
    const done = `The stream is ${enabled ? "disabled" : "enabled"}.`;
    this.command(enabled ? "disable_stream" : "enable_stream", { persist: false }, done);
  }

  async command(verb, body, done, input) {
    if (this.busy) return; // one command at a time
    this.busy = true;
    this.say("off", "Asking the node ...");
    try {
      const { data } = await ask(`api/commands/${verb}`, { stream: this.id, ...body });
      this.edited.delete(input);
      this.say("ok", typeof data === "string" ? data : data?.message ?? data?.last_change ?? done);
      this.afterCommand();
    } catch (error) {
      this.say("bad", error.message);
    }
    this.busy = false;
  }

  /** Errors stay; the rest goes after a while, for the card goes on saying what was changed last. */
  say(level, text) {
    clearTimeout(this.silence);
    mark(this.part.said, level, text);
    if (level === "ok") this.silence = setTimeout(() => put(this.part.said, ""), SAID_MS);
  }

  /** Takes in what the node says; cheap, since hundreds of cards may be out of view. */
  update(stream) {
    this.stream = stream;
    const { status, budget } = stream;
    this.level = levelOf(stream);
    this.element.dataset.level = this.level;
    this.element.dataset.state = status.state;
    const reason = status.reason === status.state ? "" : words(status.reason);
    this.haystack = [stream.id, stream.source, stream.pipeline, status.state, reason, answerOf(stream)].join(" ").toLowerCase();
    mark(this.part.state, status.state === "online" ? "ok" : this.level, status.state);
    put(this.part.why, [reason, status.message].filter(Boolean).join(": "));
    put(this.part.answer, answerOf(stream));
    put(this.part.mean, percent(budget?.mean_fraction));
  }

  /** Everything else that is said in words; in view only. */
  show() {
    const { stream, part } = this;
    const { status, budget } = stream;
    put(part.source, [stream.source, stream.pipeline, stream.policy].join(" · "));
    part.source.title = stream.source; // it is cut off where there is no room
    part.toggle.setAttribute("aria-checked", stream.enabled);
    put(part.toggle, stream.enabled ? "enabled" : "disabled");
    put(part.since, `for ${duration((nodeNow() - Date.parse(status.since)) / 1000)}`);
    put(part.fps, `${status.fps.toFixed(1)} frames/s`);
    const age = ageOf(stream);
    mark(part.age, silent(stream) || this.level === "bad" ? "bad" : "", age === null ? "no result yet" : `result ${duration(age)} ago`);
    put(part.target, budget ? `mean cost, of ${percent(budget.target_fraction)} allowed` : "no cost yet");
    const [level, held] = budget ? HELD[budget.state] ?? ["warn", words(budget.state)] : ["off", ""];
    mark(part.held, status.state === "online" ? level : "off", held);
    part.held.hidden = !budget;
    this.fill(part.budgetInput, budget ? String(Number((100 * budget.target_fraction).toFixed(2))) : "");
    this.fill(part.rateInput, stream.frame_rate == null ? "" : String(stream.frame_rate));
    this.showExits();
    this.showPictureCaption();
    list(part.facts, factsOf(stream));
  }

  /** Never changes what somebody is typing. */
  fill(input, value) {
    if (!this.edited.has(input) && document.activeElement !== input && input.value !== value) input.value = value;
  }

  showExits() {
    const { stream, part } = this;
    const { exits, budget } = stream;
    if (part.exits.children.length !== exits) this.buildExits(exits);
    const shares = budget?.exit_shares.length ? budget.exit_shares : null;
    const answered = sum(stream.exit_counts);
    for (let i = 0; i < exits; i++) {
      part.shares.children[i].style.flexGrow = shares?.[i] ?? 0;
      const cells = part.exits.children[i].children;
      put(cells[1], percent(shares?.[i]));
      put(cells[2], percent(answered ? (stream.exit_counts[i] ?? 0) / answered : null));
      put(cells[3], thresholdInWords(budget, i));
    }
    const spoken = shares?.map((share, i) => `${i + 1}: ${percent(share)}`).join(", ") ?? "not known yet";
    part.shares.setAttribute("aria-label", `Exit shares: ${spoken}`);
  }

  buildExits(exits) {
    const { part } = this;
    part.shares.replaceChildren();
    part.exits.replaceChildren();
    for (let i = 0; i < exits; i++) {
      const [piece, row, name] = [make("span"), make("tr"), make("th", String(i + 1), "exit")];
      name.scope = "row";
      paintExit(piece, i, exits);
      paintExit(name, i, exits);
      row.append(name, make("td"), make("td"), make("td"));
      part.shares.append(piece);
      part.exits.append(row);
    }
  }

  /** Called several times a second while in view; asks for what is due, one picture at a time. */
  tick(now) {
    if (now >= this.historyDue) this.refreshHistory();
    const { state, last_result_at } = this.stream.status;
    const news = state === "online" || this.pictureOf !== last_result_at; // a dead stream has none
    if (now >= this.pictureDue && news) this.refreshPicture(last_result_at);
  }

  async refreshHistory() {
    this.historyDue = Infinity;
    try {
      this.chart.show(await ask(`api/streams/${encodeURIComponent(this.id)}/history`));
      this.historyDue = Date.now() + HISTORY_MS;
    } catch {
      this.historyDue = Date.now() + RETRY_MS; // the chart stays; that the node is silent is said above
    }
  }

  async refreshPicture(resultAt) {
    const asked = Date.now();
    this.pictureDue = Infinity;
    try {
      const url = URL.createObjectURL(await askPicture(this.id));
      const old = this.part.picture.src;
      this.part.picture.src = url;
      this.part.picture.hidden = false;
      URL.revokeObjectURL(old); // or months of pictures stay in memory
      this.pictureOf = resultAt;
      this.pictureDue = asked + PICTURE_MS;
      this.pictureError = "";
    } catch (error) {
      this.pictureDue = Date.now() + RETRY_MS;
      this.pictureError = error.message;
    }
    this.showPictureCaption();
  }

  showPictureCaption() {
    const { picture, caption } = this.part;
    const { state } = this.stream.status;
    picture.alt = `Latest frame of ${this.id}: ${answerOf(this.stream)}`;
    if (picture.hidden) put(caption, this.pictureError || "No picture yet");
    else put(caption, state === "online" ? "" : `${state} · last picture`);
  }

  remove() {
    URL.revokeObjectURL(this.part.picture.src);
    this.element.remove();
  }
}

function thresholdInWords(budget, exit) {
  const threshold = budget?.thresholds[exit];
  if (threshold === undefined) return "–";
  if (threshold === null) return "any";
  return threshold > 1 ? "never" : `≥ ${threshold.toFixed(3)}`;
}
