/**
 * The picture: image, heat map, rims of the regions, and a button on every region.
 *
 * Three canvases lie on each other, so that the slider only changes the opacity of the middle one. The image is decoded
 * after the server has accepted it, never before: the server's limits protect this browser too.
 */

import { byId, make, makeTabStop, scoreText } from "./dom.js";
import { heat, heatPixels, mask, rim } from "./pixels.js";

const LONGER_SIDE_PX = [640, 1280]; // of the canvases: enough for a smooth map, not too much for a phone
const WIDEST = 8; // a needle is shown wider than it is
const MAT = "#8b8b88";
const RIM_RGB = [0, 224, 255];

let drawn = null; // { width, height, rims, map }

/** The image as a bitmap, or null where this browser can't read the format. */
export async function photograph(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return null;
  }
}

/** A small canvas of a bitmap, for the history; plain grey without one. */
export function thumbnail(bitmap, width, height) {
  const canvas = make("canvas", { width, height, "aria-hidden": "true" });
  const scale = bitmap ? Math.max(width / bitmap.width, height / bitmap.height) : 1;
  const [w, h] = bitmap ? [bitmap.width * scale, bitmap.height * scale] : [0, 0];
  fill(canvas, bitmap, [(width - w) / 2, (height - h) / 2, w, h]);
  return canvas;
}

/**
 * Draw one inspected image.
 *
 * @param {ImageBitmap | null} bitmap null: grey
 * @param {{width: number, height: number}} answer its size, px
 * @param {{w: number, h: number, values: Float32Array} | null} map null: no heat map
 * @param {object[]} regions of the answer that count
 * @param {number} threshold for the numbers' digits
 */
export function draw(bitmap, answer, map, regions, threshold) {
  const { width, height } = drawnSize(answer);
  for (const id of ["photo", "heat", "lines"]) Object.assign(byId(id), { width, height });
  const ratio = width / height;
  byId("stage").style.aspectRatio = `${width} / ${height}`;
  byId("stage").style.maxWidth = `max(8rem, ${(72 * ratio).toFixed(2)}vh)`;
  fill(byId("photo"), bitmap, [0, 0, width, height]);
  if (map) paintPixels(byId("heat"), heatPixels(map, width, height));
  const rims = regions.map((region) => (region.rle ? rim(mask(region.rle, answer, width, height), width, height) : null));
  drawn = { width, height, rims, map, answer };
  byId("boxes").replaceChildren(...regions.map((region, place) => box(region, place, answer, threshold)));
  highlight(null);
}

/** Size of the canvases, px. */
function drawnSize({ width, height }) {
  const ratio = Math.min(Math.max(width / height, 1 / WIDEST), WIDEST);
  const longer = Math.min(Math.max(width, height, LONGER_SIDE_PX[0]), LONGER_SIDE_PX[1]);
  return { width: Math.round(Math.min(longer, longer * ratio)), height: Math.round(Math.min(longer, longer / ratio)) };
}

/** Fill a canvas: the bitmap on white, as the server composites it, or grey without one. */
function fill(canvas, bitmap, area) {
  const context = canvas.getContext("2d");
  context.fillStyle = bitmap ? "#fff" : MAT;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  if (bitmap) context.drawImage(bitmap, ...area);
}

function paintPixels(canvas, pixels) {
  canvas.getContext("2d").putImageData(new ImageData(pixels, canvas.width, canvas.height), 0, 0);
}

function box(region, place, answer, threshold) {
  const [x, y, width, height] = region.box;
  const text = `${scoreText(region.score, threshold)} ${region.defect_type}`;
  const label = `Region ${place + 1}: ${region.defect_type}, score ${scoreText(region.score, threshold)}`;
  const button = make("button", { type: "button", "aria-label": label, "data-region": place }, make("span", { textContent: text }));
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  Object.assign(button.style, {
    left: percent(x, answer.width),
    top: percent(y, answer.height),
    width: percent(width, answer.width),
    height: percent(height, answer.height),
    zIndex: 1000 - place, // the highest score on top
  });
  button.classList.toggle("is-high", y < 0.06 * answer.height);
  button.classList.toggle("is-right", x > 0.7 * answer.width);
  return button;
}

/** Put the region of this number forward, or none. */
export function highlight(chosen) {
  if (!drawn) return;
  const buttons = [...byId("boxes").children];
  for (const [place, button] of buttons.entries()) button.setAttribute("aria-pressed", String(place === chosen));
  makeTabStop(buttons, buttons[chosen ?? 0]);
  const pixels = new Uint8ClampedArray(4 * drawn.width * drawn.height);
  for (const [place, edge] of drawn.rims.entries()) {
    if (edge) stain(pixels, edge, chosen === null || place === chosen ? 255 : 90);
  }
  paintPixels(byId("lines"), pixels);
}

function stain(pixels, edge, opacity) {
  for (let i = 0; i < edge.length; i++) {
    if (edge[i] && pixels[4 * i + 3] < opacity) pixels.set([...RIM_RGB, opacity], 4 * i);
  }
}

/** The map's value below a place of the picture: what the model said there, without smoothing. */
export function probe(across, down) {
  if (!drawn?.map) return "";
  const { map, answer } = drawn;
  const at = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
  const value = map.values[at(down, map.h) * map.w + at(across, map.w)];
  return `${value.toFixed(3)} at ${at(across, answer.width)}, ${at(down, answer.height)} px`;
}

/** "0.812, top left": the highest value of a map and where it is, for those who can't see it. */
export function peak({ w, h, values }) {
  const top = values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
  const third = (place, count, names) => names[Math.min(2, Math.floor((3 * (place + 0.5)) / count))];
  const row = third(Math.floor(top / w), h, ["top", "middle", "bottom"]);
  const column = third(top % w, w, ["left", "centre", "right"]);
  return `${values[top].toFixed(3)}, ${row} ${column}`;
}

/** Draw the colour scale once; its opacity follows the slider. */
export function drawRamp() {
  const pixels = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) {
    const [red, green, blue, opacity] = heat(i / 255);
    pixels.set([red, green, blue, 255 * opacity], 4 * i);
  }
  paintPixels(byId("ramp"), pixels);
}

/** Opacity of the heat map and its scale, 0 to 100 %. */
export function setOpacity(percent) {
  byId("heat").style.opacity = percent / 100;
  byId("ramp").style.opacity = percent / 100;
  byId("opacity-value").textContent = `${percent} %`;
}
