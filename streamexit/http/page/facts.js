// What a card says of its stream in small print, as [term, text].

import { clock, count, percent, reasons, sum } from "./text.js";

export function factsOf({ status, budget }) {
  const dropped = sum(status.dropped);
  const share = percent(dropped / Math.max(1, status.frames));
  return [
    ...(budget ? budgetFacts(budget) : []),
    ["Frames", `${count(status.frames)}, answered ${count(status.answered)}`],
    ["Dropped", dropped ? `${count(dropped)} (${share}): ${reasons(status.dropped)}` : "none"],
    ["Connection", connectionInWords(status)],
    ["Media", status.media ? mediaInWords(status) : "unknown"],
  ];
}

function budgetFacts(budget) {
  const { agreement_at, thresholds_version, last_change, changed_at } = budget;
  const facts = [["Agreement", agreementInWords(budget)]];
  if (agreement_at.length) {
    facts.push(["At other cost", agreement_at.map((a) => `${percent(a.value)} at ${percent(a.fraction, 0)}`).join(", ")]);
  }
  facts.push(["Window", windowInWords(budget)], ["Thresholds", `version ${count(thresholds_version)}`]);
  if (last_change) facts.push(["Last change", `${changed_at ? `${clock(Date.parse(changed_at))}: ` : ""}${last_change}`]);
  return facts;
}

function agreementInWords({ agreement, shadow_frames }) {
  if (!agreement) return `no estimate yet (${count(shadow_frames)} shadow frames)`;
  const interval = `95%: ${percent(agreement.low)} to ${percent(agreement.high)}`;
  return `${percent(agreement.value)} with the full network (${interval}), an estimate from ${count(shadow_frames)} shadow frames`;
}

function windowInWords(budget) {
  const { window_s, window_frames, frames_in_window, target_per_second, mean_per_second } = budget;
  const said = [window_s ? `${window_s} s` : `${count(window_frames)} frames`];
  if (!window_s && frames_in_window < window_frames) said.push(`${count(frames_in_window)} so far`);
  if (budget.strict) said.push("strict");
  if (target_per_second) said.push(`${cost(mean_per_second)} of ${cost(target_per_second)} per second`);
  return [...said, `full network ${cost(budget.full_cost)}`].join(", ");
}

function cost(amount) {
  if (!amount) return "–";
  return `${Number(amount.value.toPrecision(3))} ${amount.unit === "gflops" ? "GFLOPs" : "ms"}`;
}

function connectionInWords({ reconnects, epoch, abandoned, hung }) {
  const said = `${count(reconnects)} reconnects, epoch ${epoch}`;
  return abandoned ? `${said}, ${abandoned} decode threads given up, ${hung} hang still` : said;
}

function mediaInWords({ media, decoder }) {
  const said = [`${media.codec} ${media.width} × ${media.height}`];
  if (media.rate) said.push(`${Number(media.rate.toFixed(2))}/s`);
  if (media.interlaced) said.push("interlaced");
  return [...said, `${decoder} decoder`].join(", ");
}
