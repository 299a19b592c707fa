// Pictures and masks in the pixels of a canvas: what a tile shows is arithmetic on these pixels alone.

import { pixels } from "./api.js";
import { el } from "./dom.js";

/** Colours of what is drawn over a picture, RGB. */
export const COLOURS = { mask: [230, 0, 150], teacher: [255, 140, 0], band: [0, 200, 255], ignore: [255, 225, 0] };
/** Ways to look at a mask. */
export const MODES = ["overlay", "outline", "cut-out", "image"];
const CHECKER = [
  [205, 205, 205],
  [150, 150, 150],
];
const THRESHOLD = 128;

/** (width * height) 0/1 bytes of a bitmap of a mask. */
export function bitsOf(bitmap) {
  const { data } = imageOf(bitmap);
  const bits = new Uint8Array(data.length / 4);
  for (let at = 0; at < bits.length; at += 1) bits[at] = data[4 * at] >= THRESHOLD ? 1 : 0;
  return bits;
}

/** The pixels of a bitmap. */
export function imageOf(bitmap) {
  const sheet = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** Mix a colour into the pixels where `bits` is set; opacity 0 leaves them, 1 covers them. Changes `data`. */
export function mix(data, bits, colour, opacity) {
  for (let at = 0; at < bits.length; at += 1) {
    if (!bits[at]) continue;
    for (let c = 0; c < 3; c += 1) data[4 * at + c] = data[4 * at + c] * (1 - opacity) + colour[c] * opacity;
  }
}

/** Put a chequered ground in the place of everything that is not mask. Changes `data`. */
export function cutOut(data, bits, width) {
  const square = 8;
  for (let at = 0; at < bits.length; at += 1) {
    if (bits[at]) continue;
    const odd = (Math.floor((at % width) / square) + Math.floor(Math.floor(at / width) / square)) % 2;
    for (let c = 0; c < 3; c += 1) data[4 * at + c] = CHECKER[odd][c];
  }
}

/** 1 where a pixel equal to `wanted` lies in the square of `reach` pixels each way; outside the picture none does. */
function spread(bits, width, height, reach, wanted) {
  const across = new Uint8Array(bits.length);
  const out = new Uint8Array(bits.length);
  sweep(bits, across, height, width, width, 1, reach, wanted);
  sweep(across, out, width, height, 1, width, reach, 1);
  return out;
}

/** 1 where a pixel equal to `wanted` lies within `reach` along one direction of the picture. */
function sweep(bits, out, lines, length, lineStep, step, reach, wanted) {
  for (let line = 0; line < lines; line += 1) {
    const start = line * lineStep;
    let last = -Infinity;
    for (let at = 0; at < length; at += 1) {
      if (bits[start + at * step] === wanted) last = at;
      if (at - last <= reach) out[start + at * step] = 1;
    }
    last = Infinity;
    for (let at = length - 1; at >= 0; at -= 1) {
      if (bits[start + at * step] === wanted) last = at;
      if (last - at <= reach) out[start + at * step] = 1;
    }
  }
}

/** Pixels of the mask within `reach` of the background; the border of the picture is no boundary. */
export function outline(bits, width, height, reach = 1) {
  const near = spread(bits, width, height, reach, 0);
  return bits.map((bit, at) => bit & near[at]);
}

/** Pixels within Chebyshev distance `reach` of the contour, on both sides of it. */
export function band(bits, width, height, reach) {
  const inner = spread(bits, width, height, reach, 0);
  const outer = spread(bits, width, height, reach, 1);
  return bits.map((bit, at) => (bit ? inner[at] : outer[at]));
}

/** Width of the boundary band of Boundary IoU: 2 % of the diagonal, at least a pixel. */
export function bandWidth(width, height) {
  return Math.max(1, Math.round(0.02 * Math.hypot(width, height)));
}

/** The picture with its mask, as pixels. `mode` is one of MODES. */
export function composed(image, bits, { mode, opacity, colour = COLOURS.mask }) {
  const data = new Uint8ClampedArray(image.data);
  const { width, height } = image;
  if (bits && mode === "overlay") mix(data, bits, colour, opacity);
  if (bits && mode === "outline") mix(data, outline(bits, width, height, width > 200 ? 2 : 1), colour, 1);
  if (bits && mode === "cut-out") cutOut(data, bits, width);
  return new ImageData(data, width, height);
}

/** A canvas of one sample that can be drawn again in another way without asking the server again. */
export class Tile {
  /** Args: sample (id, pixels), side of the longer edge, options (release, kind of mask, label). */
  constructor(sample, side, { release = "", mask = "mask", label = "" } = {}) {
    this.sample = sample;
    this.side = side;
    this.release = release;
    this.kind = mask;
    this.image = null;
    this.bits = null;
    this.canvas = el("canvas", {
      width: side,
      height: side,
      role: "img",
      "aria-label": label || `Picture of ${sample.id}`,
    });
    this.node = el("div", { class: "picture waiting" }, this.canvas);
  }

  /** Fetch the pixels, then draw them; a sample without pixels says so. */
  async load(look, signal) {
    this.look = look;
    if (!this.sample.pixels) return this.say("no pixels kept");
    try {
      const asked = [pixels("thumb", this.sample.id, this.side, { release: this.release, signal })];
      if (this.kind) asked.push(pixels(this.kind, this.sample.id, this.side, { release: this.release, signal }));
      const [picture, mask] = await Promise.all(asked);
      this.image = imageOf(picture);
      this.bits = mask ? bitsOf(mask) : null;
      this.canvas.width = picture.width;
      this.canvas.height = picture.height;
      this.node.classList.remove("waiting");
      this.draw(this.look);
      this.canvas.dataset.drawn = "yes";
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message);
    }
    return undefined;
  }

  /** Draw with another look ({mode, opacity}). */
  draw(look) {
    this.look = look;
    if (this.image) this.canvas.getContext("2d").putImageData(composed(this.image, this.bits, look), 0, 0);
  }

  say(why) {
    this.node.classList.remove("waiting");
    this.node.replaceChildren(el("span", { class: "nothing" }, why));
  }
}

/** The look that was chosen last. */
export function savedLook() {
  const look = { mode: "overlay", opacity: 0.5 };
  try {
    const saved = JSON.parse(sessionStorage.getItem("curate.look") ?? "{}");
    if (MODES.includes(saved.mode)) look.mode = saved.mode;
    if (saved.opacity >= 0 && saved.opacity <= 1) look.opacity = saved.opacity;
  } catch {
    sessionStorage.removeItem("curate.look");
  }
  return look;
}

/** Keep a look for the next screen. */
export function keepLook(look) {
  sessionStorage.setItem("curate.look", JSON.stringify(look));
}
