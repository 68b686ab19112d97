/** What is written about one image: verdict, score, types, regions, prompts, the JSON; or why there is no answer. */

import { byId, make, makeTabStop, plural, printable, scoreText } from "./dom.js";

const NUM_TYPES = 5;

/**
 * The decision at a threshold, from an answer that may have been made at another.
 *
 * The score does not depend on the threshold, so the decision is always exact. Types and regions are in the answer only
 * if it was anomalous at the server's threshold; `isPartial` says that they are missing now.
 */
export function decide(answer, threshold) {
  const isAnomaly = answer.score >= threshold;
  return { isAnomaly, isPartial: isAnomaly && !answer.is_anomaly, regions: isAnomaly ? answer.regions : [] };
}

/** One sentence for a screen reader. */
export function spoken(item, threshold) {
  const { isAnomaly, isPartial, regions } = decide(item.answer, threshold);
  const score = scoreText(item.answer.score, threshold);
  const verdict = isAnomaly ? `anomalous, ${isPartial ? "type not asked" : item.answer.defect_type}` : "normal";
  const where = isAnomaly && !isPartial ? `, ${plural(regions.length, "region")}` : "";
  return `${item.name}: ${verdict}. Score ${score}, threshold ${short(threshold)}${where}.`;
}

/** A threshold without needless digits: 0.5, 0.485. */
export const short = (threshold) => String(Number(threshold.toFixed(4)));

/** Write all that can be said of an inspected image at a threshold. */
export function write(item, threshold) {
  const decision = decide(item.answer, threshold);
  writeVerdict(item, decision);
  writeScore(item.answer, threshold, decision);
  writeTypes(item.answer, decision);
  writeRegions(decision.regions, threshold);
  writePrompts(item.answer.explanation ?? []);
  writeAnswer(item, threshold);
  byId("failure").hidden = true;
  byId("findings").hidden = false;
}

function writeVerdict(item, { isAnomaly, isPartial }) {
  const type = isPartial || !item.answer.defect_type ? "" : `: ${printable(item.answer.defect_type)}`;
  headline(isAnomaly ? "bad" : "good", isAnomaly ? `Anomalous${type}` : "Normal", subject(item));
}

const subject = ({ name, answer }) => `${name}, ${answer.width} x ${answer.height} px`;

/** The line that everything below it is about. */
export function headline(tone, text, subjectText) {
  byId("verdict-text").className = `tone ${tone}`;
  byId("verdict-text").textContent = text;
  byId("subject").textContent = subjectText;
  document.title = `${text} | zsad`;
}

function writeScore(answer, threshold, { isAnomaly, isPartial }) {
  const score = scoreText(answer.score, threshold);
  byId("score").textContent = score;
  byId("type").textContent = isAnomaly ? (isPartial ? "type not asked" : printable(answer.defect_type ?? "unknown")) : "normal";
  byId("type").className = isAnomaly ? "type bad" : "type good";
  byId("margin").textContent = `threshold ${short(threshold)}`;
  byId("meter").setAttribute("aria-valuenow", answer.score.toFixed(4));
  byId("meter").setAttribute("aria-valuetext", `${score}, ${isAnomaly ? "at or above" : "below"} the threshold ${short(threshold)}`);
  byId("meter").classList.toggle("is-bad", isAnomaly);
  byId("meter-fill").style.width = `${100 * answer.score}%`;
  byId("meter-mark").style.left = `${100 * threshold}%`;
  note("decision-note", decisionNote(answer, threshold, { isAnomaly, isPartial }));
}

/** What needs an explanation: mostly what a changed threshold can't tell without asking again. */
function decisionNote(answer, threshold, { isAnomaly, isPartial }) {
  if (isPartial) {
    return `The server judged at ${short(answer.threshold)}, where this image is normal, and so named no type and no regions. "Inspect again" asks at ${short(threshold)}.`;
  }
  if (answer.is_anomaly && answer.score < threshold) {
    return `The server judged at ${short(answer.threshold)}, where this image is anomalous. At ${short(threshold)} its type and ${plural(answer.regions.length, "region")} no longer count.`;
  }
  if (isAnomaly && !answer.regions.length) {
    return "No place of the map stands out enough to be a region: the fault may be spread out, or smaller than a few patches.";
  }
  return "";
}

/** Show a note, or hide its place where there is none. */
export function note(id, text) {
  byId(id).hidden = !text;
  byId(id).textContent = text;
}

function writeTypes(answer, { isAnomaly }) {
  const types = Object.entries(answer.defect_scores ?? {}).sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1));
  byId("types").hidden = !isAnomaly || !types.length;
  byId("types-list").replaceChildren(
    ...types.slice(0, NUM_TYPES).flatMap(([word, share]) => {
      const bar = make("i");
      bar.style.width = `${Math.round(100 * share)}%`;
      const percent = make("dd", { className: "num", textContent: `${(100 * share).toFixed(0)} %` });
      return [make("dt", { textContent: printable(word) }), make("dd", {}, bar), percent];
    }),
  );
}

function writeRegions(regions, threshold) {
  byId("regions").hidden = !regions.length;
  const rows = regions.map((region, place) => {
    const [x, y, width, height] = region.box;
    const text = make("span", { textContent: printable(region.defect_type) });
    const score = make("b", { className: "num", textContent: scoreText(region.score, threshold) });
    const where = make("small", { textContent: `${width} x ${height} px at ${x}, ${y}; ${region.area_px.toLocaleString("en")} px` });
    return make("li", {}, make("button", { type: "button", "data-region": place, "aria-pressed": "false" }, score, text, where));
  });
  byId("regions-list").replaceChildren(...rows);
  highlight(null);
}

/** Mark the region of this number in the list, or none. */
export function highlight(chosen) {
  const buttons = [...byId("regions-list").querySelectorAll("button")];
  for (const [place, button] of buttons.entries()) button.setAttribute("aria-pressed", String(place === chosen));
  makeTabStop(buttons, buttons[chosen ?? 0]);
}

function writePrompts(explanation) {
  byId("prompts").hidden = !explanation.length;
  byId("prompts-rows").replaceChildren(
    ...explanation.map(({ prompt, side, similarity }) =>
      make(
        "tr",
        { className: side === "abnormal" ? "bad" : "good" },
        make("th", { scope: "row", textContent: side }),
        make("td", { textContent: printable(prompt) }),
        make("td", { className: "n", textContent: similarity.toFixed(4) }),
      ),
    ),
  );
}

function writeAnswer({ answer, detector }, threshold) {
  const times = answer.timings_ms ?? {};
  const facts = {
    Detector: answer.detector ?? detector,
    "Raw score": answer.raw_score.toPrecision(6),
    Time: Object.entries(times).map(([stage, ms]) => `${stage} ${ms.toFixed(0)} ms`).join(", "),
    Configuration: answer.config_hash,
    Request: answer.request_id,
  };
  const pairs = Object.entries(facts).filter(([, value]) => value);
  byId("meta").replaceChildren(
    ...pairs.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: printable(value) })]),
  );
  const changed = answer.threshold === threshold ? "" : ` It was decided at ${short(answer.threshold)}.`;
  byId("json-note").textContent = `As the server sent it; the map's bytes are shortened here and whole in the copy.${changed}`;
  const shortened = (key, value) => (key === "map" && value ? `(${value.length} characters of base64)` : value);
  byId("json").textContent = JSON.stringify(answer, shortened, 2);
}

/** Say why there is no answer, with what can be done. */
export function writeRefusal(item, refusal, actions) {
  headline("bad", "Not inspected", item.name);
  byId("findings").hidden = true;
  const facts = [refusal.status && `HTTP ${refusal.status}`, refusal.code, refusal.requestId && `request ${refusal.requestId}`];
  const parts = [make("h3", { textContent: printable(refusal.title) }), make("p", { textContent: printable(refusal.detail) })];
  const line = facts.filter(Boolean).map(printable).join(", ");
  if (line) parts.push(make("p", { className: "small code", textContent: line }));
  parts.push(make("p", { id: "countdown", "aria-live": "off", hidden: true }));
  parts.push(make("div", { className: "actions" }, ...actions));
  byId("failure").replaceChildren(...parts);
  byId("failure").hidden = false;
}
