/** The page: what is set, which images there are, which one is shown; the other modules draw and ask. */

import { Refusal, listDetectors } from "./api.js";
import { announce, byId, make, plural, printable, roving } from "./dom.js";
import { counts, isOpen, writeStrip } from "./history.js";
import { listen } from "./intake.js";
import * as picture from "./picture.js";
import { decodeMap, fromBase64 } from "./pixels.js";
import { makeQueue } from "./queue.js";
import * as result from "./result.js";

const MAX_ITEMS = 100; // of the session; the oldest go first, so that the tab's memory stays bounded
const THUMBNAIL_PX = [128, 96];
const SPEAK_AFTER_MS = 400; // once the slider rests

const state = {
  detectors: new Map(), // by name
  thresholds: new Map(), // by detector, where they were changed
  items: [], // newest first
  shown: null,
  token: "",
  serial: 0,
};

const queue = makeQueue({
  optionsOf: (item) => item.options,
  token: () => state.token,
  changed: onChanged,
  held: onHeld,
});

const thresholdFor = (name) => state.thresholds.get(name) ?? state.detectors.get(name)?.threshold ?? 0.5;
const thresholdOf = (item) => state.thresholds.get(item.options.detector) ?? item.answer?.threshold ?? thresholdFor(item.options.detector);
const refreshStrip = () => writeStrip(state.items, state.shown, thresholdOf);

// Detectors and settings

async function loadDetectors() {
  try {
    const listed = await listDetectors(state.token);
    state.detectors = new Map(listed.detectors.map((detector) => [detector.name, detector]));
    const options = listed.detectors.map(({ name, object }) =>
      make("option", { value: name, textContent: printable(object && object !== "object" ? `${name} (${object})` : name) }),
    );
    byId("detector").replaceChildren(...options);
    byId("detector").value = listed.default;
    byId("detector").disabled = false;
    result.note("connection-note", "");
    onDetector();
  } catch (error) {
    onNoDetectors(error);
  }
}

function onNoDetectors(error) {
  const refusal = error instanceof Refusal ? error : new Refusal("server", { title: "The detectors can't be read", detail: error.message });
  if (refusal.kind === "access") return askForToken(refusal);
  const text = `${printable(refusal.title)}. ${printable(refusal.detail)} `;
  result.note("connection-note", text);
  byId("connection-note").append(button("Try again", loadDetectors));
  announce(text);
}

function askForToken(refusal) {
  byId("more").open = true;
  result.note("connection-note", `${printable(refusal.title)}. ${printable(refusal.detail)} Give an access token above.`);
  byId("token").focus();
  announce(byId("connection-note").textContent);
}

function onDetector() {
  const detector = state.detectors.get(byId("detector").value);
  byId("object").placeholder = detector?.object ?? "";
  writeThreshold(thresholdFor(byId("detector").value));
  noteSettings();
}

function writeThreshold(threshold) {
  byId("threshold").value = result.short(threshold);
  byId("threshold-range").value = threshold;
}

function onThreshold(value) {
  if (!(value > 0 && value < 1)) return; // half-typed
  state.thresholds.set(byId("detector").value, value);
  if (state.shown?.status === "done") reconsider(state.shown);
  refreshStrip();
  noteSettings();
}

/** Decide again at the present threshold, from the answer at hand. */
function reconsider(item) {
  const before = byId("boxes").childElementCount;
  result.write(item, thresholdOf(item));
  if (result.decide(item.answer, thresholdOf(item)).regions.length !== before) drawPicture(item);
  else chooseRegion(null);
  announce(result.spoken(item, thresholdOf(item)), SPEAK_AFTER_MS);
}

/** Whether the settings ask for another answer than the one shown. */
function noteSettings() {
  const item = state.shown;
  byId("again").disabled = !item || isOpen(item);
  const { detector, object } = item?.options ?? settings();
  const isOther = item?.status === "done" && (detector !== byId("detector").value || object !== byId("object").value.trim());
  result.note("settings-note", isOther ? "The result below was made with other settings; inspect again to use these." : "");
}

function settings() {
  const name = byId("detector").value;
  const threshold = state.thresholds.get(name) ?? null;
  return { detector: name, object: byId("object").value.trim(), threshold, explain: Boolean(state.detectors.get(name)?.explains) };
}

// Images in, answers out

function take(files) {
  const room = MAX_ITEMS - state.items.filter(isOpen).length;
  const left = Math.max(0, files.length - room);
  result.note("intake-note", left ? `${plural(left, "image")} left out: the page holds ${MAX_ITEMS}. A batch job has no such limit.` : "");
  if (room > 0) queueUp(files.slice(0, room));
}

function queueUp(files) {
  const batch = files.map((file) => ({ id: ++state.serial, file, name: printable(file.name || "pasted image"), status: "waiting", options: settings() }));
  state.items = [...batch.toReversed(), ...state.items];
  forget(state.items.slice(MAX_ITEMS));
  if (!state.shown || !isOpen(state.shown)) show(batch[0]);
  announce(`${plural(batch.length, "image")} taken.`);
  queue.add(batch);
}

function forget(items) {
  queue.drop(items);
  state.items = state.items.filter((item) => !items.includes(item));
  if (items.includes(state.shown)) show(state.items[0] ?? null);
  else refreshStrip();
}

async function onChanged(item) {
  if (item.status === "done") await prepare(item);
  if (item === state.shown) show(item);
  else refreshStrip();
  if (item.status === "done" || item.status === "failed") report(item);
}

/** Decode what the answer brought: the map exactly, the image for its thumbnail. */
async function prepare(item) {
  const [map, bitmap] = await Promise.all([mapOf(item.answer), picture.photograph(item.file)]);
  item.options.detector ||= item.answer.detector; // taken before the detectors were known
  Object.assign(item, { map: map.value, mapError: map.error, thumbnail: picture.thumbnail(bitmap, ...THUMBNAIL_PX) });
  bitmap?.close();
}

async function mapOf(answer) {
  try {
    return { value: answer.map ? await decodeMap(fromBase64(answer.map)) : null, error: answer.map ? "" : "the answer has none" };
  } catch (error) {
    return { value: null, error: error.message };
  }
}

function report(item) {
  if (item.status === "failed" && item === state.shown) return; // the alert says it
  const isLast = !state.items.some(isOpen);
  const text = item.status === "done" ? result.spoken(item, thresholdOf(item)) : `${item.name}: ${printable(item.refusal.title)}`;
  announce(isLast && state.items.length > 1 ? `${text} ${counts(state.items, thresholdOf)}.` : text);
}

// The one on display

function show(item) {
  state.shown = item;
  refreshStrip();
  noteSettings();
  if (!item) return showNothing();
  if (item.status === "done") return showAnswer(item);
  if (item.status === "failed") return result.writeRefusal(item, item.refusal, [button("Try again", () => again(item, item.options))]);
  if (item.refusal) return showHeld(item);
  byId("failure").hidden = true;
  byId("findings").hidden = true;
  result.headline("wait", item.status === "running" ? "Inspecting" : "Waiting", item.name);
}

function showNothing() {
  byId("failure").hidden = true;
  byId("findings").hidden = true;
  result.headline("", "No image yet", "Nothing is sent before you choose, drop or paste an image.");
}

function showAnswer(item) {
  const { detector, object } = item.options;
  if (state.detectors.has(detector)) byId("detector").value = detector;
  byId("object").value = object;
  onDetector();
  writeThreshold(thresholdOf(item));
  result.write(item, thresholdOf(item));
  drawPicture(item);
}

async function drawPicture(item) {
  const bitmap = await picture.photograph(item.file);
  if (item !== state.shown) return bitmap?.close();
  const { regions } = result.decide(item.answer, thresholdOf(item));
  picture.draw(bitmap, item.answer, item.map, regions, thresholdOf(item));
  bitmap?.close();
  const peak = item.map ? `Heat map: highest value ${picture.peak(item.map)}.` : "No heat map.";
  byId("photo").setAttribute("aria-label", `${item.name}, ${item.answer.width} x ${item.answer.height} px. ${peak}`);
  const missing = bitmap ? "" : `This browser can't show ${item.file.type === "image/tiff" ? "TIFF files" : "this file"}, so the heat map lies on grey. Score and regions are those of the file.`;
  result.note("picture-note", [missing, item.mapError && `No heat map: ${item.mapError}.`].filter(Boolean).join(" "));
}

const button = (textContent, onclick) => make("button", { type: "button", textContent, onclick });

function showHeld(item) {
  result.writeRefusal(item, item.refusal, [button("Try now", queue.resume), button("Give up", () => forget([item]))]);
  result.note("countdown", item.seconds === null ? "" : `Trying again in ${item.seconds} s.`);
}

/** Inspect an image of the session once more, as a new entry. */
function again(item, options) {
  const copy = { id: ++state.serial, file: item.file, name: item.name, status: "waiting", options };
  state.items = [copy, ...state.items];
  forget(state.items.slice(MAX_ITEMS));
  show(copy);
  queue.add([copy]);
}

/** The queue waits: for `seconds` more, or for someone to do something (null). */
function onHeld(item, seconds, isFirst) {
  item.seconds = seconds;
  if (isFirst) {
    show(item);
    if (item.refusal.kind === "access") askForToken(item.refusal);
  } else if (item === state.shown) {
    result.note("countdown", `Trying again in ${seconds} s.`);
  }
}

// Regions: the list and the picture choose for each other

function chooseRegion(place) {
  picture.highlight(place);
  result.highlight(place);
}

function linkRegions(container) {
  const place = (event) => event.target.closest("[data-region]")?.dataset.region;
  container.addEventListener("focusin", (event) => place(event) && chooseRegion(Number(place(event))));
  container.addEventListener("pointerover", (event) => place(event) && chooseRegion(Number(place(event))));
  container.addEventListener("click", (event) => place(event) && chooseRegion(Number(place(event))));
  container.addEventListener("keydown", (event) => event.key === "Escape" && chooseRegion(null));
  roving(container);
}

async function copyJson() {
  const text = state.shown.text;
  announce((await copied(text)) ? "JSON copied." : "The browser refused to copy; open Show JSON and copy it from there.");
}

/** The clipboard needs a secure context; over plain http the old command still works. */
async function copied(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  const area = make("textarea", { value: text, className: "unseen", readOnly: true });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  byId("copy").focus();
  return done;
}

function wire() {
  listen(take, (message) => {
    result.note("intake-note", message);
    announce(message);
  });
  byId("detector").addEventListener("change", onDetector);
  byId("object").addEventListener("input", noteSettings);
  byId("threshold").addEventListener("input", (event) => {
    byId("threshold-range").value = event.target.value;
    onThreshold(event.target.valueAsNumber);
  });
  byId("threshold").addEventListener("change", () => writeThreshold(thresholdFor(byId("detector").value)));
  byId("threshold-range").addEventListener("input", (event) => {
    byId("threshold").value = event.target.value;
    onThreshold(event.target.valueAsNumber);
  });
  byId("again").addEventListener("click", () => again(state.shown, settings()));
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.token = byId("token").value.trim();
    result.note("connection-note", "");
    if (!state.detectors.size) loadDetectors();
    queue.resume();
  });
  byId("opacity").addEventListener("input", (event) => picture.setOpacity(event.target.valueAsNumber));
  byId("stage").addEventListener("pointermove", (event) => {
    const frame = byId("stage").getBoundingClientRect();
    byId("probe").textContent = picture.probe((event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height);
  });
  byId("stage").addEventListener("pointerleave", () => (byId("probe").textContent = ""));
  for (const id of ["boxes", "regions-list"]) linkRegions(byId(id));
  byId("copy").addEventListener("click", copyJson);
  byId("strip").addEventListener("click", (event) => {
    const id = Number(event.target.closest("[data-item]")?.dataset.item);
    const item = state.items.find((other) => other.id === id);
    if (item) show(item);
  });
  roving(byId("strip"));
  byId("stop").addEventListener("click", () => forget(state.items.filter(isOpen)));
  byId("clear").addEventListener("click", () => forget([...state.items]));
  addEventListener("online", () => {
    if (!state.detectors.size) loadDetectors();
    if (queue.heldFor() === "offline") queue.resume();
  });
}

wire();
picture.drawRamp();
loadDetectors();
