/** The strip of this session's images, newest first: waiting, inspected or refused. */

import { byId, make, makeTabStop, plural, scoreText } from "./dom.js";
import { decide } from "./result.js";

/**
 * @param {object[]} items newest first
 * @param {object | null} shown the one on display
 * @param {(item: object) => number} thresholdOf
 */
export function writeStrip(items, shown, thresholdOf) {
  const hadFocus = byId("strip").contains(document.activeElement);
  byId("history").hidden = !items.length;
  byId("history-count").textContent = counts(items, thresholdOf);
  byId("stop").hidden = !items.some(isOpen);
  byId("strip").replaceChildren(...items.map((item) => make("li", {}, card(item, item === shown, thresholdOf(item)))));
  const buttons = [...byId("strip").querySelectorAll("button")];
  const current = buttons[Math.max(0, items.indexOf(shown))];
  makeTabStop(buttons, current);
  if (hadFocus) current?.focus();
}

/** Whether an image has yet to be answered. */
export const isOpen = (item) => item.status === "waiting" || item.status === "running";

/** "12 images, 3 anomalous, 1 refused, 2 waiting" */
export function counts(items, thresholdOf) {
  const done = items.filter((item) => item.status === "done");
  const parts = {
    anomalous: done.filter((item) => decide(item.answer, thresholdOf(item)).isAnomaly).length,
    refused: items.filter((item) => item.status === "failed").length,
    waiting: items.filter(isOpen).length,
  };
  const said = Object.entries(parts).filter(([, count]) => count);
  return [plural(items.length, "image"), ...said.map(([what, count]) => `${count} ${what}`)].join(", ");
}

function card(item, isShown, threshold) {
  const [tone, text] = state(item, threshold);
  const label = make("span", { className: `tone ${tone}`, textContent: text });
  const name = make("span", { className: "name", textContent: item.name });
  const picture = item.thumbnail ?? make("span", { className: "blank", "aria-hidden": "true" });
  const properties = { type: "button", title: item.name, "data-item": item.id, "aria-current": String(isShown) };
  return make("button", properties, picture, label, name);
}

function state(item, threshold) {
  if (item.status === "waiting") return ["wait", "waiting"];
  if (item.status === "running") return ["wait", "inspecting"];
  if (item.status === "failed") return ["warn", "not inspected"];
  const { isAnomaly } = decide(item.answer, threshold);
  return [isAnomaly ? "bad" : "good", `${scoreText(item.answer.score, threshold)} ${isAnomaly ? "anomalous" : "normal"}`];
}
