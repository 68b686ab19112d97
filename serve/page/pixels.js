/**
 * Numbers behind the picture: the map, its colours, the masks. Nothing here touches the page.
 *
 * The map comes as a 16-bit grey PNG on the model's grid. A canvas would cut it to 8 bits, whose steps of 0.004 are
 * wider than some margins, so the file is read here, exactly: `value = sample / 65535`.
 *
 * The colours are those of `zsad/report/overlay.py`, one scale for every picture: a calibrated value has the same
 * colour and opacity wherever it appears, and lightness falls evenly, so that the order reads in grey and with
 * colour-blind eyes.
 *
 * Legend: w x h is the model's grid, width x height the picture that is drawn, both in px and row by row.
 */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MAX_SAMPLES = 2 ** 22; // a grid of 2,048 x 2,048
const STOPS = [
  [255, 246, 160, 0.0],
  [255, 222, 96, 0.12],
  [253, 174, 48, 0.32],
  [238, 116, 40, 0.5],
  [205, 52, 70, 0.62],
  [140, 8, 118, 0.72],
];

/** Bytes of a base64 text. */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/**
 * Decode a 16-bit grey PNG without loss.
 *
 * @param {Uint8Array} bytes the file
 * @returns {Promise<{w: number, h: number, values: Float32Array}>} calibrated values in [0, 1]
 * @throws {Error} if it is any other kind of file
 */
export async function decodeMap(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (!SIGNATURE.every((byte, place) => bytes[place] === byte)) throw new Error("the map is not a PNG file");
  const [w, h] = [view.getUint32(16), view.getUint32(20)];
  const kind = [...bytes.subarray(24, 29)].join();
  if (kind !== "16,0,0,0,0") throw new Error("the map is not a plain 16-bit grey PNG");
  if (!w || !h || w * h > MAX_SAMPLES) throw new Error(`the map has ${w} x ${h} samples`);
  const lines = await inflate(imageData(bytes, view), h * (1 + 2 * w));
  return { w, h, values: samples(unfiltered(lines, w, h), w * h) };
}

/** The chunks of compressed data, in order. */
function imageData(bytes, view) {
  const parts = [];
  for (let place = 8; place + 12 <= bytes.length; ) {
    const length = view.getUint32(place);
    const name = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    if (name === "IDAT") parts.push(bytes.subarray(place + 8, place + 8 + length));
    place += 12 + length;
  }
  return new Blob(parts);
}

async function inflate(blob, expected) {
  const stream = blob.stream().pipeThrough(new DecompressionStream("deflate"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  if (data.length !== expected) throw new Error(`the map holds ${data.length} bytes instead of ${expected}`);
  return data;
}

/** Undo PNG's line filters (two bytes a sample), in place of the filtered bytes. */
function unfiltered(lines, w, h) {
  const stride = 2 * w;
  const out = new Uint8Array(stride * h);
  for (let y = 0; y < h; y++) {
    const filter = lines[y * (stride + 1)];
    const row = y * stride;
    for (let x = 0; x < stride; x++) {
      const left = x < 2 ? 0 : out[row + x - 2];
      const above = y ? out[row - stride + x] : 0;
      const corner = y && x >= 2 ? out[row - stride + x - 2] : 0;
      out[row + x] = lines[y * (stride + 1) + 1 + x] + predicted(filter, left, above, corner);
    }
  }
  return out;
}

function predicted(filter, left, above, corner) {
  if (filter === 4) return paeth(left, above, corner);
  return [0, left, above, (left + above) >> 1][filter];
}

function paeth(left, above, corner) {
  const guess = left + above - corner;
  const [byLeft, byAbove, byCorner] = [left, above, corner].map((value) => Math.abs(guess - value));
  if (byLeft <= byAbove && byLeft <= byCorner) return left;
  return byAbove <= byCorner ? above : corner;
}

function samples(bytes, count) {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = (bytes[2 * i] * 256 + bytes[2 * i + 1]) / 65535;
  return values;
}

/** [red, green, blue in 0..255, opacity in 0..1] of a calibrated value. */
export function heat(value) {
  const place = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((start, channel) => start + (place - low) * (STOPS[low + 1][channel] - start));
}

const TABLE_STEPS = 4096;
let table = null;

/** RGBA bytes of `TABLE_STEPS + 1` values from 0 to 1. */
function heatTable() {
  if (table) return table;
  table = new Uint8ClampedArray(4 * (TABLE_STEPS + 1));
  for (let i = 0; i <= TABLE_STEPS; i++) {
    const [red, green, blue, opacity] = heat(i / TABLE_STEPS);
    table.set([red, green, blue, 255 * opacity], 4 * i);
  }
  return table;
}

/** RGBA bytes of a map stretched bilinearly over width x height. */
export function heatPixels(map, width, height) {
  const colours = heatTable();
  const fine = stretched(map, width, height);
  const pixels = new Uint8ClampedArray(4 * width * height);
  for (let i = 0; i < fine.length; i++) {
    const entry = 4 * Math.round(fine[i] * TABLE_STEPS);
    for (let channel = 0; channel < 4; channel++) pixels[4 * i + channel] = colours[entry + channel];
  }
  return pixels;
}

/** Bilinear up-sampling between sample centres, as `zsad.regions.upsample` does it. */
export function stretched(map, width, height) {
  const columns = places(map.w, width);
  const rows = places(map.h, height);
  const fine = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const [top, bottom, down] = [rows.low[y] * map.w, rows.high[y] * map.w, rows.share[y]];
    for (let x = 0; x < width; x++) {
      const [left, right, across] = [columns.low[x], columns.high[x], columns.share[x]];
      const upper = map.values[top + left] * (1 - across) + map.values[top + right] * across;
      const lower = map.values[bottom + left] * (1 - across) + map.values[bottom + right] * across;
      fine[y * width + x] = upper * (1 - down) + lower * down;
    }
  }
  return fine;
}

/** For every pixel along one side: its two neighbours among `from` samples, and the second one's share. */
function places(from, to) {
  const result = { low: new Uint32Array(to), high: new Uint32Array(to), share: new Float32Array(to) };
  for (let i = 0; i < to; i++) {
    const place = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
    result.low[i] = Math.floor(place);
    result.high[i] = Math.min(result.low[i] + 1, from - 1);
    result.share[i] = place - result.low[i];
  }
  return result;
}

/** Run lengths of COCO's counts string: first the pixels outside, column by column. */
export function runLengths(counts) {
  const runs = [];
  for (let place = 0; place < counts.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(place++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32 && place < counts.length);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/**
 * A mask at another size, by the pixel that each new one's centre falls on.
 *
 * @param {string} counts COCO's, over an image of `image.width` x `image.height`
 * @returns {Uint8Array} width x height, 1 inside
 */
export function mask(counts, image, width, height) {
  const ends = [];
  for (const run of runLengths(counts)) ends.push(run + (ends.at(-1) ?? 0));
  const inside = new Uint8Array(width * height);
  for (let x = 0; x < width; x++) {
    const column = Math.floor(((x + 0.5) * image.width) / width) * image.height;
    let run = firstAbove(ends, column);
    for (let y = 0; y < height; y++) {
      const pixel = column + Math.floor(((y + 0.5) * image.height) / height);
      while (run < ends.length && ends[run] <= pixel) run++;
      inside[y * width + x] = run & 1;
    }
  }
  return inside;
}

function firstAbove(ends, pixel) {
  let [low, high] = [0, ends.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > pixel) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Rim, 2 px wide, of a mask; closed at the picture's edge. */
export function rim(inside, width, height) {
  const core = eroded(eroded(inside, width, height), width, height);
  return inside.map((value, i) => value & ~core[i] & 1);
}

function eroded(inside, width, height) {
  const core = new Uint8Array(inside.length);
  for (let y = 1; y < height - 1; y++) {
    for (let x = 1; x < width - 1; x++) {
      const i = y * width + x;
      core[i] = inside[i] & inside[i - 1] & inside[i + 1] & inside[i - width] & inside[i + width];
    }
  }
  return core;
}
